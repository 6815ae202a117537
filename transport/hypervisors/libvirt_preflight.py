"""What libvirt tells of a domain before it is moved, and what a destination's libvirt and host say to it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from transport.hypervisors.errors import HypervisorError, HypervisorRefused
from transport.hypervisors.libvirt_guests import devices_of, parse_domain
from transport.hypervisors.preflight_facts import Check, Disk, Machine
from transport.hypervisors.virsh import Virsh
from transport.libvirt_rpc.domain_xml import DomainRules

# Of these folders the relay's unit gives it others, or none (deploy/systemd).
_HIDDEN: Final = ("/dev/", "/home/", "/root/")
_MOST_DIGITS: Final = 18
_UNITS: Final = {"b": 1, "bytes": 1, "KiB": 1 << 10, "k": 1 << 10, "MiB": 1 << 20, "M": 1 << 20, "GiB": 1 << 30}
# These stop a migration whatever the destination has; others of `devices_of` depend on the versions.
_NEVER: Final = {
    "hostdev": ("pci", "usb", "scsi"), "interface": ("hostdev",), "redirdev": None, "shmem": None, "disk": ("nvme",),
}  # fmt: skip


async def machine_of(uuid: str, virsh: Virsh) -> Machine:
    """The domain's facts. Raises HypervisorError."""
    domains = {each.uuid: each for each in await virsh.domains()}
    if uuid not in domains:
        raise HypervisorRefused("list", "", f"no active domain has the UUID {uuid}")
    return read_machine(await virsh.domain_xml(uuid), "running" if domains[uuid].state == 1 else "paused")


def read_machine(xml: str, state: str) -> Machine:
    """From the domain's XML. Raises HypervisorRefused for one that cannot be read."""
    try:
        domain = parse_domain(xml)
    except ValueError as error:
        raise HypervisorRefused("dumpxml", "", str(error)) from None
    kind = domain.find("./os/type")
    cpu = domain.find("./cpu")
    page = domain.find("./memoryBacking/hugepages/page")
    hugepages = domain.find("./memoryBacking/hugepages")
    devices = devices_of(xml)
    plugged = domain.findall("./devices/interface/source")  # beside its network libvirt notes that one's bridge
    return Machine(
        kind="libvirt",
        state=state,
        machine_type=kind.get("machine", "") if kind is not None else "",
        arch=kind.get("arch", "") if kind is not None else "",
        virt_type=domain.get("type", ""),
        emulator=_text(domain, "./devices/emulator"),
        cpu=_text(domain, "./cpu/model") or (cpu.get("mode", "") if cpu is not None else ""),
        cpu_xml=ElementTree.tostring(cpu, "unicode")[: 16 * 1024] if cpu is not None else "",
        vcpus=_number(_text(domain, "./vcpu")),
        memory_bytes=_bytes(domain.find("./memory")),
        hugepage_kib=(_bytes(page) >> 10 if page is not None else 2048) if hugepages is not None else 0,
        devices=devices,
        blocked=tuple(_blockers(domain))[:32],
        disks=tuple(_disk(disk) for disk in domain.findall("./devices/disk")[:64]),
        networks=_words(each.get("network", "") for each in plugged),
        bridges=_words(each.get("bridge", "") for each in plugged if not each.get("network")),
        secrets=tuple(sorted({each.get("uuid", "") for each in domain.iter("secret") if each.get("uuid")}))[:64],
    )


def _blockers(domain: ElementTree.Element) -> Iterator[str]:
    """Devices that do not migrate, each by the name under which its owner knows it."""
    for device in domain.iterfind("./devices/*"):
        kinds = _NEVER.get(device.tag, ())
        kind = device.get("type") or next((each.get("type", "") for each in device.findall("model")), "")
        if kinds is None or kind in kinds:
            yield f"device {device.tag}:{kind}{_host_name(device)} does not migrate: detach it first"[:1024]


