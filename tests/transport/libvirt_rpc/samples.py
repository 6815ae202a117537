"""Calls of a migration as libvirt makes them, for tests of what reads them."""

from __future__ import annotations

from transport.libvirt_rpc.domain_xml import DomainRules
from transport.libvirt_rpc.filter import Places
from transport.libvirt_rpc.framing import REMOTE_PROGRAM, MessageType, Packet, Status
from transport.libvirt_rpc.migration import Finish, Prepare
from transport.libvirt_rpc.parameters import Parameter, ParameterType
from transport.libvirt_rpc.procedures import MigrateFlag, Procedure

VM = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"
RULES = DomainRules(("/var/lib/libvirt/", "/dev/pts/"), ("/usr/bin/qemu-system-x86_64",), ("default",))
PLACES = Places("/run/s/memory.sock", "/run/s/disks.sock")
LIVE = MigrateFlag.LIVE | MigrateFlag.PEER2PEER


def xml(*, uuid: str = VM, devices: str = "", more: str = "", root: str = "type='kvm'") -> str:
    return (
        f"<domain {root}><name>web</name><uuid>{uuid}</uuid><devices>"
        "<emulator>/usr/bin/qemu-system-x86_64</emulator>"
        "<disk type='file' device='disk'><source file='/var/lib/libvirt/images/web.img'/><target dev='vda'/></disk>"
        f"<console type='pty' tty='/dev/pts/3'/>{devices}</devices>{more}</domain>"
    )


def cookie(*, uuid: str = VM, more: str = "") -> bytes:
    text = f"<qemu-migration><name>web</name><uuid>{uuid}</uuid><hostname>a</hostname>{more}</qemu-migration>"
    return text.encode() + b"\0"


def text(field: str, value: str) -> Parameter:
    return Parameter(field, ParameterType.STRING, value)


def prepare(*parameters: Parameter, dom: str | None = None, data: bytes | None = None, flags: int = LIVE) -> Prepare:
    given = [text("destination_xml", dom or xml()), *parameters]
    return Prepare(given, cookie() if data is None else data, MigrateFlag(flags))


def finish(*, name: str = "web", data: bytes | None = None, flags: int = LIVE, cancelled: bool = False) -> Finish:
    return Finish([text("destination_name", name)], cookie() if data is None else data, MigrateFlag(flags), cancelled)


def call(procedure: int, body: bytes = b"", serial: int = 7) -> Packet:
    return Packet(REMOTE_PROGRAM, procedure, MessageType.CALL, serial, Status.OK, body)


def prepare_call(value: Prepare | None = None) -> Packet:
    return call(Procedure.MIGRATE_PREPARE3_PARAMS, (value or prepare()).encode())


def finish_call(value: Finish | None = None) -> Packet:
    return call(Procedure.MIGRATE_FINISH3_PARAMS, (value or finish()).encode())
