"""The relay: composition of listener, sessions, recovery and the gateways' links."""

from __future__ import annotations

import math
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio
from OpenSSL import SSL

from certs.errors import PeerRefused
from certs.tls import ControlPeer, HostCredentials, accept_peer, export_secret, local_leaf_sha256
from policy.errors import PermitRefused
from policy.permit import VerifiedPermit
from transport.errors import (
    ConfigurationError,
    ConnectionBroken,
    OfferRefused,
    RefusalCode,
    SpoolFailed,
    TransportError,
)
from transport.hypervisors.errors import HypervisorError, MigrationCancelled
from transport.relay import systemd
from transport.relay.caller import Conversation
from transport.relay.config import split_address
from transport.relay.control import ControlLink, TlsStream
from transport.relay.destination import Destination
from transport.relay.evacuating import EvacuationDesk
from transport.relay.fronting import announced_at, start_front
from transport.relay.gateway_answers import (
    Assignment,
    CancelMigration,
    Inspect,
    Migrate,
    TakeEvacuation,
    WithdrawEvacuation,
)
from transport.relay.gateway_link import NewsDesk
from transport.relay.gateway_links import GatewayLinks
from transport.relay.handover import close_source, settle_source
from transport.relay.host import RelayHost, now
from transport.relay.identity_keeping import IdentityKeeper
from transport.relay.inlets import listen_tcp
from transport.relay.inspecting import inspect_destination, inspect_source
from transport.relay.libvirt_orders import LibvirtOrders
from transport.relay.listener import Listener
from transport.relay.metrics import serve_metrics
from transport.relay.news import News, Tell
from transport.relay.operating import Operators, listen_for_operators
from transport.relay.outgoing import mark_packets
from transport.relay.receipts import ReceiptFacts
from transport.relay.refusal_telling import tell_refused_calls
from transport.relay.source import MigrationOrder, carry_as_source
from transport.relay.source_session import SourceSession
from transport.relay.spool import SessionJournal
from transport.relay.tcp import notice_silence
from transport.relay.watching import Watch, sources_of
from transport.relay.wish import NotAdmitted, Wish
from transport.wire.control import Role
from transport.wire.keys import ConnectionKeys, exporter_context
from transport.wire.messages import Offer, Refusal

Ask = Callable[[Wish], Awaitable[Migrate]]
log = structlog.get_logger("sealane.relay")
_REFUSED_LOG_SECONDS = 1.0
_MAX_SILENT_PER_PEER = 16
_MAX_INSPECTIONS = 8
_DRAIN_LOOK_SECONDS = 0.25