def _host_name(device: ElementTree.Element) -> str:
    """The host's own name of a device: a PCI address, a USB vendor and product, or another address; " " before it."""
    address = device.find("./source/address")
    vendor, product = device.find("./source/vendor"), device.find("./source/product")
    if vendor is not None and product is not None:
        return f" {vendor.get('id', '')}:{product.get('id', '')}"
    if address is None:
        return ""
    parts = [address.get(each, "0x0").removeprefix("0x") for each in ("domain", "bus", "slot", "function")]
    if address.get("slot") is None:
        return " " + " ".join(f"{key} {value}" for key, value in sorted(address.attrib.items()))
    return f" {parts[0]:0>4}:{parts[1]:0>2}:{parts[2]:0>2}.{parts[3]}"


async def destination_checks(
    uuid: str, machine: Machine, virsh: Virsh, rules: DomainRules | None = None
) -> tuple[Check, ...]:
    """What stands in the way here. What cannot be found out is said as such. Never raises HypervisorError.

    `rules`: what this host's relay will let an arriving domain name, if it looks at that.
    """
    checks: list[Check] = []
    for look in (
        _not_here, _machine_type, _cpu, _memory, _networks, _secrets,
    ):  # fmt: skip
        try:
            checks += await look(uuid, machine, virsh)
        except HypervisorError as error:
            checks.append(Check(code=look.__name__.strip("_"), passed=None, detail=str(error)[:1024]))
    checks += [_bridge(name) for name in machine.bridges]
    checks += [_disk_path(disk) for disk in machine.disks if disk.path]
    if machine.hugepage_kib:
        checks.append(_hugepages(machine))
    if rules is not None:
        checks += _arrival(machine, rules)
    return tuple(checks[:256])


async def _not_here(uuid: str, _machine: Machine, virsh: Virsh) -> list[Check]:
    here = any(each.uuid == uuid for each in await virsh.domains())
    detail = "a domain with this UUID runs here already" if here else "no domain with this UUID runs here"
    return [Check(code="uuid_free", passed=not here, detail=detail)]


async def _machine_type(_uuid: str, machine: Machine, virsh: Virsh) -> list[Check]:
    arguments = ["--machine", machine.machine_type, "--arch", machine.arch, "--virttype", machine.virt_type]
    try:
        await virsh.ask("domcapabilities", *arguments, read_only=False)
    except HypervisorRefused as refused:
        if _is_forbidden(refused):
            raise
        return [Check(code="machine_type", passed=False, detail=refused.description[:1024])]
    known = f"{machine.virt_type} guests of machine type {machine.machine_type} can run here"
    return [Check(code="machine_type", passed=True, detail=known)]


async def _cpu(_uuid: str, machine: Machine, virsh: Virsh) -> list[Check]:
    if not machine.cpu_xml:
        return [Check(code="cpu", passed=None, detail="the domain names no CPU to compare")]
    descriptor, name = tempfile.mkstemp(prefix="sealane-cpu-", suffix=".xml")
    try:
        os.write(descriptor, machine.cpu_xml.encode())
        os.close(descriptor)
        arguments = ["--machine", machine.machine_type, "--arch", machine.arch, "--virttype", machine.virt_type]
        try:
            said = await virsh.ask("hypervisor-cpu-compare", name, "--error", *arguments, read_only=False)
        except HypervisorRefused as refused:
            is_answer = "incompatible" in refused.description.lower()
            return [Check(code="cpu", passed=False if is_answer else None, detail=refused.description[:1024])]
    finally:
        Path(name).unlink(missing_ok=True)
    return [Check(code="cpu", passed=True, detail=" ".join(said.split())[:1024].replace(name, "the guest's CPU"))]


def _is_forbidden(refused: HypervisorRefused) -> bool:
    """Not an answer: libvirt would not tell us."""
    return "forbidden" in refused.description or "authentication" in refused.description


async def _memory(_uuid: str, machine: Machine, _virsh: Virsh) -> list[Check]:
    if machine.hugepage_kib:
        return []
    available = _meminfo("MemAvailable") << 10
    detail = f"{available >> 20} MiB are available, the guest has {machine.memory_bytes >> 20}"
    return [Check(code="memory", passed=available > machine.memory_bytes, detail=detail)]


async def _networks(_uuid: str, machine: Machine, virsh: Virsh) -> list[Check]:
    if not machine.networks:
        return []
    active = set((await virsh.ask("net-list", "--name")).split("\n"))
    return [
        Check(
            code="network",
            passed=name in active,
            detail=f"network {name!a} is {'active' if name in active else 'not active or not defined'} here",
        )
        for name in machine.networks
    ]


