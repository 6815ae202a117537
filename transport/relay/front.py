"""The front: where clients of libvirt on this host find the other hosts, and what becomes of their migrations.

Each destination has a unix socket, and a loopback address for clients that know `qemu+tcp://` only. A caller is
answered here until its Prepare names a VM; then the gateway is asked (automatic admission), and only with its permit
does anything reach the destination. A refusal is the answer to Prepare, in words that virsh prints.
"""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import trio

from transport.errors import ConfigurationError, LocalBroken, TransportError
from transport.hypervisors.errors import HypervisorError
from transport.libvirt_rpc.domain_xml import DomainIdentity, identify_domain
from transport.libvirt_rpc.errors import CallRefused, RpcMalformed
from transport.libvirt_rpc.filter import COPIES_DISKS
from transport.libvirt_rpc.framing import ErrorCode, Packet
from transport.libvirt_rpc.migration import Prepare
from transport.libvirt_rpc.parameters import text_of
from transport.libvirt_rpc.procedures import Procedure
from transport.relay.caller import Caller, Conversation, DisksInlet
from transport.relay.config_sections import FrontDestination, FrontSection
from transport.relay.failures import cause_of
from transport.relay.inlets import listen_tcp, listen_unix, peer_process
from transport.relay.interrupted import Interrupted
from transport.relay.limits import LimitsSection
from transport.relay.log_rate import LogRate
from transport.relay.loopback import find_peer_uid
from transport.relay.news import News
from transport.relay.refused_calls import RefusedCalls, refused_call
from transport.relay.wish import NotAdmitted, Wish

log = structlog.get_logger("sealane.relay")
SOCKET_NAME: Final = "libvirt.sock"
_DISKS_NAME: Final = re.compile(r"disks[A-Za-z0-9._-]{0,64}\.sock")
_MAX_PORT: Final = 65535
_TCP: Final = re.compile(r"tcp://(?P<host>[0-9a-f.:]{2,45}):(?P<port>[1-9][0-9]{0,4})/?")


# Asks the gateway and carries the session to its end; the last news. Errors: NotAdmitted, and those of
# `carry_as_source` while nothing has been touched.
Migrate = Callable[[Wish, Conversation], Awaitable[News]]


@dataclass(slots=True)
class _Door:
    """Where one destination is found. `scope`: of those who listen there, and of no session."""

    listening: list[trio.socket.SocketType]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_served: bool = False

    def close(self) -> None:
        self.scope.cancel()
        for each in self.listening:
            each.close()


