"""Preflight: what two hosts say of a VM becomes findings with who must act; with real QEMUs and libvirtd, too."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from gateway.demo.machines import Qemu, start_qemu, stop_qemu
from gateway.dispatch import Assignment, Dispatch
from gateway.inspections import Inspections
from gateway.preflight_findings import Finding, destination_findings, source_findings
from gateway.starter import Site as StarterSite
from tests.gateway.conftest import UUID_WEB, Running, running_gateway
from tests.transport.hypervisors.libvirtd import Libvirtd, running_libvirtd
from transport.hypervisors.libvirt_preflight import destination_checks, machine_of, read_machine
from transport.hypervisors.preflight_facts import Check, Disk, Inspection, Machine, without_sizes
from transport.hypervisors.virsh import Virsh
from transport.libvirt_rpc.domain_xml import DomainRules
from transport.relay.config import load_relay_config
from transport.relay.host import open_host
from transport.relay.service import serve_relay

QEMU = Machine(
    kind="qmp", state="running", version="10.0.2", machine_type="pc-q35-10.0", virt_type="kvm",
    cpu="Skylake-x86_64-cpu",
    cpu_words={"0x1.0.ECX": 0b1011}, vcpus=2, memory_bytes=1 << 30, devices=("virtio-blk-pci", "virtio-net-pci"),
    disks=(Disk(name="vda", path="/srv/web.qcow2", format="qcow2", cache="none"),),
)  # fmt: skip
WAITING = msgspec.structs.replace(QEMU, state="inmigrate")
DOMAIN = msgspec.structs.replace(QEMU, kind="libvirt")


def there(machine: Machine | None, trouble: str = "") -> list[Finding]:
    return list(destination_findings(QEMU, Inspection(machine=machine, trouble=trouble), "b"))


def codes(found: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.code, finding.severity) for finding in found}


def test_two_qemus_that_agree_have_nothing_in_the_way() -> None:
    assert there(WAITING) == []
    assert list(source_findings(Inspection(machine=QEMU), "a")) == []


@pytest.mark.parametrize(
    ("change", "code", "severity"),
    [
        ({"state": "running"}, "no_waiting_qemu", "cannot"),
        ({"machine_type": "pc-q35-7.2"}, "machine_type", "cannot"),
        ({"virt_type": "tcg"}, "virt_type", "cannot"),
        ({"cpu_words": {"0x1.0.ECX": 0b0011}}, "cpu", "cannot"),
        ({"cpu": "Haswell-x86_64-cpu"}, "cpu", "cannot"),
        ({"memory_bytes": 1 << 29}, "memory", "cannot"),
        ({"vcpus": 1}, "vcpus", "cannot"),
        ({"devices": ("virtio-net-pci",)}, "device", "cannot"),
        ({"devices": (*QEMU.devices, "virtio-net-pci")}, "device", "cannot"),
        ({"disks": ()}, "storage", "cannot"),
        ({"disks": (Disk(name="vda", path="/other.qcow2"),)}, "storage", "attention"),
        ({"version": "7.2.22"}, "version", "attention"),
    ],
)
def test_each_difference_is_named(change: dict[str, Any], code: str, severity: str) -> None:
    (found,) = there(msgspec.structs.replace(WAITING, **change))
    assert (found.code, found.severity) == (code, severity)
    assert " b" in found.message
    assert found.who_must_act


def test_more_cpu_features_at_the_destination_are_in_nobodys_way() -> None:
    assert there(msgspec.structs.replace(WAITING, cpu_words={"0x1.0.ECX": 0b1111})) == []


def test_no_qemu_that_waits_is_said_with_the_hosts_own_words() -> None:
    (found,) = there(None, "cannot open the monitor /run/vms/x/qmp.sock")
    assert found.code == "no_waiting_qemu"
    assert "cannot open the monitor" in found.message


def test_what_the_vm_itself_has_against_it() -> None:
    machine = msgspec.structs.replace(
        QEMU, state="paused", blocked=("VFIO device 0000:01:00.0 doesn't support migration",),
        disks=(Disk(name="vda", path="/srv/a", cache="writeback"), Disk(name="cd", path="/iso", read_only=True)),
    )  # fmt: skip
    found = list(source_findings(Inspection(machine=machine), "a"))
    assert codes(found) == {("not_running", "cannot"), ("device", "cannot"), ("disk_cache", "attention")}
    assert any("0000:01:00.0" in finding.message for finding in found)
    copied = source_findings(Inspection(machine=machine), "a", copies_disks=True)
    assert "disk_cache" not in {finding.code for finding in copied}, "no storage is shared"


@pytest.mark.parametrize(
    ("there_is", "severity"),
    [
        (Disk(name="vda", path="/other.qcow2", size_bytes=20), None),
        (Disk(name="vda", path="/other.qcow2", size_bytes=30), None),
        (Disk(name="vda", path="/other.qcow2"), None),  # of an earlier version, which tells no size
        (Disk(name="vda", path="/other.qcow2", size_bytes=19), "cannot"),
        (Disk(name="vda", path="/other.qcow2", size_bytes=20, read_only=True), "cannot"),
        (Disk(name="vdb", size_bytes=20), "cannot"),
    ],
)
def test_a_disk_that_is_copied_needs_an_image_as_large(there_is: Disk, severity: str | None) -> None:
    mine = msgspec.structs.replace(QEMU, disks=(Disk(name="vda", path="/a.qcow2", size_bytes=20),))
    theirs = Inspection(machine=msgspec.structs.replace(WAITING, disks=(there_is,)))
    found = list(destination_findings(mine, theirs, "b", copies_disks=True))
    assert [each.severity for each in found] == ([] if severity is None else [severity])


@pytest.mark.parametrize("said", ["two", "-1", "9" * 5000, "²"])
def test_numbers_in_a_domains_xml_that_are_none_count_as_not_told(said: str) -> None:
    xml = f"<domain type='kvm'><vcpu>{said}</vcpu><memory unit='KiB'>{said}</memory></domain>"
    machine = read_machine(xml, "running")
    assert (machine.vcpus, machine.memory_bytes) == (0, 0)


def test_sizes_are_left_out_for_a_side_that_does_not_know_them() -> None:
    sized = msgspec.structs.replace(QEMU, disks=(Disk(name="vda", size_bytes=20),))
    assert b"size_bytes" in msgspec.json.encode(sized)
    assert b"size_bytes" not in msgspec.json.encode(without_sizes(sized))


def test_a_source_that_says_nothing_is_unknown_and_stops_nothing() -> None:
    (found,) = source_findings(Inspection(trouble="virsh cannot be run"), "a")
    assert (found.severity, found.message) == ("unknown", "a: virsh cannot be run")


def test_a_libvirt_destination_passes_fails_or_does_not_know() -> None:
    checks = (
        Check(code="cpu", passed=False, detail="incompatible"),
        Check(code="memory", passed=True, detail="plenty"),
        Check(code="network", passed=None, detail="no answer"),
    )
    found = list(destination_findings(DOMAIN, Inspection(checks=checks), "b"))
    assert codes(found) == {("cpu", "cannot"), ("network", "unknown")}
    missing = Inspection(checks=(Check(code="storage", passed=False, detail="vda is missing"),))
    assert codes(list(destination_findings(DOMAIN, missing, "b"))) == {("storage", "cannot")}
    assert codes(list(destination_findings(DOMAIN, missing, "b", copies_disks=True))) == {("storage", "attention")}
    paused = Inspection(machine=msgspec.structs.replace(DOMAIN, state="paused"))
    assert list(source_findings(paused, "a")) == []  # libvirt moves it as it is
    (nothing,) = destination_findings(DOMAIN, Inspection(trouble="no libvirt"), "b")
    assert (nothing.code, nothing.severity) == ("destination_unknown", "unknown")


XML = f"""
<domain type='kvm'><name>web</name><uuid>{UUID_WEB}</uuid><memory unit='MiB'>512</memory><vcpu>2</vcpu>
<memoryBacking><hugepages><page size='1' unit='GiB'/></hugepages></memoryBacking>
<os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>
<cpu mode='custom'><model>Skylake-Server</model></cpu>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='writeback'/><source file='/srv/web.qcow2'>
<encryption format='luks'><secret type='passphrase' uuid='0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f'/></encryption></source>
<target dev='vda'/></disk>
<interface type='network'><source network='prod'/></interface>
<interface type='bridge'><source bridge='br0'/></interface>
<hostdev mode='subsystem' type='pci'><source><address bus='0x01' slot='0x00' function='0x0'/></source></hostdev>
<hostdev type='usb'><source><vendor id='0x1050'/><product id='0x0407'/></source></hostdev>
<interface type='hostdev'><source><address type='pci' domain='0x0000' bus='0x3b' slot='0x10' function='0x1'/></source>
</interface>
<disk type='nvme' device='disk'><source type='pci'><address domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
</source><target dev='vdc'/></disk>
<shmem name='x'><model type='ivshmem-plain'/></shmem>
</devices></domain>
"""


def test_a_domains_needs_are_read_from_its_xml() -> None:
    machine = read_machine(XML, "running")
    assert (machine.machine_type, machine.arch, machine.virt_type) == ("pc-q35-10.0", "x86_64", "kvm")
    assert (machine.memory_bytes, machine.hugepage_kib, machine.vcpus) == (512 << 20, 1 << 20, 2)
    assert (machine.networks, machine.bridges) == (("prod",), ("br0",))
    assert machine.secrets == ("0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f",)
    assert machine.disks[0] == Disk(name="vda", path="/srv/web.qcow2", format="qcow2", cache="writeback")
    assert machine.blocked == (
        "device hostdev:pci 0000:01:00.0 does not migrate: detach it first",
        "device hostdev:usb 0x1050:0x0407 does not migrate: detach it first",
        "device interface:hostdev 0000:3b:10.1 does not migrate: detach it first",
        "device disk:nvme 0000:04:00.0 does not migrate: detach it first",
        "device shmem:ivshmem-plain does not migrate: detach it first",
    )


@pytest.mark.parametrize("kind", ["network", "bridge"])  # by the network's <forward mode>
def test_of_a_guest_on_a_network_of_libvirts_the_bridge_is_the_networks_own_affair(kind: str) -> None:
    """As libvirt shows a guest that runs; what arrives at the destination names the network alone."""
    plugged = f"<interface type='{kind}'><source network='default' portid='5425b9dc' bridge='virbr0'/></interface>"
    machine = read_machine(XML.replace("<interface type='bridge'>", f"{plugged}<interface type='bridge'>"), "running")
    assert (machine.networks, machine.bridges) == (("default", "prod"), ("br0",))


@pytest.mark.real
async def test_a_real_libvirtd_answers_what_is_missing() -> None:
    async with libvirtd() as daemon:
        network = "<interface type='user'/>"
        await daemon.start("web", UUID_WEB, network)
        virsh = Virsh(daemon.uri)
        machine = await machine_of(UUID_WEB, virsh)
        assert machine.machine_type.startswith("pc-i440fx")
        same_host = {check.code: check for check in await destination_checks(UUID_WEB, machine, virsh)}
        assert same_host["uuid_free"].passed is False
        assert same_host["machine_type"].passed is True
        assert same_host["memory"].passed is True
        needs = msgspec.structs.replace(
            machine, machine_type="pc-q35-99.9", networks=("prod",), bridges=("br-nowhere",),
            secrets=("0a81f5b2-8403-7b23-c8d6-21ccc2f80d6f",), hugepage_kib=12345,
            disks=(
                Disk(name="vda", path="/nowhere/web.qcow2"), Disk(name="vdb", path="/etc/hostname"),
                Disk(name="vdc", path="/dev/vg-nowhere/web"),
            ),
        )  # fmt: skip
        checks = await destination_checks(UUID_WEB, needs, virsh)
        failed = {(check.code, check.detail.split(":")[0]) for check in checks if check.passed is False}
        assert {code for code, _ in failed} == {
            "uuid_free", "machine_type", "network", "bridge", "secret", "storage", "hugepages",
        }  # fmt: skip
        assert ("storage", "vda") in failed
        assert ("storage", "vdb") not in failed
        # Devices of the host are not in the /dev of the relay's unit.
        assert [check.detail for check in checks if check.code == "storage" and check.passed is None] == [
            "vdc: whether /dev/vg-nowhere/web is here the relay cannot see: look yourself"
        ]
        rules = DomainRules(("/var/lib/libvirt/images/",), ("/usr/bin/kvm",), ("default",))
        checks = await destination_checks(UUID_WEB, needs, virsh, rules)
        assert {check.detail for check in checks if check.code == "arrival"} == {
            "disk '/nowhere/web.qcow2' is not in hypervisor.domain_paths of the relay here",
            "disk '/etc/hostname' is not in hypervisor.domain_paths of the relay here",
            "disk '/dev/vg-nowhere/web' is not in hypervisor.domain_paths of the relay here",
            "network 'prod' is not in hypervisor.networks of the relay here",
            "network 'br-nowhere' is not in hypervisor.networks of the relay here",
            "emulator '/usr/bin/qemu-system-x86_64' is not in hypervisor.emulators of the relay here",
        }


@pytest.mark.real
async def test_a_cpu_that_this_host_cannot_give_is_refused_by_libvirt() -> None:
    async with libvirtd() as daemon:
        await daemon.start("web", UUID_WEB)
        virsh = Virsh(daemon.uri)
        machine = await machine_of(UUID_WEB, virsh)
        impossible = "<cpu mode='custom' match='exact'><model fallback='forbid'>EPYC-Rome</model></cpu>"
        for cpu_xml, passed in ((machine.cpu_xml, True), (impossible, False)):
            wanted = msgspec.structs.replace(machine, cpu_xml=cpu_xml)
            checks = {check.code: check for check in await destination_checks(UUID_WEB, wanted, virsh)}
            assert checks["cpu"].passed is passed, checks["cpu"]


@asynccontextmanager
async def libvirtd() -> AsyncIterator[Libvirtd]:
    with tempfile.TemporaryDirectory(prefix="sl", ignore_cleanup_errors=True) as folder:
        async with running_libvirtd(Path(folder) / "a") as daemon:
            yield daemon


# --- through the gateway, with real relays and QEMUs ------------------------------------------------------------


@dataclass
class Site:
    running: Running
    folder: Path

    async def check(self) -> dict[str, Any]:
        question = {"vm": "web", "destination": "b", "preflight": True}
        answer = await self.running.person("alice").post("/v1/decisions", json=question, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    async def qemu(self, stack: AsyncExitStack, name: str, *, incoming: bool = False, mib: int = 16) -> Qemu:
        folder = self.folder / name / UUID_WEB
        machine = await start_qemu(folder, UUID_WEB, memory_mib=mib, incoming=incoming)
        stack.push_async_callback(stop_qemu, machine)
        return machine


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sl", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
async def relays(running: Running, short_folder: Path) -> AsyncIterator[Site]:
    """Relays of a and b, connected to the gateway."""
    async with trio.open_nursery() as nursery:
        for name in "ab":
            config = load_relay_config(running.site.relay_config(name))
            config = msgspec.structs.replace(
                config,
                relay=msgspec.structs.replace(
                    config.relay, listen="127.0.0.1:0", state_dir=str(short_folder / f"state-{name}")
                ),
                gateway=msgspec.structs.replace(config.gateway, url=running.url),
                hypervisor=msgspec.structs.replace(
                    config.hypervisor, kind="qmp", qmp_socket=str(short_folder / name / "{uuid}" / "qmp.sock")
                ),
            )
            nursery.start_soon(serve_relay, open_host(config), lambda _: None)
        with trio.fail_after(20):
            while not all(is_polling(running, name) for name in "ab"):
                await trio.sleep(0.05)
        yield Site(running, short_folder)
        nursery.cancel_scope.cancel()


def is_polling(running: Running, name: str) -> bool:
    dispatch = running.gateway.placement._gate.dispatch
    return dispatch.is_reachable(f"spiffe://{running.site.trust_domain}/host/{name}", 60)


@pytest.mark.real
@pytest.mark.whole
async def test_may_and_can_are_two_answers(relays: Site) -> None:
    async with AsyncExitStack() as stack:
        await relays.qemu(stack, "a")
        answer = await relays.check()
        assert answer["decision"]["allowed"] is True
        assert answer["preflight"]["can_move"] is False
        assert [finding["code"] for finding in answer["preflight"]["findings"]] == ["no_waiting_qemu"]
        waiting = await relays.qemu(stack, "b", incoming=True, mib=32)
        answer = await relays.check()
        assert [finding["code"] for finding in answer["preflight"]["findings"]] == ["memory"]
        await stop_qemu(waiting)
        await relays.qemu(stack, "b", incoming=True)
        answer = await relays.check()
        assert answer["preflight"] == {"can_move": True, "findings": []}
        records = await relays.running.records("decision.check")
        assert [len(record["details"]["preflight"]) for record in records] == [1, 1, 0]


@pytest.mark.whole
async def test_who_may_not_move_it_is_not_told_whether_it_can_be_moved(running: Running) -> None:
    question = {"vm": "ledger", "destination": "b", "preflight": True}
    answer = await running.person("alice").post("/v1/decisions", json=question)
    assert answer.json()["decision"]["allowed"] is False
    assert answer.json()["preflight"] is None


@pytest.mark.whole
async def test_an_answer_that_nobody_asked_for_is_refused(running: Running) -> None:
    body = {"inspection_id": "x" * 32, "found": {}}
    assert (await running.client("a").post("/v1/relay/inspection", json=body)).status_code == 403
    body = {"inspection_id": "x" * 32, "found": {"surprise": 1}}
    assert (await running.client("a").post("/v1/relay/inspection", json=body)).status_code == 400


@pytest.mark.whole
async def test_a_silent_relay_is_what_is_in_the_way(running: Running) -> None:
    answer = await running.person("alice").post(
        "/v1/decisions", json={"vm": "web", "destination": "b", "preflight": True}
    )
    (found,) = answer.json()["preflight"]["findings"]
    assert (found["code"], found["severity"]) == ("relay_silent", "cannot")


@pytest.mark.whole
async def test_what_a_request_would_be_refused_for_at_once_cannot_be_done(running: Running) -> None:
    async def code_of(vm: str, to: str) -> str:
        question = {"vm": vm, "destination": to, "preflight": True}
        answer = (await running.person("alice").post("/v1/decisions", json=question)).json()
        assert answer["decision"]["allowed"]
        (found,) = answer["preflight"]["findings"]
        assert (answer["preflight"]["can_move"], found["severity"]) == (False, "cannot")
        return str(found["code"])

    for host in "ab":
        await running.poll(host)
    assert await code_of("web", "a") == "already_there"
    assert (
        await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    ).status_code == 201
    assert await code_of("web", "b") == "migration_in_progress"


@pytest.mark.whole
async def test_a_site_can_ask_the_hosts_before_it_gives_a_permit(site: StarterSite) -> None:
    text = site.gateway_config.read_text()
    assert "[permits]\n" in text
    site.gateway_config.write_text(text.replace("[permits]\n", "[permits]\npreflight = true\n"))
    async with running_gateway(site) as running:
        await running.poll("a")
        answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert answer.status_code == 409
        error = answer.json()["error"]
        assert (error["code"], error["who_must_act"]) == ("cannot_move", "operator of the destination host")
        (record,) = await running.records("migration.decision")
        assert (record["outcome"], record["details"]["not_admitted"]) == ("failed", "cannot_move")
        assert record["details"]["permit"] is None
        wish = {"vm": UUID_WEB, "destination": "b", "ports": ["libvirt", "memory"], "token": running.token("alice")}
        answer = await running.client("a").post("/v1/relay/admission", json=wish)
        assert answer.json()["kind"] == "denied"
        assert "the relay on b has not been heard of lately: start it" in answer.json()["message"]
        # A host that has the VM not at all learns nothing of it.
        answer = await running.client("c").post("/v1/relay/admission", json=wish)
        assert "not on the host that asks" in answer.json()["message"]


async def test_many_questions_at_once_leave_room_for_moves_from_the_same_host(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Whoever may move one VM may ask whether it can as often as they like, and its relay answers eight at a time."""
    dispatch = Dispatch()
    numbers = itertools.count()
    inspections = Inspections(dispatch, lambda: str(next(numbers)))
    answers: list[Inspection] = []

    async def ask() -> None:
        answers.append(await inspections.ask("a", {"vm": UUID_WEB, "wanted": None}))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert {each.trouble for each in answers} == {"too many questions wait for its relay at this moment; repeat it"}
        dispatch.assign("a", Assignment("m", "migrate", {}, trio.current_time() + 60))
        assert (await inspections.ask("b", {})).trouble == "its relay did not answer within 12 s", "of that host alone"
    assert len(answers) == 100