class Relay:
    """One running relay."""

    def __init__(self, host: RelayHost, nursery: trio.Nursery, link: GatewayLinks, ask: Ask) -> None:
        self._host = host
        self._ask = ask
        self.announced = announced_at(host)
        self._nursery = nursery
        self._link = link
        self._cancels: dict[str, trio.Event] = {}
        self._inspecting: set[str] = set()
        self._orders = LibvirtOrders(host)
        self._refusal_logged: dict[str, float] = {}
        self._silent: Counter[str] = Counter()  # connections by host that have not offered yet
        self.destination = Destination(host, nursery)
        self.evacuating = EvacuationDesk(host, self.take)
        self.operators = Operators(host.board, lambda: drain(host), self.evacuating, host.metrics)
        self.listener = Listener(host.config.limits, self.serve_control, host.addresses.knows)

    async def serve_control(self, sock: trio.socket.SocketType, first: bytes, proven: Callable[[], None]) -> None:
        """One control connection: TLS, the peer's identity, its Offer, and then the session."""
        limits = self._host.config.limits
        credentials = self._host.credentials
        tls = SSL.Connection(self._host.identity.context, None)
        tls.set_accept_state()
        stream = TlsStream(sock, tls, first)
        link = ControlLink(stream, Role.DESTINATION, limits.message_seconds)
        try:
            await stream.handshake()
            peer = accept_peer(tls, credentials, now())
            self._host.identity.require_listed(peer.spiffe_id)
            proven()
            notice_silence(sock, limits.silence_seconds)
            await self._serve_offer(link, tls, peer, credentials)
        except PeerRefused as refused:
            self._log_refused("", "peer refused", check=refused.check, detail=refused.detail)
        except ConnectionBroken:
            pass  # a stranger's handshake, or a peer that left before its session began
        except TransportError as error:
            log.warning("control connection ended", cause=str(error))
        except Exception:
            # A bug of ours that one peer has found must not end the sessions of all others; its own ends here.
            log.exception("bug: control connection ended")
        finally:
            with trio.CancelScope(shield=True):
                await link.close()

    async def _serve_offer(
        self, link: ControlLink, tls: SSL.Connection, peer: ControlPeer, credentials: HostCredentials
    ) -> None:
        offer = await self._hear_offer(link, str(peer.spiffe_id))
        try:
            session = await self.destination.admissions.admit(offer, peer)
        except OfferRefused as refused:
            source = str(peer.spiffe_id)
            self._log_refused(source, "offer refused", source=source, code=refused.code.value, detail=refused.detail)
            # A peer whose permit is good is told what is busy; of a check that failed nothing that helps a forger.
            await link.send(Refusal(refused.code, refused.detail if refused.is_told else _words_for(refused.code)))
            return
        if offer.purpose == "begin":
            self._nursery.start_soon(self._link.show_permit, session.permit.token)
        context = exporter_context(
            offer.permits,
            peer.leaf_sha256,
            local_leaf_sha256(credentials),
            bytes.fromhex(offer.session_id),
            offer.attempt,
        )
        keys = ConnectionKeys(export_secret(tls, context))
        allowed = session.permit.claims.limits.max_channels
        desk = self.listener.open_desk(keys, min(allowed, self._host.config.limits.max_channels))
        try:
            await self.destination.serve(session, offer, link, desk, (peer, local_leaf_sha256(credentials)))
        finally:
            self.listener.close_desk(desk)

    async def _hear_offer(self, link: ControlLink, name: str) -> Offer:
        """A host may keep only so many connections that say nothing: they hold descriptors that others need."""
        if self._silent[name] >= _MAX_SILENT_PER_PEER:
            raise ConnectionBroken("a host with too many silent connections")
        self._silent[name] += 1
        try:
            return await link.expect(Offer)
        finally:
            self._silent[name] -= 1
            if not self._silent[name]:
                del self._silent[name]

    async def take(self, assignment: Assignment) -> None:
        """Do what the gateway asks, in the background."""
        match assignment:
            case Migrate(migration_id=migration_id) if self._host.board.is_draining:
                tell = self._telling(migration_id)
                await tell(News("failed", None, None, "the source relay is about to be restarted: repeat the request"))
            case Migrate(migration_id=migration_id) if migration_id not in self._cancels:
                self._cancels[migration_id] = trio.Event()
                self._nursery.start_soon(self._migrate, assignment)
            case CancelMigration(migration_id=migration_id) if migration_id in self._cancels:
                self._cancels[migration_id].set()
            case CancelMigration(migration_id=migration_id):
                self.destination.give_up(migration_id)
            case Inspect(inspection_id=inspection_id) if len(self._inspecting) < _MAX_INSPECTIONS:
                if inspection_id not in self._inspecting:
                    self._inspecting.add(inspection_id)
                    self._nursery.start_soon(self._inspect, assignment)
            case TakeEvacuation(evacuation_id=evacuation_id):
                self._nursery.start_soon(self.evacuating.fetch, self._link, evacuation_id)
            case WithdrawEvacuation(evacuation_id=evacuation_id):
                self._nursery.start_soon(self.evacuating.withdraw, evacuation_id)
            case _:
                pass  # told twice, or of what has ended

    def _telling(self, migration_id: str) -> Tell:
        return self.evacuating.noting(migration_id, NewsDesk(self._link, migration_id, self._nursery).tell)

    async def migrate_for_caller(self, wish: Wish, conversation: Conversation) -> News:
        """Automatic admission: ask the gateway for what a client of libvirt wants, and carry it. `NotAdmitted`."""
        if self._host.board.is_draining:
            raise NotAdmitted("this host's relay is about to be restarted: try again in a moment")
        permitted = self._orders.take(wish) or await self._ask(self.announced.named(wish))
        is_ours = permitted.migration_id in self._cancels  # an order of the gateway's, whose end is told there
        self._cancels.setdefault(permitted.migration_id, trio.Event())
        tell = self._telling(permitted.migration_id)
        order = _order_of(permitted)
        try:
            return await carry_as_source(
                self._host,
                order,
                tell,
                self._cancels[permitted.migration_id],
                end=lambda _permit: self._host.libvirt_source(wish.vm, conversation),
            )
        except (TransportError, HypervisorError) as error:
            await tell(News("failed", None, None, str(error)))
            raise
        finally:
            if not is_ours:
                del self._cancels[permitted.migration_id]

    async def _inspect(self, asked: Inspect) -> None:
        try:
            config = self._host.config
            found = await (
                inspect_source(config, asked.vm)
                if asked.wanted is None
                else inspect_destination(config, asked.vm, asked.wanted)
            )
            await self._link.answer_inspection(asked.inspection_id, found)
        except Exception:
            # The edge: a bug in a question must not end the sessions.
            log.exception("inspection ended by a bug", vm=asked.vm)
        finally:
            self._inspecting.discard(asked.inspection_id)

    async def _migrate(self, assignment: Migrate) -> None:
        tell = self._telling(assignment.migration_id)
        try:
            if self._host.config.hypervisor.kind == "libvirt" and not self._is_of_program(assignment):
                if (trouble := await self._orders.carry_out(assignment)) is not None:
                    await tell(News("failed", None, None, trouble))
            else:
                await carry_as_source(self._host, _order_of(assignment), tell, self._cancels[assignment.migration_id])
        except (TransportError, HypervisorError) as error:
            log.warning("migration not begun", migration=assignment.migration_id, cause=str(error))
            await tell(News("cancelled" if isinstance(error, MigrationCancelled) else "failed", None, None, str(error)))
        except Exception:
            # The edge: a bug in one session must not end the others.
            log.exception("migration ended by a bug", migration=assignment.migration_id)
            await tell(News("failed", None, None, "internal error of the source relay; see its log"))
        finally:
            del self._cancels[assignment.migration_id]

    def _is_of_program(self, assignment: Migrate) -> bool:
        """Whether it opens a named port, which no hypervisor has to do with. `OfferRefused`."""
        host = self._host
        permit = host.permits.verify(
            assignment.permit, assignment.other_permit, source=host.spiffe_id, destination=None
        )
        return not permit.claims.moves_guest

    async def end_when_drained(self, scope: trio.CancelScope) -> None:
        """Once nothing new is taken: wait for the last session, then for its receipt to be told, and end."""
        board = self._host.board
        while not board.is_draining or not board.is_empty or self.destination.admissions.is_busy or self._cancels:
            await trio.sleep(_DRAIN_LOOK_SECONDS)
        log.info("drained: ending")
        scope.cancel()

    def recover(self) -> None:
        """Take up every session that a former process of this relay left unfinished."""
        host = self._host
        for journal in host.spool.unfinished(Role.DESTINATION):
            permit = _permit_of(host, journal)
            too_old = permit.claims.session_until + host.config.limits.remember_outcome_seconds < time.time()
            if too_old and journal.state in ("started", "discarded"):
                journal.append("ended")
            else:
                self.destination.recover(journal, permit)
        for journal in host.spool.unfinished(Role.SOURCE):
            self._nursery.start_soon(self._settle_recovered, journal)

    async def _settle_recovered(self, journal: SessionJournal) -> None:
        host = self._host
        permit = _permit_of(host, journal)
        journal.facts["recovered"] = True
        seconds = host.config.limits.migration_deadline_seconds
        former_end = host.source_end(permit, journal.facts, 300, seconds)
        async with host.leaving(permit.claims.vm, is_recovered=True), former_end as end:
            facts = ReceiptFacts(Role.SOURCE, permit, end.vm_binding, now(), local_leaf_sha256(host.credentials))
            session = SourceSession(host, permit, str(journal.facts["address"]), journal, facts)
            session.message = "the relay at the source was restarted during the migration"
            tell = NewsDesk(self._link, permit.claims.migration_id, self._nursery).tell
            await settle_source(session, end, tell)
        news = await close_source(session, tell)
        if news.state != "completed":
            await host.on_disk(host.evacuations.stayed, permit.claims.vm, permit.claims.destination)

    def _log_refused(self, who: str, event: str, **facts: object) -> None:
        """At most a line a second for each host, and for all strangers: nobody fills the disk, or hides another."""
        if trio.current_time() - self._refusal_logged.get(who, -math.inf) >= _REFUSED_LOG_SECONDS:
            self._refusal_logged[who] = trio.current_time()
            log.warning(event, **facts)


