"""What comes from this host's hypervisors and from callers of libvirt: QEMU's monitor, libvirt's RPC, XML, virsh."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec

from tests.fuzz.targets.target import Target, in_pieces
from tests.transport.hypervisors.test_qmp_messages import TRANSCRIPT
from tests.transport.hypervisors.test_virsh import PRINTED
from tests.transport.libvirt_rpc.samples import (
    OTHER,
    PLACES,
    RULES,
    VM,
    call,
    cookie,
    finish,
    finish_call,
    prepare,
    prepare_call,
    text,
    xml,
)  # fmt: skip
from transport.errors import UNDECODABLE
from transport.hypervisors.errors import HypervisorError, HypervisorGarbled, HypervisorRefused
from transport.hypervisors.libvirt_guests import devices_of
from transport.hypervisors.libvirt_preflight import read_machine
from transport.hypervisors.migration_progress import read_progress
from transport.hypervisors.preflight_facts import Machine
from transport.hypervisors.qmp import QmpConnection
from transport.hypervisors.qmp_messages import LineBuffer, decode_message
from transport.hypervisors.qmp_preflight import machine_behind
from transport.hypervisors.virsh import parse_domains, parse_event
from transport.libvirt_rpc.domain_xml import DomainIdentity, check_cookie, check_domain, identify_domain
from transport.libvirt_rpc.errors import CallRefused, RpcFailed, RpcMalformed
from transport.libvirt_rpc.filter import MigrationFilter
from transport.libvirt_rpc.framing import (
    PING,
    MessageType,
    Packet,
    PacketReader,
    Status,
    decode_error,
    encode_error,
)
from transport.libvirt_rpc.migration import Domain, Finish, FinishReply, Prepare, PrepareReply
from transport.libvirt_rpc.opening import feature_answer, feature_call, is_supported
from transport.libvirt_rpc.parameters import Parameter, ParameterType
from transport.libvirt_rpc.procedures import Feature, Procedure
from transport.libvirt_rpc.xdr import XdrWriter
from transport.relay.caller import answer_locally


def monitor_lines(data: bytes) -> None:
    """The same lines in any pieces."""
    buffer = LineBuffer(200)
    whole: list[object] = [*LineBuffer(200).feed(data)]
    assert in_pieces(lambda piece: [*buffer.feed(piece)], data) == whole


def monitor_message(data: bytes) -> None:
    decode_message(data)


def migration_progress(data: bytes) -> None:
    """As it comes: what a reply has under `return`."""
    read_progress(msgspec.json.decode(data))


class _Told(QmpConnection):
    """A monitor that says what is in a document, by command and, of QEMU's object model, by path and property."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.version = "7.2.0"
        self._told = told

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, deadline_seconds: float) -> Any:
        assert deadline_seconds > 0
        name = " ".join([command, *(arguments or {}).values()])
        if name not in self._told:
            raise HypervisorRefused(command, "CommandNotFound", "none")
        return self._told[name]


def preflight(data: bytes) -> None:
    """A whole look at a VM by its monitor. The gateway takes what the relay made of it."""
    found: list[Machine] = []

    async def look() -> None:
        found.append(await machine_behind(_Told(msgspec.json.decode(data, type=dict)), VM))

    with suppress(StopIteration):
        look().send(None)
    assert msgspec.json.decode(msgspec.json.encode(found[0]), type=Machine) == found[0]


def packets(data: bytes) -> None:
    """The same packets in any pieces, and each is written as it came."""
    whole = list(PacketReader().feed(data))
    reader = PacketReader()
    assert in_pieces(lambda piece: list(reader.feed(piece)), data) == whole
    written = b"".join(packet.encode() for packet in whole)
    assert data[: len(written)] == written


def migration_filter(data: bytes) -> None:
    """What passes is of the permit's VM, whatever was sent before."""
    for packet in PacketReader().feed(data):
        for rpc in (MigrationFilter(VM, RULES, PLACES), _prepared()):
            try:
                procedure, body = rpc.check(packet)
            except (CallRefused, RpcMalformed):
                continue
            if procedure == Procedure.MIGRATE_PREPARE3_PARAMS:
                sent = Prepare.decode(body)
                assert check_domain(sent.xml, RULES).uuid == VM


def _prepared() -> MigrationFilter:
    rpc = MigrationFilter(VM, RULES, PLACES)
    rpc.check(prepare_call())
    rpc.note_reply(Procedure.MIGRATE_PREPARE3_PARAMS, prepare_call().answer(PrepareReply(b"", None).encode()))
    return rpc


