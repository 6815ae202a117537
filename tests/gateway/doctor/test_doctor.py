"""The doctor: each thing that is off is named with its remedy; what is well is well; and nothing is guessed."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from certs.authority import Authority
from certs.files import read_certificates
from gateway.doctor.credentials import OF_A_HOST, certificate_findings, crl_findings, folder_finding, key_finding
from gateway.doctor.finding import Finding, worst
from gateway.doctor.gateway_host import gateway_host_findings
from gateway.doctor.hypervisor import hypervisor_findings, keepalive_finding, libvirtd_finding, version_finding
from gateway.doctor.machine import access_control, suid_dumps, swap, userfaultfd
from gateway.doctor.network import clock_finding, gateway_findings, listen_finding, peer_findings
from gateway.doctor.relay_host import relay_host_findings
from gateway.starter import Site
from tests.gateway.cli.invoking import invoke
from tests.gateway.conftest import Running


def machine(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(("value", "status"), [("1\n", "ok"), ("0\n", "attention")])
def test_post_copy_needs_userfaultfd(tmp_path: Path, value: str, status: str) -> None:
    root = machine(tmp_path, proc__sys__vm__unprivileged_userfaultfd=value)
    assert userfaultfd(root).status == status


SWAPS = "Filename Type Size Used Priority\n"


@pytest.mark.parametrize(
    ("area", "uuid", "status"),
    [
        ("", "", "ok"),
        ("/dev/sda2 partition 1 0 -2\n", "", "attention"),
        ("/dev/zram0 partition 1 0 -2\n", "", "ok"),
        ("/dev/dm-1 partition 1 0 -2\n", "CRYPT-PLAIN-swap", "ok"),
        ("/dev/dm-1 partition 1 0 -2\n", "LVM-abc", "attention"),
        ("/dev/zram0 partition 1 0 -2\n/swapfile file 1 0 -3\n", "", "attention"),
    ],
)
def test_swap_in_the_clear_is_named(tmp_path: Path, area: str, uuid: str, status: str) -> None:
    root = machine(tmp_path, proc__swaps=SWAPS + area)
    if uuid:
        path = tmp_path / "sys/block/dm-1/dm/uuid"
        path.parent.mkdir(parents=True)
        path.write_text(uuid)
    found = swap(root)
    assert found.status == status
    assert bool(found.remedy) == (status != "ok")


def test_what_cannot_be_read_is_unknown_and_not_well(tmp_path: Path) -> None:
    assert swap(tmp_path).status == "unknown"


@pytest.mark.parametrize(("value", "status"), [("0", "ok"), ("1", "attention"), ("2", "attention")])
def test_core_dumps_of_what_changed_its_user(tmp_path: Path, value: str, status: str) -> None:
    assert suid_dumps(machine(tmp_path, proc__sys__fs__suid_dumpable=value)).status == status


@pytest.mark.parametrize(
    ("files", "check", "status"),
    [
        ({"sys__fs__selinux__enforce": "1"}, "selinux", "ok"),
        ({"sys__fs__selinux__enforce": "0"}, "selinux", "attention"),
        ({"sys__module__apparmor__parameters__enabled": "Y\n"}, "apparmor", "ok"),
        ({}, "access_control", "attention"),
    ],
)
def test_mandatory_access_control(tmp_path: Path, files: dict[str, str], check: str, status: str) -> None:
    (found,) = access_control(machine(tmp_path, **files))
    assert (found.check, found.status) == (check, status)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "ok"),
        ("#keepalive_interval = 1\n", "ok"),
        ("keepalive_interval = 5\nkeepalive_count = 12\n", "ok"),
        ("keepalive_interval = 1\nkeepalive_count = 5\n", "attention"),
        ("keepalive_interval = -1\n", "attention"),
    ],
)
def test_libvirts_patience(tmp_path: Path, text: str, status: str) -> None:
    file = tmp_path / "qemu.conf"
    file.write_text(text)
    assert keepalive_finding(file).status == status


def test_a_version_is_compared_and_a_missing_program_is_unknown() -> None:
    assert version_finding("x", ["echo", "QEMU emulator version 7.2.22"], (7, 2)).status == "ok"
    assert version_finding("x", ["echo", "QEMU emulator version 6.9.9"], (7, 2)).status == "attention"
    assert version_finding("x", ["echo", "none"], (7, 2)).status == "unknown"
    assert version_finding("x", ["no-such-program"], (7, 2)).status == "unknown"


def test_a_libvirt_that_the_relay_will_not_reach_is_wrong(tmp_path: Path) -> None:
    """Once all was well on a host whose libvirtd was stopped, and whose virsh was not installed."""
    path = tmp_path / "sock"
    missing = libvirtd_finding(path)
    assert (missing.status, missing.message) == ("wrong", f"{path}: No such file or directory")
    assert "libvirt_socket" in missing.remedy
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert libvirtd_finding(path).status == "wrong"  # nobody listens
        server.listen()
        assert libvirtd_finding(path).status == "ok"
    found = {each.check: each for each in hypervisor_findings(tmp_path, "no-such-virsh")}
    assert (found["libvirt"].status, "placement.virsh" in found["libvirt"].remedy) == ("wrong", True)
    assert "libvirt" not in {each.check for each in hypervisor_findings(tmp_path, None)}


@pytest.mark.parametrize(("seconds", "status"), [(0, "ok"), (10, "attention"), (-10, "attention"), (31, "wrong")])
def test_clocks_that_differ(seconds: int, status: str) -> None:
    date = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert clock_finding(date, datetime.now(UTC)).status == status


@pytest.mark.parametrize("date", ["", "yesterday", "2026-11-25"])
def test_a_gateway_that_tells_no_time(date: str) -> None:
    assert clock_finding(date, datetime.now(UTC)).status == "unknown"


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_ports_are_tried(port: int) -> None:
    assert listen_finding("0.0.0.0", port).status == "ok"  # noqa: S104 - of a configuration
    assert listen_finding("127.0.0.1", 1).status == "attention"
    elsewhere = listen_finding("198.51.100.7", port)  # of the machine that the file was copied from
    assert (elsewhere.status, elsewhere.message) == ("wrong", "198.51.100.7 is no address of this machine")
    found = list(peer_findings([("b", "127.0.0.1", port), ("c", "127.0.0.1", 1)]))
    assert [finding.status for finding in found] == ["ok", "attention"]
    many = list(peer_findings([("b", "127.0.0.1", port)] * 40))
    assert many[-1].message == "8 further hosts were not tried"


def test_certificates_and_crls_are_judged_by_their_time(site: Site) -> None:
    certificate, crl = site.host_folder("a") / "host.pem", site.certs / "crl.pem"
    assert {each.status for each in certificate_findings(certificate, datetime.now(UTC), OF_A_HOST)} == {"ok"}
    later = datetime.now(UTC) + timedelta(days=3650)
    assert "wrong" in {each.status for each in certificate_findings(certificate, later, OF_A_HOST)}
    (fresh,) = crl_findings([crl], datetime.now(UTC))
    assert (fresh.status, fresh.message) == ("ok", f"{crl} is valid for 6 days"), "not how old: it is dated back"
    assert [each.status for each in crl_findings([crl], later)] == ["wrong"]
    (missing,) = crl_findings([site.directory / "none.pem"], datetime.now(UTC))
    assert missing.status == "wrong"


def test_a_key_or_a_folder_that_others_may_read_is_wrong(site: Site, tmp_path: Path) -> None:
    key = site.host_folder("a") / "host.key"
    assert key_finding(key, OF_A_HOST).status == "ok"
    key.chmod(0o644)
    found = key_finding(key, OF_A_HOST)
    assert found.status == "wrong"
    assert "600" in found.remedy
    folder = tmp_path / "state"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    assert folder_finding(folder, 0o700).remedy == f"chmod 700 {folder}"


def test_more_hosts_than_the_gateway_has_connections_for_are_named(site: Site) -> None:
    def found() -> list[Finding]:
        findings = gateway_host_findings(site.gateway_config, Path("/"), datetime.now(UTC))
        return [each for each in findings if each.check == "connections"]

    assert found() == []
    site.gateway_config.write_text(site.gateway_config.read_text() + "\n[limits]\nconnections = 5\n")
    (finding,) = found()
    assert finding.status == "attention"
    assert "limits.connections is 5" in finding.message


def test_people_with_whom_the_gateway_would_not_start_are_named(site: Site) -> None:
    def found() -> list[Finding]:
        findings = gateway_host_findings(site.gateway_config, Path("/"), datetime.now(UTC))
        return [each for each in findings if each.check == "people"]

    assert [each.status for each in found()] == ["ok"]
    site.people.chmod(0o640)
    (finding,) = found()
    assert finding.status == "wrong"
    assert "others may read it: chmod 600" in finding.message


def test_room_for_a_log_is_known_before_the_first_start(site: Site) -> None:
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(re.sub(r'(?m)^directory = ".*"$', 'directory = "to/be/made/log"', text))
    findings = gateway_host_findings(site.gateway_config, Path("/"), datetime.now(UTC))
    assert [each.status for each in findings if each.check == "log_space"] == ["ok"]


def test_the_worst_counts() -> None:
    ok, wrong = Finding("a", "ok", ""), Finding("b", "wrong", "")
    assert (worst([]), worst([ok]), worst([ok, wrong, ok])) == ("ok", "ok", "wrong")


@pytest.mark.whole
async def test_a_gateways_host_is_well_and_its_faults_are_named(running: Running) -> None:
    path = running.site.gateway_config
    found = await trio.to_thread.run_sync(lambda: list(gateway_host_findings(path, Path("/"), datetime.now(UTC))))
    assert [finding for finding in found if finding.status == "wrong"] == []
    assert {"policy", "inventory", "log_space", "private_key", "crl"} <= {finding.check for finding in found}
    text = path.read_text()
    path.write_text(text + '\n[[siem.sinks]]\nkind = "file"\nname = "lines"\npath = "nowhere/lines.jsonl"\n')
    found = await trio.to_thread.run_sync(lambda: list(gateway_host_findings(path, Path("/"), datetime.now(UTC))))
    assert [finding.message for finding in found if finding.status == "wrong"] == ["sink lines: its file has no folder"]
    path.write_text(text + "\nsurprise = 1\n")
    found = await trio.to_thread.run_sync(lambda: list(gateway_host_findings(path, Path("/"), datetime.now(UTC))))
    assert [finding.check for finding in found if finding.status == "wrong"] == ["configuration"]


@pytest.mark.whole
async def test_a_relays_host_reaches_its_gateway_and_compares_clocks(running: Running) -> None:
    path = running.site.relay_config("a")
    text = path.read_text()
    url = next(line for line in text.splitlines() if line.startswith("url = "))
    path.write_text(text.replace(url, f'url = "{running.url}"'))
    began = datetime.now(UTC) - timedelta(seconds=40)  # of a look that takes long is not the gateway's clock
    found = await trio.to_thread.run_sync(lambda: list(relay_host_findings(path, Path("/"), began)))
    by_check = {finding.check: finding for finding in found}
    assert by_check["gateway"].status == "ok", by_check["gateway"]
    assert by_check["clock"].status == "ok"
    assert by_check["identity"].message.endswith("/host/a")
    assert by_check["listen"].status == "attention"  # it does not run
    assert all(finding.remedy for finding in found if finding.status in {"wrong", "attention"})


@pytest.mark.whole
async def test_a_host_that_was_revoked_is_told_that_it_is_its_certificate_and_the_clocks_still_compare(
    running: Running,
) -> None:
    site = running.site
    host = site.host_folder("a")
    Authority.load(site.certs).revoke_all(
        [each.serial_number for each in read_certificates(host / "host.pem")[:1]], datetime.now(UTC)
    )
    number = running.gateway.desk.gate.minimum_crl_number
    with trio.fail_after(30):
        while running.gateway.desk.gate.minimum_crl_number == number:
            await trio.sleep(0.05)
    pair = host / "host.pem", host / "host.key"
    found = await trio.to_thread.run_sync(lambda: list(gateway_findings(running.url, site.ca, pair)))
    assert [each.check for each in found] == ["gateway", "clock"]
    assert "not to this host's certificate" in found[0].message
    assert "sealane certs token" in found[0].remedy
    assert found[1].status == "ok"


def test_a_key_that_is_not_the_certificates_is_no_word_of_the_gateway(site: Site) -> None:
    pair = site.host_folder("a") / "host.pem", site.host_folder("b") / "host.key"
    (found,) = gateway_findings("https://127.0.0.1:1", site.ca, pair)
    assert (found.status, "cannot be used" in found.message) == ("wrong", True)
    assert "sealane certs check" in found.remedy


def test_a_gateway_that_is_away_or_another_is_wrong(site: Site) -> None:
    (found,) = gateway_findings("https://127.0.0.1:1", site.ca)
    assert found.status == "wrong"


def test_the_command_shows_lines_json_and_an_exit_code(site: Site, tmp_path: Path) -> None:
    result = invoke("doctor", "--config", site.gateway_config, "--json")
    document = json.loads(result.stdout.splitlines()[-1])
    assert result.exit_code == (1 if document["outcome"] == "wrong" else 0)
    assert {"check", "status", "message", "remedy"} == set(document["findings"][0])
    (site.certs / "gateway" / "log.key").chmod(0o644)
    result = invoke("doctor", "--config", site.gateway_config)
    assert result.exit_code == 1
    assert "WRONG  private_key:" in result.stdout
    result = invoke("doctor", "--config", tmp_path / "none.toml")
    assert result.exit_code == 2