def drain(host: RelayHost) -> None:
    """Take nothing new from now on; what is under way goes on. There is no way back but a new process."""
    if not host.board.is_draining:
        log.warning("draining: nothing new is taken", sessions=len(host.board.entries))
        host.board.is_draining = True
        systemd.notify("STATUS=draining: ends with its last session")


def _order_of(permitted: Migrate) -> MigrationOrder:
    return MigrationOrder(
        permitted.permit,
        permitted.destination_address,
        permitted.downtime_limit_ms,
        permitted.deadline_seconds,
        permitted.how,
        permitted.other_permit,
    )


def _permit_of(host: RelayHost, journal: SessionJournal) -> VerifiedPermit:
    """The permit of a journal, its signature checked again: a pinned key that went away is the operator's to decide."""
    try:
        other = journal.facts.get("other_permit")
        return host.permits.reopen(str(journal.facts["permit"]), None if other is None else str(other))
    except PermitRefused as refused:
        raise SpoolFailed(f"{journal.path}: its permit is not accepted any more ({refused.detail})") from None


async def serve_relay(host: RelayHost, ready: Callable[[str], None], ask: Ask | None = None) -> None:
    """Run until cancelled. `ready` is told the address once the port listens and recovery has begun.

    `ask`: who permits what callers of the front want, if not the gateway.
    """
    listening = _listening(host)
    link = GatewayLinks(host)
    try:
        async with trio.open_nursery() as nursery:
            relay = Relay(host, nursery, link, ask or link.admit)
            relay.recover()
            nursery.start_soon(relay.operators.serve, listen_for_operators(host.control_socket))
            nursery.start_soon(relay.end_when_drained, nursery.cancel_scope)
            if at := host.config.metrics.listen:
                ports = [listen_tcp(*split_address(at, "metrics.listen"))]
                nursery.start_soon(serve_metrics, ports, host.metrics)
            nursery.start_soon(relay.listener.serve, listening)
            keeper = IdentityKeeper(host, link)
            nursery.start_soon(keeper.run)
            nursery.start_soon(link.run, relay.take, keeper.hear)
            nursery.start_soon(tell_refused_calls, host.refused_calls, link.report_refused_calls)
            if sources := sources_of(host.config):
                seconds = host.config.placement
                sends = [partial(link.report_placement, each) for each in link.all]
                watch = Watch(sources, seconds.scan_seconds, seconds.report_seconds, sends[0], sends[1:])
                nursery.start_soon(watch.run)
            start_front(host, relay.migrate_for_caller, relay.announced, nursery)
            name = listening.getsockname()
            ready(f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}")
    finally:
        listening.close()
        with trio.move_on_after(1, shield=True):
            await link.close()


