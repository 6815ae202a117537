"""Can it move? Pure: from what both hosts say of a VM to findings in words, each with who must act.

"cannot": the migration would fail, or the guest would be harmed. "attention": it may work, and somebody should know.
"unknown": it could not be found out. None of them is a policy's answer: that is "may not", and comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from transport.hypervisors.preflight_facts import Check, Inspection, Machine

Severity = Literal["cannot", "attention", "unknown"]
# libvirt moves a paused guest, too; with QMP the relay runs it at its one place in the end.
_MOVABLE: Final = {"qmp": frozenset({"running"}), "libvirt": frozenset({"running", "paused"})}
_SAFE_CACHES: Final = frozenset({"none", "directsync", ""})
_WHO: Final = {
    "uuid_free": "operator of the destination host",
    "machine_type": "operator of the destination host",
    "cpu": "owner of the VM",
    "memory": "operator of the destination host",
    "network": "operator of the destination host",
    "bridge": "operator of the destination host",
    "secret": "operator of the destination host",
    "storage": "operator of the storage",
    "hugepages": "operator of the destination host",
}


@dataclass(frozen=True, slots=True)
class Finding:
    code: str
    severity: Severity
    who_must_act: str
    message: str


def source_findings(source: Inspection, host: str, *, copies_disks: bool = False) -> Iterator[Finding]:
    """What the VM itself has against it, wherever it goes. Disks that are copied are on no shared storage."""
    machine = source.machine
    if machine is None:
        said = source.trouble or "says nothing"
        yield Finding("source_unknown", "unknown", "operator of the source host", f"{host}: {said}")
        return
    if machine.state not in _MOVABLE[machine.kind]:
        message = f"the VM is {machine.state} on {host}; only a running guest can be moved"
        yield Finding("not_running", "cannot", "owner of the VM", message)
    for reason in machine.blocked:
        yield Finding("device", "cannot", "owner of the VM", reason)
    for disk in machine.disks if not copies_disks else ():
        if not disk.read_only and not disk.shareable and disk.cache not in _SAFE_CACHES and disk.path:
            message = (
                f"disk {disk.name} ({disk.path}) has cache mode {disk.cache}: on shared storage the destination could "
                "read stale data; use cache=none, or storage that keeps caches coherent"
            )
            yield Finding("disk_cache", "attention", "owner of the VM", message)


def destination_findings(
    machine: Machine, destination: Inspection, host: str, *, copies_disks: bool = False
) -> Iterator[Finding]:
    """What the destination has against this VM. `copies_disks`: what it lacks of them may be made on the way."""
    if machine.kind == "libvirt":
        if not destination.checks:
            yield _nothing_said(destination, host)
        yield from (f for check in destination.checks if (f := _of_check(check, host, copies_disks)) is not None)
        return
    if destination.machine is None:
        message = f"no QEMU on {host} says that it waits for the VM ({destination.trouble or 'nothing was said'})"
        yield Finding("no_waiting_qemu", "cannot", "operator of the destination host", message)
        return
    yield from _compare(machine, destination.machine, host)
    disks = _copied_disks if copies_disks else _shared_disks
    yield from disks(machine, destination.machine, host)


def _nothing_said(destination: Inspection, host: str) -> Finding:
    said = destination.trouble or "says nothing"
    return Finding("destination_unknown", "unknown", "operator of the destination host", f"{host}: {said}")


def _of_check(check: Check, host: str, copies_disks: bool) -> Finding | None:
    if check.passed:
        return None
    severity: Severity = "unknown" if check.passed is None else "cannot"
    if check.code == "storage" and copies_disks:
        severity = "attention"  # libvirt makes an image in a pool of its own; elsewhere an operator does
    who = _WHO.get(check.code, "operator of the destination host")
    return Finding(check.code, severity, who, f"{host}: {check.detail}")


def _compare(here: Machine, there: Machine, host: str) -> Iterator[Finding]:
    """Two QEMUs of one VM: the one that has it, and the one that waits for it."""
    operator = "operator of the destination host"
    if there.state != "inmigrate":
        message = (
            f"the QEMU on {host} is {there.state} and does not wait for a migration: start it with -incoming defer"
        )
        yield Finding("no_waiting_qemu", "cannot", operator, message)
    if here.machine_type != there.machine_type:
        message = f"machine type {here.machine_type} here, {there.machine_type} on {host}: start it with the same"
        yield Finding("machine_type", "cannot", operator, message)
    if here.virt_type != there.virt_type:
        message = f"{here.virt_type} here, {there.virt_type} on {host}: the guest's CPU state does not carry over"
        yield Finding("virt_type", "cannot", operator, message)
    yield from _cpu(here, there, host)
    for what, mine, other in (
        ("memory", here.memory_bytes, there.memory_bytes),
        ("vcpus", here.vcpus, there.vcpus),
    ):
        if mine != other:
            yield Finding(what, "cannot", operator, f"{what}: {mine} here, {other} on {host}: start it with the same")
    yield from _devices(here, there, host)
    if _version(here.version) > _version(there.version):
        message = f"QEMU {here.version} here, the older {there.version} on {host}: it works only for old machine types"
        yield Finding("version", "attention", operator, message)


def _cpu(here: Machine, there: Machine, host: str) -> Iterator[Finding]:
    missing = {name: bits & ~there.cpu_words.get(name, 0) for name, bits in here.cpu_words.items()}
    lacking = {name: bits for name, bits in missing.items() if bits}
    if there.cpu_words and lacking:
        words = ", ".join(f"{name}={bits:#x}" for name, bits in sorted(lacking.items())[:8])
        message = (
            f"CPU features that the guest sees are missing on {host} ({here.cpu} here, {there.cpu} there; "
            f"CPUID {words}): give the VM a baseline model that both hosts have"
        )
        yield Finding("cpu", "cannot", "owner of the VM", message)
    elif here.cpu != there.cpu:
        message = f"CPU {here.cpu} here, {there.cpu} on {host}: start it with the same model"
        yield Finding("cpu", "cannot", "operator of the destination host", message)


def _devices(here: Machine, there: Machine, host: str) -> Iterator[Finding]:
    mine, theirs = Counter(here.devices), Counter(there.devices)
    for kinds, where in ((mine - theirs, f"is missing on {host}"), (theirs - mine, f"is only on {host}")):
        for kind in sorted(kinds):
            message = f"device {kind} {where}: both QEMUs need the same devices"
            yield Finding("device", "cannot", "operator of the destination host", message)


def _shared_disks(here: Machine, there: Machine, host: str) -> Iterator[Finding]:
    theirs = {disk.name: disk for disk in there.disks}
    for disk in here.disks:
        other = theirs.get(disk.name)
        if other is None:
            message = f"disk {disk.name} is missing on {host}"
            yield Finding("storage", "cannot", "operator of the destination host", message)
        elif other.path != disk.path and not disk.read_only:
            message = f"disk {disk.name} is {disk.path} here, {other.path} on {host}: are both the same storage?"
            yield Finding("storage", "attention", "operator of the storage", message)


def _copied_disks(here: Machine, there: Machine, host: str) -> Iterator[Finding]:
    """Each is written into the image that waits for it, which QEMU does not enlarge."""
    operator = "operator of the destination host"
    theirs = {disk.name: disk for disk in there.disks}
    for disk in here.disks:
        other = theirs.get(disk.name)
        if disk.read_only:
            continue
        if other is None or other.read_only:
            message = f"disk {disk.name} is {'missing' if other is None else 'read-only'} on {host}"
            yield Finding("storage", "cannot", operator, message)
        elif disk.size_bytes and other.size_bytes and other.size_bytes < disk.size_bytes:
            message = (
                f"disk {disk.name} has {disk.size_bytes} bytes here, and its image {other.path} on {host} only "
                f"{other.size_bytes}: make it as large"
            )
            yield Finding("disk_size", "cannot", operator, message)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
