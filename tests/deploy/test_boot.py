"""The relay's package on a machine that systemd boots: its unit, its sandbox, its socket, its restarts.

A container of systemd-nspawn over this machine's files, in a mount namespace: what happens in it is gone with it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.deploy.test_debian_package import package as package  # noqa: PLC0414 - a fixture
from tests.deploy.test_deploy_files import block

pytestmark = [pytest.mark.real, pytest.mark.whole]

# argv: a folder, the package, and where the machine finds `relay.toml` and `script` and leaves what they said.
_BOOT = """
set -eu
top=$1 package=$2 work=$3
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
root=$top/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$root"
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"
cp "$package" "$root/sealane.deb"
chroot "$root" dpkg --install /sealane.deb >/dev/null
mkdir "$root/tried"
cp "$work/relay.toml" "$root/etc/sealane/relay.toml"
chroot "$root" /bin/bash -euc '
umask 077
sealane certs init /root/ca --trust-domain bank.example --dns gateway.bank.example --ip 10.7.0.2
sealane certs issue /root/ca fra1 --hours 720
cd /root/ca
cp hosts/fra1/host.pem hosts/fra1/host.key ca.pem crl.pem gateway/permit.pub gateway/log.vkey /etc/sealane/' >/dev/null
umount "$root/proc" "$root/dev"
cat >"$root/etc/systemd/system/try.service" <<END
[Unit]
After=basic.target
[Service]
Type=oneshot
TimeoutStartSec=300
ExecStart=/bin/bash /tried/script
ExecStopPost=/bin/systemctl --no-block exit
END
printf '[Unit]\nRequires=basic.target try.service\nAfter=basic.target\n' >"$root/etc/systemd/system/try.target"
for unit in systemd-networkd systemd-resolved systemd-timesyncd; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit.service"
done
rm -f "$root/etc/machine-id"
: >"$root/etc/machine-id"
exec systemd-nspawn --quiet --register=no --keep-unit --private-network -D "$root" --bind="$work:/tried" \
    --boot systemd.unit=try.target
"""
_SCRIPT = """
relay=sealane-relay.service
exec >/tried/said 2>/tried/trouble
is() { systemctl show -P "$1" $relay; }
until_active() { for _ in $(seq 300); do [ "$(is ActiveState)" != active ] || return 0; sleep 0.1; done; }
systemctl start $relay && echo "started $(is ActiveState) $(is Slice)"
pid=$(is MainPID)
sed -n 's/^\\(CapEff\\|Seccomp\\|NoNewPrivs\\):\\s*/\\1 /p' /proc/$pid/status
stat -c '%a %n' /var/lib/sealane /run/sealane
systemctl reload $relay && for _ in $(seq 300); do [ "$(is NRestarts)" = 0 ] || break; sleep 0.1; done
until_active
echo "reloaded $(is ActiveState) $(is NRestarts)"
kill -9 "$(is MainPID)"
for _ in $(seq 300); do [ "$(is NRestarts)" = 1 ] || break; sleep 0.1; done
until_active
echo "killed $(is ActiveState) $(is NRestarts)"
systemctl stop $relay
systemctl start sealane-relay.socket && systemctl start $relay && echo "by socket $(is ActiveState)"
sealane relay status --json | tail -1
journalctl -u $relay --no-pager >/tried/journal
dpkg --remove sealane-relay >/dev/null 2>&1
echo "removed $(systemctl is-active sealane-relay.socket)"
"""


def test_its_unit_starts_it_reloads_it_and_starts_it_again(package: Path, tmp_path: Path) -> None:
    top, work = tmp_path / "top", tmp_path / "work"
    top.mkdir()
    work.mkdir()
    relay = block("relay").replace("10.7.0.11:7443", "127.0.0.1:7443").replace("10.7.0.2:8443", "127.0.0.1:1")
    (work / "relay.toml").write_text(relay)
    (work / "script").write_text(_SCRIPT)
    command = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "bash",
        "-c",
        _BOOT,
        "boot",
        str(top),
        str(package),
        str(work),
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=450, check=False)
    said = work / "said"
    assert said.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    trouble = (work / "trouble").read_text() + ((work / "journal").read_text() if (work / "journal").exists() else "")
    lines = said.read_text().splitlines()
    assert lines[0] == "started active sealane.slice", trouble
    assert set(lines[1:4]) == {"CapEff 000000000008202f", "NoNewPrivs 1", "Seccomp 2"}
    assert lines[4:6] == ["700 /var/lib/sealane", "711 /run/sealane"]
    assert lines[6:9] == ["reloaded active 1", "killed active 2", "by socket active"], trouble
    assert '"sessions":[]' in lines[9].replace(" ", ""), lines[9]
    assert lines[10] == "removed inactive"
