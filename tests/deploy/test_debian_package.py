"""The relay's Debian package, built, installed by dpkg in a throw-away root, and run there as the page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.test_deploy_files import block

pytestmark = [pytest.mark.real, pytest.mark.whole]
ROOT = Path(__file__).parents[2]

# An overlay over this machine, in a mount namespace: what is installed is gone with it. No service is started.
_IN_ROOT = """
set -eu
top=$1 package=$2 work=$3
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
mount --bind /proc "$top/root/proc"
mount --bind /dev "$top/root/dev"
mount -t tmpfs tmpfs "$top/root/tmp"
mkdir "$top/root/tmp/work"
mount --bind "$work" "$top/root/tmp/work"
cp "$package" "$top/root/tmp/sealane.deb"
chroot "$top/root" dpkg --install /tmp/sealane.deb >&2
exec chroot "$top/root" /bin/bash -eu /tmp/work/script
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("deb") / "build" / "deb"  # not there yet, as in a new clone
    done = subprocess.run(
        [str(ROOT / "deploy" / "debian" / "build.sh"), "relay", str(out)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env={**os.environ, "DPKG_DEB_COMPRESSOR_TYPE": "none"},  # to compress it takes four times what all else does
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def top(tmp_path: Path) -> Path:
    path = tmp_path / "top"
    path.mkdir()
    return path


def in_root(top: Path, package: Path, work: Path, script: str) -> str:
    work.mkdir(exist_ok=True)
    (work / "script").write_text(script)
    command = ["unshare", "--mount", "bash", "-c", _IN_ROOT, "in-root", str(top), str(package), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_what_a_relay_needs_and_no_more(package: Path) -> None:
    listed = subprocess.run(["dpkg", "--contents", str(package)], capture_output=True, text=True, check=True).stdout
    names = {line.split()[5].removeprefix("./") for line in listed.splitlines()}
    for wanted in ("usr/bin/sealane", "lib/systemd/system/sealane-relay.service", "usr/lib/sysctl.d/60-sealane.conf"):
        assert wanted in names
    for unit in (ROOT / "deploy" / "systemd").glob("sealane-relay.*"):
        (page,) = re.findall(r"^Documentation=file:///(.+)$", unit.read_text(), re.MULTILINE)
        assert page in names
    assert {f"usr/share/doc/sealane-relay/docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= names
    for foreign in ("cedarpy", "fastapi", "hypercorn", "elasticsearch", "ldap3", "bin/pip"):
        assert not any(f"usr/lib/sealane/{foreign}" in name for name in names)
    assert not any(name.endswith(".pyc") for name in names)
    modes = {line.split()[5].removeprefix("./"): line.split()[0] for line in listed.splitlines()}
    assert modes["etc/sealane/"] == "drwxr-x---"
    assert all(mode[5] != "w" and mode[8] != "w" for mode in modes.values())
    assert {line.split()[1] for line in listed.splitlines()} == {"root/root"}


def test_it_is_installed_and_a_relay_started_as_the_page_says(package: Path, top: Path, tmp_path: Path) -> None:
    relay = block("relay").replace("10.7.0.11:7443", "127.0.0.1:0").replace("10.7.0.2:8443", "127.0.0.1:1")
    work = tmp_path / "work"
    work.mkdir()
    (work / "relay.toml").write_text(relay)
    script = """
sealane --version
systemd-analyze verify /lib/systemd/system/sealane-relay.service && echo verified
umask 077
sealane certs init /root/sealane-ca --trust-domain bank.example --dns gateway.bank.example --ip 10.7.0.2 >/dev/null
sealane certs issue /root/sealane-ca fra1 --hours 720 >/dev/null
cp /root/sealane-ca/hosts/fra1/host.pem /root/sealane-ca/hosts/fra1/host.key /root/sealane-ca/ca.pem \
    /root/sealane-ca/crl.pem /root/sealane-ca/gateway/permit.pub /root/sealane-ca/gateway/log.vkey /etc/sealane/
cp /tmp/work/relay.toml /etc/sealane/
PYTHONPATH=/tmp/evil sealane relay serve --config /etc/sealane/relay.toml >/tmp/work/ready 2>/tmp/work/log &
relay=$!
for _ in $(seq 200); do [ -s /tmp/work/ready ] && break; kill -0 $relay; sleep 0.1; done
cat /tmp/work/ready
kill $relay
wait $relay && echo stopped
sealane doctor --json | tail -1 >/tmp/work/doctor || true
_SEALANE_COMPLETE=complete_bash COMP_WORDS="sealane rel" COMP_CWORD=1 sealane || true
grep -c sealane /usr/share/bash-completion/completions/sealane
"""
    lines = in_root(top, package, work, script).splitlines()
    assert lines[:2] == ["sealane 0.1.0", "verified"]
    assert json.loads(lines[2])["ready"] is True
    assert lines[3] == "stopped"
    assert lines[4] == "relay"
    findings = json.loads((work / "doctor").read_text())["findings"]
    wrong = {finding["check"] for finding in findings if finding["status"] == "wrong"}
    assert wrong == {"gateway"}  # which does not run


def test_the_gateways_folder_is_its_users_before_the_first_start(package: Path, top: Path, tmp_path: Path) -> None:
    """Or the doctor, as that user, sees nothing of the issuing CA that the pages have laid down in it."""
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(ROOT / "deploy" / "debian" / "gateway.postinst", work)
    script = """
/tmp/work/gateway.postinst configure >&2
stat -c '%a %U %G' /etc/sealane /var/lib/sealane-gateway
chmod 711 /var/lib/sealane-gateway
/tmp/work/gateway.postinst configure 0.1.0 >&2
stat -c %a /var/lib/sealane-gateway
"""
    said = in_root(top, package, work, script).splitlines()
    assert said == ["750 root sealane-gateway", "700 sealane-gateway sealane-gateway", "711"]


def test_a_purge_keeps_state_and_leaves_nothing_enabled(package: Path, top: Path, tmp_path: Path) -> None:
    script = """
mkdir -p /var/lib/sealane && echo owed >/var/lib/sealane/journal && echo mine >/etc/sealane/relay.toml
systemctl enable sealane-relay.service sealane-relay.socket 2>/dev/null
find /etc/systemd -name 'sealane*' | wc -l
dpkg --purge sealane-relay 2>&1 >/dev/null | grep -o "revoke the host"
find /etc/systemd -name 'sealane*' | wc -l
cat /var/lib/sealane/journal /etc/sealane/relay.toml
"""
    said = in_root(top, package, tmp_path / "work", script).splitlines()
    assert said == ["2", "revoke the host", "0", "owed", "mine"]
