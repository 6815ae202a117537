"""What a host says of a VM before it is moved, and of itself as its destination: values that travel to the gateway.

Bounded and strict: a relay makes them of what its hypervisor tells, the gateway decodes them as a peer's words.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Word = Annotated[str, Meta(max_length=255)]
Line = Annotated[str, Meta(max_length=1024)]
Path = Annotated[str, Meta(max_length=4096)]


class _Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Disk(_Facts, frozen=True, omit_defaults=True):
    """`cache`: none, directsync, writeback, writethrough, unsafe, or "" where it is not told.

    `size_bytes`: as the guest sees it, 0 where it is not told. See `without_sizes`.
    """

    name: Word
    path: Path = ""
    format: Word = ""
    read_only: bool = False
    shareable: bool = False
    cache: Word = ""
    size_bytes: Annotated[int, Meta(ge=0)] = 0


class Machine(_Facts, frozen=True):
    """A VM as its hypervisor tells it. `cpu_words`: guest-visible CPUID feature registers, by name, where told."""

    kind: Literal["qmp", "libvirt"]
    state: Word
    version: Word = ""
    machine_type: Word = ""
    arch: Word = ""
    virt_type: Word = ""
    emulator: Path = ""
    cpu: Word = ""
    cpu_words: dict[Word, int] = {}
    cpu_xml: Annotated[str, Meta(max_length=16 * 1024)] = ""
    vcpus: Annotated[int, Meta(ge=0)] = 0
    memory_bytes: Annotated[int, Meta(ge=0)] = 0
    hugepage_kib: Annotated[int, Meta(ge=0)] = 0
    devices: Annotated[tuple[Word, ...], Meta(max_length=256)] = ()
    blocked: Annotated[tuple[Line, ...], Meta(max_length=32)] = ()
    disks: Annotated[tuple[Disk, ...], Meta(max_length=64)] = ()
    networks: Annotated[tuple[Word, ...], Meta(max_length=64)] = ()
    bridges: Annotated[tuple[Word, ...], Meta(max_length=64)] = ()
    secrets: Annotated[tuple[Word, ...], Meta(max_length=64)] = ()


def without_sizes(machine: Machine) -> Machine:
    """For a side that does not know sizes of disks (`transport.link_version`)."""
    disks = tuple(msgspec.structs.replace(disk, size_bytes=0) for disk in machine.disks)
    return msgspec.structs.replace(machine, disks=disks)


class Check(_Facts, frozen=True):
    """One thing that the destination looked at for a VM. `passed`: None where it could not be found out."""

    code: Word
    passed: bool | None
    detail: Line


class Inspection(_Facts, frozen=True):
    """A relay's answer. `trouble`: why nothing could be said, in words for the operator of this host."""

    trouble: Line = ""
    machine: Machine | None = None
    checks: Annotated[tuple[Check, ...], Meta(max_length=256)] = ()