def _words_for(code: RefusalCode) -> str:
    """What a refused peer reads, and whoever moves a VM: who knows more of it, and nothing that helps a forger."""
    match code:
        case RefusalCode.HYPERVISOR:
            return "the hypervisor there does not take this VM; the log of the relay there says why"
        case RefusalCode.PERMIT_REPLAYED:  # its first offer met a hypervisor that hung for longer than S waited
            return "this permit was used before, if in vain; the log of the relay there says why"
        case RefusalCode.INTERNAL:
            return "the relay there cannot keep a session; its log says why"
        case _:
            return f"the destination's check of {code.value} failed"


def _listening(host: RelayHost) -> trio.socket.SocketType:
    """systemd's socket, if it holds one for us, else our own."""
    if (inherited := systemd.inherited_socket()) is not None:
        return trio.socket.from_stdlib_socket(inherited)
    return _bind(host.config.relay.listen, host.config.network.dscp)


def _bind(listen: str, dscp: int | None) -> trio.socket.SocketType:
    host, port = split_address(listen, "relay.listen")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if dscp is not None:
            mark_packets(sock, dscp)
        sock.bind((host, port))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise ConfigurationError(f"relay.listen: {listen}: {error.strerror}; stop what holds it or change it") from None
    return trio.socket.from_stdlib_socket(sock)
