"""What may be asked of the destination's libvirtd on behalf of another host: one migration of one VM, in its order.

    OPENED ─Prepare→ PREPARED ─Finish→ FINISHED          SUPPORTS_FEATURE at any time before

Run at the destination, whose host is at stake; the source's front runs the same checks so that a caller hears at once.
A Finish leaves with PAUSED: a guest starts at the destination only when the relays have handed it over, which comes
before in post-copy alone. Where interrupted post-copy is taken up again, the guest runs here already: then Prepare and
Finish must say so, and in any other session they may not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from transport.libvirt_rpc.domain_xml import DomainIdentity, DomainRules, check_cookie, check_domain
from transport.libvirt_rpc.errors import CallRefused, RpcMalformed
from transport.libvirt_rpc.framing import REMOTE_PROGRAM, ErrorCode, MessageType, Packet, Status
from transport.libvirt_rpc.migration import Finish, FinishReply, Prepare, PrepareReply
from transport.libvirt_rpc.opening import feature_asked
from transport.libvirt_rpc.parameters import with_text
from transport.libvirt_rpc.procedures import FEATURES, MigrateFlag, Procedure

COPIES_DISKS: Final = MigrateFlag.NON_SHARED_DISK | MigrateFlag.NON_SHARED_INC


class Step(Enum):
    OPENED = auto()
    PREPARED = auto()
    FINISHED = auto()


@dataclass(frozen=True, slots=True)
class Places:
    """Where the destination's QEMU is to listen, in the session's own folder; whatever the caller named is replaced."""

    memory: str
    disks: str


class MigrationFilter:
    """One connection's calls. `check` says what to send on; `note_reply` moves on when it was done.

    `resumed`: where post-copy is taken up again, the name that libvirtd here has for the VM.
    """

    def __init__(self, vm: str, rules: DomainRules, places: Places, resumed: str | None = None) -> None:
        self._vm = vm
        self._rules = rules
        self._places = places
        self.step = Step.OPENED
        self.flags = MigrateFlag(0)
        self.lets_run = resumed is not None  # the guest was handed over before Finish: in post-copy only
        self.gives_up = False  # by its Finish
        self._resumed = resumed
        self._identity: DomainIdentity | None = None

    def check(self, call: Packet) -> tuple[int, bytes]:
        """(procedure, arguments) as they may reach libvirtd. `CallRefused` for the caller, `RpcMalformed`."""
        require_call(call)
        match call.procedure:
            case Procedure.CONNECT_SUPPORTS_FEATURE if self.step is not Step.FINISHED:
                if feature_asked(call.body) not in FEATURES:
                    raise RpcMalformed("a feature that no front asks for")
                return call.procedure, call.body
            case Procedure.MIGRATE_PREPARE3_PARAMS if self.step is Step.OPENED:
                return call.procedure, self._prepare(Prepare.decode(call.body)).encode()
            case Procedure.MIGRATE_FINISH3_PARAMS if self.step is Step.PREPARED:
                return call.procedure, self._finish(Finish.decode(call.body)).encode()
            case _:
                raise refused_procedure(call.procedure)

    def note_reply(self, procedure: int, reply: Packet) -> FinishReply | None:
        """Note what libvirtd answered; the reply to a Finish that went well is returned. `RpcMalformed`."""
        is_good = reply.status is Status.OK
        if procedure == Procedure.MIGRATE_PREPARE3_PARAMS and is_good:
            PrepareReply.decode(reply.body)
            self.step = Step.PREPARED
        elif procedure == Procedure.MIGRATE_FINISH3_PARAMS:
            self.step = Step.FINISHED
            if is_good:
                finished = FinishReply.decode(reply.body)
                if finished.domain.uuid != self._vm:
                    raise RpcMalformed("a Finish that was answered for another VM")
                return finished
        return None

    def _prepare(self, prepare: Prepare) -> Prepare:
        identity = check_prepare(prepare, self._rules)
        if identity.uuid != self._vm:
            raise CallRefused(
                f"Sealane: the permit is for VM {self._vm}, not for {identity.uuid}", ErrorCode.ACCESS_DENIED
            )
        if prepare.resumes is not (self._resumed is not None):
            what = "goes on with post-copy" if self._resumed is not None else "begins a migration"
            raise CallRefused(f"Sealane: this session {what}, and does nothing else", ErrorCode.ACCESS_DENIED)
        if self._resumed not in (None, identity.name):
            # libvirt looks for its guest by this name alone: it could be another VM's.
            raise CallRefused(f"Sealane: the VM is not named {identity.name!a} here", ErrorCode.ACCESS_DENIED)
        self._identity, self.flags = identity, prepare.flags
        parameters = [p for p in prepare.parameters if p.field not in ("listen_address", "disks_port")]
        parameters = with_text(parameters, "migrate_uri", f"unix://{self._places.memory}")
        disks = f"unix://{self._places.disks}" if prepare.flags & COPIES_DISKS else None
        return replace(prepare, parameters=with_text(parameters, "disks_uri", disks))

    def _finish(self, finish: Finish) -> Finish:
        assert self._identity is not None
        if finish.name != self._identity.name or finish.flags != self.flags:
            raise CallRefused("Sealane: Finish is of another migration than Prepare was", ErrorCode.ACCESS_DENIED)
        check_cookie(finish.cookie, self._identity, self._rules)
        self.gives_up = finish.cancelled
        # Of Prepare's parameters libvirt needs the name again, and no other: what is not sent need not be checked.
        named = [p for p in finish.parameters if p.field == "destination_name"]
        held = MigrateFlag(0) if self.lets_run else MigrateFlag.PAUSED
        return replace(finish, parameters=named, flags=finish.flags | held)


def check_prepare(prepare: Prepare, rules: DomainRules) -> DomainIdentity:
    """The VM that a Prepare is about. `CallRefused` names what does not pass."""
    identity = check_domain(prepare.xml, rules)
    renamed = next((p.value for p in prepare.parameters if p.field == "destination_name"), identity.name)
    if renamed != identity.name:
        raise CallRefused("Sealane: a VM keeps its name; leave --dname away", ErrorCode.ARGUMENT_UNSUPPORTED)
    if not prepare.cookie:
        # libvirtd 9.0 dies of it (seen), and every libvirt sends one.
        raise CallRefused("Sealane: a Prepare without a migration cookie", ErrorCode.ACCESS_DENIED)
    check_cookie(prepare.cookie, identity, rules)
    return identity


def require_call(packet: Packet) -> None:
    if packet.program != REMOTE_PROGRAM or packet.type is not MessageType.CALL or packet.status is not Status.OK:
        raise RpcMalformed("a packet that is no call")


def refused_procedure(procedure: int) -> CallRefused:
    """Define, destroy, dump, monitor commands, and everything else that is no part of a migration."""
    return CallRefused(
        f"Sealane lets only a migration pass to this host: procedure {procedure} is refused and logged",
        ErrorCode.ACCESS_DENIED,
    )
