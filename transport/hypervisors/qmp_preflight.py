"""What QMP tells of a VM before it is moved; asked alike at the source and of the QEMU that waits for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from transport.hypervisors.errors import HypervisorGarbled, HypervisorRefused, WrongVm
from transport.hypervisors.preflight_facts import Disk, Machine
from transport.hypervisors.qmp import QmpConnection

SECONDS: Final = 3.0
_CHILD: Final = re.compile(r"child<(.+)>")
T = TypeVar("T")


class _Info(msgspec.Struct, frozen=True, rename="kebab"):
    """Members that this asks about, of several answers; the rest is left out."""

    status: str = ""
    blocked_reasons: list[str] = []
    base_memory: int = 0
    enabled: bool = False


class _Uuid(msgspec.Struct, frozen=True, rename={"uuid": "UUID"}):
    uuid: str


class _Cpu(msgspec.Struct, frozen=True, rename="kebab"):
    qom_path: str


class _Property(msgspec.Struct, frozen=True):
    name: str
    type: str


class _Cache(msgspec.Struct, frozen=True, rename="kebab"):
    writeback: bool = True
    direct: bool = False
    no_flush: bool = False


class _Image(msgspec.Struct, frozen=True, rename="kebab"):
    virtual_size: Annotated[int, Meta(ge=0)] = 0


class _Inserted(msgspec.Struct, frozen=True):
    file: str = ""
    drv: str = ""
    ro: bool = False
    cache: _Cache = _Cache()
    image: _Image = _Image()


class _Block(msgspec.Struct, frozen=True):
    device: str = ""
    qdev: str = ""
    inserted: _Inserted | None = None


class _FeatureWord(msgspec.Struct, frozen=True, rename="kebab"):
    cpuid_register: str
    cpuid_input_eax: int
    features: int
    cpuid_input_ecx: int = 0


async def machine_of(uuid: str, qmp_socket: Path) -> Machine:
    """Everything that two QEMUs must agree on. Raises HypervisorError; WrongVm for another VM behind the monitor."""
    async with await QmpConnection.connect(qmp_socket, deadline_seconds=SECONDS) as qmp:
        return await machine_behind(qmp, uuid)


async def machine_behind(qmp: QmpConnection, uuid: str) -> Machine:
    found = (await _ask(qmp, "query-uuid", _Uuid)).uuid.lower()
    if found != uuid:
        raise WrongVm(uuid, found)
    state = (await _ask(qmp, "query-status", _Info)).status
    cpus = await _ask(qmp, "query-cpus-fast", list[_Cpu])
    cpu_path = cpus[0].qom_path if cpus else ""
    return Machine(
        kind="qmp",
        state=state[:255],
        version=qmp.version,
        machine_type=(await _qom(qmp, "/machine", "type", "")).removesuffix("-machine"),
        virt_type="kvm" if (await _ask(qmp, "query-kvm", _Info)).enabled else "tcg",
        cpu=await _qom(qmp, cpu_path, "type", ""),
        cpu_words=await _words(qmp, cpu_path),
        vcpus=len(cpus),
        memory_bytes=(await _ask(qmp, "query-memory-size-summary", _Info)).base_memory,
        devices=await _devices(qmp),
        blocked=tuple(r[:1024] for r in (await _ask(qmp, "query-migrate", _Info)).blocked_reasons[:32]),
        disks=tuple(_disk(each) for each in (await _ask(qmp, "query-block", list[_Block]))[:64] if each.inserted),
    )


async def _ask(qmp: QmpConnection, command: str, shape: type[T], arguments: dict[str, Any] | None = None) -> T:
    return await qmp.query(command, shape, arguments, deadline_seconds=SECONDS)


async def _qom(qmp: QmpConnection, path: str, name: str, default: str) -> str:
    """A property of QEMU's object model; `default` where this QEMU has none."""
    try:
        value = await qmp.execute("qom-get", {"path": path, "property": name}, deadline_seconds=SECONDS)
    except HypervisorRefused:
        return default
    return str(value)[:255]


async def _words(qmp: QmpConnection, cpu_path: str) -> dict[str, int]:
    """The CPUID registers that the guest sees: which features exactly, whatever the model is called. x86 only."""
    try:
        words = await qmp.execute("qom-get", {"path": cpu_path, "property": "feature-words"}, deadline_seconds=SECONDS)
        read = msgspec.convert(words, list[_FeatureWord])
    except HypervisorRefused:
        return {}
    except msgspec.ValidationError as error:
        raise HypervisorGarbled(f"unexpected feature words: {error}") from None
    return {f"{w.cpuid_input_eax:#x}.{w.cpuid_input_ecx}.{w.cpuid_register}": w.features for w in read[:64]}


async def _devices(qmp: QmpConnection) -> tuple[str, ...]:
    """Types of all that was plugged in, with repetitions: both sides must have the same."""
    found: list[str] = []
    for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
        listed = await _ask(qmp, "qom-list", list[_Property], {"path": folder})
        found += [match[1] for each in listed if (match := _CHILD.fullmatch(each.type)) is not None]
    return tuple(sorted(found))[:256]


def _disk(block: _Block) -> Disk:
    inserted = block.inserted
    assert inserted is not None
    cache = inserted.cache
    mode = "unsafe" if cache.no_flush else "none" if cache.direct else "writeback"
    return Disk(
        name=(block.device or block.qdev)[:255],
        path=inserted.file[:4096],
        format=inserted.drv[:255],
        read_only=inserted.ro,
        cache=mode,
        size_bytes=inserted.image.virtual_size,
    )