def front_answers(data: bytes) -> None:
    """What a front answers by itself."""
    for packet in PacketReader().feed(data):
        if packet.type is MessageType.CALL:
            answer_locally(packet)


def libvirtd_reply(procedure: Procedure) -> Callable[[bytes], None]:
    """What the destination's libvirtd says to a Prepare or a Finish."""

    def run(data: bytes) -> None:
        _prepared().note_reply(procedure, Packet(0x20008086, procedure, MessageType.REPLY, 1, Status.OK, data))

    return run


def domain_xml(data: bytes) -> None:
    """Text that passes names one VM, as the source would read it."""
    assert identify_domain(_text(data)) == check_domain(_text(data), RULES)


def migration_cookie(data: bytes) -> None:
    check_cookie(data, DomainIdentity(VM, "web"), RULES)


def own_machine(data: bytes) -> None:
    read_machine(_text(data), "running")


def own_devices(data: bytes) -> bool:
    """What an announcement says; nothing, of a domain that cannot be read."""
    return devices_of(_text(data)) != ("unreadable-domain-xml",)


def virsh_domains(data: bytes) -> None:
    parse_domains(_text(data))


def virsh_event(data: bytes) -> bool:
    return parse_event(_text(data)) is not None


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _round_trip(decode: Callable[[bytes], Prepare | Finish]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        again = decode(decode(data).encode())
        assert again == decode(data)

    return run


_LOOK: Final = {
    "query-uuid": {"UUID": VM}, "query-status": {"status": "running"}, "query-cpus-fast": [{"qom-path": "/c"}],
    "qom-get /machine type": "pc-q35-machine", "query-kvm": {"enabled": True}, "qom-get /c type": "qemu64",
    "qom-get /c feature-words": [{"cpuid-register": "EDX", "cpuid-input-eax": 1, "features": 3}],
    "query-memory-size-summary": {"base-memory": 4096},
    "qom-list /machine/peripheral": [{"name": "a", "type": "child<b>"}],
    "qom-list /machine/peripheral-anon": [], "query-migrate": {"blocked-reasons": ["x"]},
    "query-block": [{"device": "d", "inserted": {"file": "/x", "drv": "raw", "image": {"virtual-size": 5}}}],
}  # fmt: skip
_RPC: Final = (CallRefused, RpcMalformed)
_DISK: Final = (
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/libvirt/images/w.img'/>"
    "<target dev='vdb'/></disk><interface type='network'><source network='default'/></interface>"
)
_MORE: Final = (
    "<vcpu>2</vcpu><memory unit='KiB'>4096</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>"
    "<memoryBacking><hugepages><page size='2048' unit='KiB'/></hugepages></memoryBacking>"
)
_LABELS: Final = (
    "<seclabel type='dynamic' model='apparmor' relabel='yes'/>",
    "<seclabel type='static' model='dac'><label>root</label></seclabel>",
)
_DISKS_LABEL: Final = _DISK.replace("w.img'/>", "w.img'><seclabel model='dac' relabel='no'/></source>")
_QEMUS: Final = "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-x'/></commandline>"
_GOOD_XML: Final = tuple(
    each.encode()
    for each in (
        xml(),
        xml(devices=_DISK),
        xml(devices=_DISKS_LABEL, more=_MORE + _LABELS[0]),
        xml(
            devices="<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>",
            more="<metadata><a/></metadata>",
        ),
    )
)
_WRONG_XML: Final = tuple(
    each.encode()
    for each in (
        xml(more=_LABELS[1]),
        xml(devices=_DISK.replace("w.img'/>", "w.img'><seclabel model='selinux'/></source>")),
        xml(more=_QEMUS),
        xml(devices="<hostdev mode='subsystem'/>"),
        xml(more="<a xmlns:x='y' x:file='/etc/shadow'/>"),
        xml(more="<os><loader>/etc/x</loader></os>"),
        xml(more="<os>" * 40 + "</os>" * 40),
    )
)
_NUMBERS: Final = (
    Parameter("parallel.connections", ParameterType.INT, 2),
    Parameter("bandwidth", ParameterType.ULLONG, 5),
)
_WRONG_PREPARES: Final = (
    prepare(dom=xml(uuid=OTHER), data=cookie(uuid=OTHER)),
    prepare(text("destination_name", "other")),
    prepare(data=b""),
)
_OPENS: Final = tuple(
    call(Procedure.CONNECT_OPEN, bytes(XdrWriter().optional_text(name).unsigned(flags).data)).encode()
    for name, flags in (("qemu:///system", 0), (None, 0), ("xen:///", 0), ("qemu:///system", 1))
)
_CALLS: Final = (
    PING,
    call(Procedure.CONNECT_SUPPORTS_FEATURE, feature_call(Feature.MIGRATION_PARAMS)),
    call(Procedure.AUTH_LIST),
    call(Procedure.CONNECT_GET_LIB_VERSION),
    prepare_call(),
    prepare_call(prepare(text("migrate_uri", "tcp:b"), text("disks_uri", "unix:///x"))),
    finish_call(),
    call(Procedure.CONNECT_GET_URI),
    *map(prepare_call, _WRONG_PREPARES),
    call(1, encode_error(38, "no")),
)
_SENT: Final = tuple(each.encode() for each in _CALLS)
_FINISHED: Final = bytes(Domain("web", VM, 3).write(XdrWriter()).opaque(b"").data)
_PREPARED: Final = (PrepareReply(cookie(), "unix:///x").encode(),)
TARGETS: Final = (
    Target(
        "monitor-lines", monitor_lines, (HypervisorGarbled,), (b"\r\n".join(line for line, _ in TRANSCRIPT),)
    ),
    Target(
        "monitor-message", monitor_message, (HypervisorGarbled,), tuple(line for line, _ in TRANSCRIPT),
    ),
    Target(
        "migration-progress", migration_progress, (HypervisorGarbled, *UNDECODABLE),
        (b'{"status":"active","expected-downtime":300,"ram":{"total":9,"remaining":4,"transferred":5,"mbps":8.5}}',),
        (b'{"status":"active","ram":{"total":9,"remaining":4,"transferred":5,"mbps":-1}}',),
    ),
    Target(
        "qmp-preflight", preflight, (HypervisorError, *UNDECODABLE), (msgspec.json.encode(_LOOK),),
        (msgspec.json.encode(_LOOK | {"query-uuid": {"UUID": OTHER}}),),
    ),
    Target("libvirt-packets", packets, (RpcMalformed,), (*_SENT, b"".join(_SENT))),
    Target("libvirt-filter", migration_filter, _RPC, _SENT),
    Target(
        "libvirt-front", front_answers, _RPC, (*_SENT[:4], call(Procedure.CONNECT_GET_URI).encode(), *_OPENS[:2]),
        _OPENS[2:],
    ),
    Target(
        "libvirt-prepare", _round_trip(Prepare.decode), _RPC,
        (prepare().encode(), prepare(text("migrate_uri", "tcp:b")).encode(), prepare(*_NUMBERS).encode()),
        (prepare(Parameter("parallel.connections", ParameterType.INT, 256)).encode(),),
    ),
    Target("libvirt-finish", _round_trip(Finish.decode), _RPC, (finish().encode(),)),
    Target("libvirtd-prepared", libvirtd_reply(Procedure.MIGRATE_PREPARE3_PARAMS), (*_RPC, RpcFailed), _PREPARED),
    Target("libvirtd-finished", libvirtd_reply(Procedure.MIGRATE_FINISH3_PARAMS), (*_RPC, RpcFailed), (_FINISHED,)),
    Target("libvirt-prepared", PrepareReply.decode, _RPC, _PREPARED),
    Target("libvirt-finished", FinishReply.decode, _RPC, (_FINISHED,)),
    Target("libvirtd-feature", is_supported, _RPC, (feature_answer(True),)),
    Target("libvirtd-error", decode_error, _RPC, (encode_error(38, "no"),)),
    Target(
        "domain-xml", domain_xml, (CallRefused,), _GOOD_XML, _WRONG_XML,
    ),
    Target(
        "migration-cookie", migration_cookie, (CallRefused,),
        (b"", *(cookie(more=each.decode()) for each in (b"", *_GOOD_XML))),
        (cookie(uuid=OTHER), cookie(more=xml(uuid=OTHER)), *(cookie(more=each.decode()) for each in _WRONG_XML)),
    ),
    Target("own-domain-xml", own_machine, (HypervisorError,), (xml(devices=_DISK, more=_MORE).encode(),)),
    Target("own-devices-xml", own_devices, (HypervisorError,), (xml(devices=_DISK, more=_MORE).encode(),)),
    Target("virsh-domains", virsh_domains, (HypervisorGarbled,), (PRINTED.encode(),),
           (PRINTED.replace("  state.reason=5\n", "").encode(), (PRINTED + PRINTED).encode())),
    Target("virsh-event", virsh_event, (), (b"event 'lifecycle' for domain 'web': Started Migrated",)),
)  # fmt: skip