async def _secrets(_uuid: str, machine: Machine, virsh: Virsh) -> list[Check]:
    if not machine.secrets:
        return []
    listed = await virsh.ask("secret-list")
    return [
        Check(
            code="secret",
            passed=secret in listed,
            detail=f"secret {secret} is {'defined' if secret in listed else 'not defined'} here",
        )
        for secret in machine.secrets
    ]


def _bridge(name: str) -> Check:
    there = "/" not in name and (Path("/sys/class/net") / name).exists()
    return Check(code="bridge", passed=there, detail=f"bridge {name!a} is {'there' if there else 'missing'} here")


def _arrival(machine: Machine, rules: DomainRules) -> Iterator[Check]:
    """What the relay here would refuse in Prepare, said before (docs/libvirt.md)."""
    refused = [f"disk {disk.path!a}: domain_paths" for disk in machine.disks if not _may_stand(disk.path, rules)]
    plugged = (*machine.networks, *machine.bridges)
    refused += [f"network {name!a}: networks" for name in plugged if name not in rules.networks]
    if machine.emulator not in rules.emulators:
        refused.append(f"emulator {machine.emulator!a}: emulators")
    for each in refused:
        what, _, key = each.rpartition(": ")
        yield Check(code="arrival", passed=False, detail=f"{what} is not in hypervisor.{key} of the relay here"[:1024])


def _may_stand(path: str, rules: DomainRules) -> bool:
    return not path or rules.allow_path(path)


def _disk_path(disk: Disk) -> Check:
    try:
        found = Path(disk.path).exists()
    except OSError:
        return Check(code="storage", passed=None, detail=f"{disk.name}: {disk.path} cannot be looked at here")
    if not found and disk.path.startswith(_HIDDEN):
        detail = f"{disk.name}: whether {disk.path} is here the relay cannot see: look yourself"
        return Check(code="storage", passed=None, detail=detail)
    detail = f"{disk.name}: {disk.path} is {'there' if found else 'missing'} here"
    return Check(code="storage", passed=found, detail=detail)


def _hugepages(machine: Machine) -> Check:
    folder = Path(f"/sys/kernel/mm/hugepages/hugepages-{machine.hugepage_kib}kB")
    try:
        free = int((folder / "free_hugepages").read_text())
    except (OSError, ValueError):
        detail = f"this host has no hugepages of {machine.hugepage_kib} KiB"
        return Check(code="hugepages", passed=False, detail=detail)
    wanted = -(-machine.memory_bytes // (machine.hugepage_kib << 10))
    detail = f"{free} hugepages of {machine.hugepage_kib} KiB are free, the guest needs {wanted}"
    return Check(code="hugepages", passed=free >= wanted, detail=detail)


def _meminfo(name: str) -> int:
    """KiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0


def _disk(disk: ElementTree.Element) -> Disk:
    source, driver, target = disk.find("source"), disk.find("driver"), disk.find("target")
    path = "" if source is None else source.get("file") or source.get("dev") or source.get("dir") or ""
    return Disk(
        name=("disk" if target is None else target.get("dev", "disk"))[:255],
        path=path[:4096],
        format=("" if driver is None else driver.get("type", ""))[:255],
        read_only=disk.find("readonly") is not None,
        shareable=disk.find("shareable") is not None,
        cache=("" if driver is None else driver.get("cache", ""))[:255],
    )


def _words(found: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name[:255] for name in found if name}))[:64]


def _text(domain: ElementTree.Element, path: str) -> str:
    return (domain.findtext(path) or "").strip()[:4096]


def _bytes(element: ElementTree.Element | None) -> int:
    if element is None:
        return 0
    text = element.get("size") or element.text or "0"
    return _number(text) * _UNITS.get(element.get("unit", "KiB"), 1 << 10)


def _number(text: str) -> int:
    """0 for what is none, or none that libvirt could mean: Python refuses to read more than some thousand digits."""
    return int(text) if len(text) <= _MOST_DIGITS and text.isascii() and text.isdigit() else 0