class Front:
    """All callers of one relay. `nursery`: where sessions live, which must outlast their callers."""

    def __init__(
        self,
        section: FrontSection,
        limits: LimitsSection,
        migrate: Migrate,
        nursery: trio.Nursery,
        refused: RefusedCalls,
        interrupted: Interrupted,
    ) -> None:
        self._section = section
        self._limits = limits
        self._migrate = migrate
        self._nursery = nursery
        self._refused = refused
        self._interrupted = interrupted
        self._callers: Counter[int] = Counter()  # by uid
        self._most_of_one = max(1, limits.max_callers // max(1, len(set(section.peer_uids))))
        self._looking = trio.CapacityLimiter(1)
        self._log_rate = LogRate()
        self._open: dict[FrontDestination, _Door] = {}
        self._changed = trio.Event()

    def listen(self) -> None:
        """Take every socket that is written by hand. `ConfigurationError` if one cannot be had: it fails at the start,
        not at a migration.
        """
        for destination in self._section.destinations:
            self._open[destination] = _Door(self._listen(destination))

    def lead_to(self, destinations: list[FrontDestination]) -> None:
        """From now on to these and no others. Sessions that are under way go on; what cannot be had is logged."""
        for gone in self._open.keys() - set(destinations):
            self._open.pop(gone).close()
            self._remove(gone)
        for destination in destinations:
            if destination not in self._open:
                try:
                    self._open[destination] = _Door(self._listen(destination))
                except ConfigurationError as error:
                    log.error("the front cannot lead to a host of the address book", cause=str(error))
        self._changed.set()

    async def serve(self) -> None:
        """Take callers until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._changed = trio.Event()
                for destination, door in self._open.items():
                    if not door.is_served:
                        door.is_served = True
                        nursery.start_soon(self._accept_at, door, destination, nursery)
                await self._changed.wait()

    async def _accept_at(self, door: _Door, destination: FrontDestination, nursery: trio.Nursery) -> None:
        with door.scope:
            async with trio.open_nursery() as listeners:
                for listening in door.listening:
                    listeners.start_soon(self._accept_forever, listening, destination, nursery)

    def _remove(self, destination: FrontDestination) -> None:
        folder = Path(self._section.folder) / destination.host
        try:
            (folder / SOCKET_NAME).unlink(missing_ok=True)
            folder.rmdir()
        except OSError as error:  # a migration's disks are under way there
            log.info("the folder of a host that has left stays", folder=str(folder), cause=error.strerror)

    def _listen(self, destination: FrontDestination) -> list[trio.socket.SocketType]:
        folder = Path(self._section.folder) / destination.host
        path = folder / SOCKET_NAME
        listening: list[trio.socket.SocketType] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for reached in (folder.parent, folder):
                reached.chmod(0o755)  # whatever the umask: who may come is said by peer_uids
            path.unlink(missing_ok=True)  # a former process's; two relays of one host share no front
            listening.append(listen_unix(path, 0o666))
            if destination.loopback:
                listening.append(listen_tcp(destination.loopback, self._section.loopback_port))
        except (OSError, LocalBroken) as error:
            for each in listening:
                each.close()
            raise ConfigurationError(f"front: {path}: {error}") from None
        return listening

    async def _accept_forever(
        self, listening: trio.socket.SocketType, destination: FrontDestination, nursery: trio.Nursery
    ) -> None:
        with listening:
            while True:
                try:
                    accepted, _ = await listening.accept()
                except OSError:
                    await trio.sleep(0.05)  # out of descriptors: others go on
                    continue
                uid, pid = await self._process_of(accepted)
                if uid not in self._section.peer_uids or not self._has_room_for(uid):
                    if self._log_rate.allows(str(uid)):  # anybody on this host may dial
                        own = 0 if uid is None else self._callers[uid]
                        log.warning("caller at the front refused", uid=uid, callers=self._callers.total(), own=own)
                    if uid not in self._section.peer_uids:
                        cause = "this user may not use the front (front.peer_uids)"
                        self._refused.note(refused_call("source", destination.host, cause, uid=uid), pid)
                    accepted.close()
                    continue
                self._callers[uid] += 1  # before the next one is judged
                nursery.start_soon(self._serve, accepted, destination, uid, pid)

    def _has_room_for(self, uid: int) -> bool:
        """Each user has a share of its own, or one of them, whose program opens connections without end say, would lock
        the others out: libvirtd among them."""
        return self._callers[uid] < self._most_of_one and self._callers.total() < self._limits.max_callers

    async def _process_of(self, accepted: trio.socket.SocketType) -> tuple[int | None, int | None]:
        """uid and, of a unix socket, pid of the caller. Closed where this is cancelled."""
        try:
            with socket.socket(fileno=os.dup(accepted.fileno())) as raw:
                if raw.family == socket.AF_UNIX:
                    return peer_process(raw)
                return await find_peer_uid(raw, self._looking), None
        except OSError:  # it has left, or there is no descriptor to ask with: others go on
            return None, None
        except BaseException:
            accepted.close()
            raise

    async def _serve(
        self, accepted: trio.socket.SocketType, destination: FrontDestination, uid: int, pid: int | None
    ) -> None:
        is_tcp = accepted.family != socket.AF_UNIX

        def refused(cause: str, call: Packet | None, vm: str | None = None) -> None:
            self._refused.note(refused_call("source", destination.host, cause, call, vm, uid), pid)

        caller = Caller(trio.SocketStream(accepted), self._limits.message_seconds, refused)
        try:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(caller.read_forever)
                    await self._answer(caller, destination, uid, is_tcp)
                    nursery.cancel_scope.cancel()
            except (TransportError, BaseExceptionGroup) as error:
                log.info("caller at the front left", destination=destination.host, cause=str(cause_of(error)))
        except Exception:
            # The edge: a bug that one caller has found must not end the sessions of all others.
            log.exception("bug: caller at the front ended")
        finally:
            self._callers[uid] -= 1
            with trio.CancelScope(shield=True):
                await caller.aclose()

    async def _answer(self, caller: Caller, destination: FrontDestination, uid: int, is_tcp: bool) -> None:
        while (call := await caller.next_call()) is not None:
            if call.procedure == Procedure.MIGRATE_PREPARE3_PARAMS:
                await self._take_prepare(caller, call, destination, uid, is_tcp)
            else:
                await caller.answer(call)
            if call.procedure == Procedure.CONNECT_CLOSE:
                return

    async def _take_prepare(
        self, caller: Caller, call: Packet, destination: FrontDestination, uid: int, is_tcp: bool
    ) -> None:
        try:
            prepare = Prepare.decode(call.body)
            identity = _identify(prepare)
        except CallRefused as refused:
            await caller.refuse(call, refused)
            return
        try:
            disks = _disks_inlet(prepare, destination, Path(self._section.folder)) if copies_disks(prepare) else None
        except CallRefused as refused:
            await caller.refuse(call, refused, identity.uuid)
            return
        # A client that named a tcp address sends to one; everything else goes by sockets of the session's own.
        asked_uri = text_of(prepare.parameters, "migrate_uri") or ("tcp:" if is_tcp else "unix:")
        by_tcp = asked_uri.startswith("tcp") or (disks is not None and disks.path is None)
        loopback = destination.loopback if by_tcp else ""
        if asked_uri.startswith("tcp") and not loopback:
            unreachable = CallRefused(
                f"Sealane: no loopback address leads to {destination.host}: leave --migrateuri away, or set "
                "front.loopback_network or front.destinations.loopback",
                ErrorCode.ARGUMENT_UNSUPPORTED,
            )
            await caller.refuse(call, unreachable, identity.uuid)
            return
        ports = ("disks", "libvirt", "memory") if disks else ("libvirt", "memory")
        conversation = Conversation(caller, call, prepare, loopback, disks, self._limits.migration_deadline_seconds)
        wish = Wish(identity.uuid, identity.name, destination.host, ports, uid)
        try:
            migrate = self._interrupted.claim(wish, conversation) if prepare.resumes else self._migrate
        except NotAdmitted as why:
            await caller.refuse(call, CallRefused(f"Sealane: {why}", ErrorCode.ACCESS_DENIED), wish.vm)
        else:
            await self._carry(wish, conversation, migrate)

    async def _carry(self, wish: Wish, conversation: Conversation, migrate: Migrate) -> None:
        """Let the session run where it outlives the caller; returns when the caller's own part in it is over."""
        ended = trio.Event()
        refusals: list[str] = []

        async def run() -> None:
            try:
                news = await migrate(wish, conversation)
                if news.state != "completed":
                    refusals.append(f"migration {news.state}: {news.message}")
            except (TransportError, HypervisorError) as error:
                log.warning("migration not begun", vm=wish.vm, destination=wish.destination, cause=str(error))
                refusals.append(str(error))
            except Exception:
                log.exception("migration ended by a bug", vm=wish.vm)
                refusals.append("internal error of the source relay; see its log")
            finally:
                conversation.finished.set()
                ended.set()

        self._nursery.start_soon(run)
        await conversation.finished.wait()
        if conversation.was_prepared and not conversation.was_told:
            with trio.move_on_after(self._limits.message_seconds):
                await conversation.tell_cause()
                return
            raise LocalBroken(f"the session ended before its Finish: {conversation.cause}")
        # libvirt's next call, with which it leaves, is answered when the guest runs at the destination: so whoever
        # waits for the migration hears of its end after it has ended. Settling that takes longer goes on without.
        with trio.move_on_after(self._limits.message_seconds):
            await ended.wait()
        if not conversation.was_answered:
            words = refusals[0] if refusals else "the session is not settled yet; see the relay's log"
            await conversation.caller.reply(
                conversation.prepare_call.refusal(ErrorCode.ACCESS_DENIED, f"Sealane: {words}")
            )


def copies_disks(prepare: Prepare) -> bool:
    return bool(prepare.flags & COPIES_DISKS)


def _disks_inlet(prepare: Prepare, destination: FrontDestination, folder: Path) -> DisksInlet:
    """Where libvirt here will dial for the disks; `CallRefused` tells the caller where they may be."""
    asked = text_of(prepare.parameters, "disks_uri")
    if asked is None and destination.loopback:
        return DisksInlet()
    own = folder / destination.host
    if asked is not None and asked.startswith("unix:///"):
        path = Path(asked.removeprefix("unix://"))
        # The relay listens there as root: so only in its own folder, and on no socket that is there already.
        if path.parent == own and _DISKS_NAME.fullmatch(path.name) and not path.exists():
            return DisksInlet(path)
    found = _TCP.fullmatch(asked or "")
    if found is not None and found["host"] == destination.loopback and int(found["port"]) <= _MAX_PORT:
        return DisksInlet(port=int(found["port"]))
    raise CallRefused(
        f"Sealane: disks go by --disks-uri unix://{own}/disks-NAME.sock, with a name that no other migration uses",
        ErrorCode.ARGUMENT_UNSUPPORTED,
    )


def _identify(prepare: Prepare) -> DomainIdentity:
    identity = identify_domain(prepare.xml)
    try:
        canonical = str(uuid.UUID(identity.uuid))
    except ValueError:
        canonical = ""
    if canonical != identity.uuid:
        raise RpcMalformed("a UUID that is not in libvirt's own form")
    return identity
