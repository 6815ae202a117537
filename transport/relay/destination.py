"""Carriage at the destination: take the offer, verify the permit, note its use, prepare the hypervisor, carry."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec
import structlog
import trio

from certs.tls import ControlPeer, local_leaf_sha256
from policy.permit import VerifiedPermit
from transport.errors import (
    ConnectionBroken,
    LocalBroken,
    OfferRefused,
    ProtocolViolation,
    RefusalCode,
    SpoolFailed,
    TransportError,
)
from transport.hypervisors.errors import HypervisorError
from transport.hypervisors.moving import Movement
from transport.relay.channels import Channels
from transport.relay.control import ControlLink
from transport.relay.destination_session import OUTCOMES, DestinationSession
from transport.relay.ends import Arrival, make_session_folder, remove_session_folder
from transport.relay.failures import cause_of
from transport.relay.host import RelayHost, now
from transport.relay.lane import Channel, PortName
from transport.relay.listener import LaneDesk
from transport.relay.live import Live
from transport.relay.permits import other_in_journal, permits_in_offer
from transport.relay.receipts import ReceiptFacts, receipt_sha256, verify_peer_receipt
from transport.relay.spool import SessionJournal
from transport.relay.tls_lane import Lane, LaneEnds, as_server
from transport.relay.used_permits import SKEW_SECONDS
from transport.wire.control import Phase, Role
from transport.wire.messages import Answer, Bye, Cancel, Handover, Message, Offer, Open, Outcome, Receipt
from transport.wire.session_states import Event, State, follow

log = structlog.get_logger("sealane.relay")
SessionKey = tuple[str, str]  # S's SPIFFE id, session id


class Destination:
    """All sessions in which this host is the destination."""

    def __init__(self, host: RelayHost, nursery: trio.Nursery) -> None:
        self._host = host
        self._nursery = nursery
        self._sessions: dict[SessionKey, DestinationSession] = {}
        self._vms_being_admitted: set[str] = set()
        self._being_admitted: dict[SessionKey, trio.Event] = {}

    async def admit(self, offer: Offer, peer: ControlPeer) -> DestinationSession:
        """The session that this offer begins or comes back to. Raises `OfferRefused`."""
        key = (str(peer.spiffe_id), offer.session_id)
        if offer.purpose == "settle":
            session = self._known(key, offer)
            session.only_settles = True
            return session
        if offer.purpose == "resume":
            return await self._resumed(key, offer)
        if offer.purpose == "recover":
            return await self._recovered(key, offer)
        own, other = offer.permits[-1], offer.permits[0] if len(offer.permits) > 1 else None
        permit = self._host.permits.verify(own, other, source=key[0], destination=self._host.spiffe_id)
        vm = permit.claims.vm
        if key in self._sessions:
            raise OfferRefused(RefusalCode.SESSION_KNOWN, "a session of this name exists")
        if self._host.board.is_draining:
            raise OfferRefused(RefusalCode.BUSY, "this relay is about to be restarted: try again")
        busy = [s for s in self._sessions.values() if s.occupies_vm]
        if vm in self._vms_being_admitted or any(s.permit.claims.vm == vm for s in busy):
            raise OfferRefused(RefusalCode.BUSY, "another session of this VM is under way here")
        if len(busy) + len(self._vms_being_admitted) >= self._host.config.limits.max_sessions:
            raise OfferRefused(RefusalCode.BUSY, "this relay carries as many sessions as it may")
        self._vms_being_admitted.add(vm)
        self._being_admitted[key] = trio.Event()
        try:
            session = await self._begin(key, permit, self._movement(offer))
            session.attempt = offer.attempt
            self._sessions[key] = session
        finally:
            self._vms_being_admitted.discard(vm)
            self._being_admitted.pop(key).set()
        self._bring_to_life(session)
        return session

    async def _recovered(self, key: SessionKey, offer: Offer) -> DestinationSession:
        """The session in whose post-copy S's connection was lost for good, under the name of a new one. Its permit's
        `exp` and use are not looked at again, all else is: to refuse without need would kill the guest."""
        of_host = (each for (source, _), each in self._sessions.items() if source == key[0])
        of_permits = (each for each in of_host if offer.permits == permits_in_offer(each.permit, Role.DESTINATION))
        session = next((each for each in of_permits if each.may_recover), None)
        if session is None:
            raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "no guest of this host and permit is in post-copy here")
        if self._host.board.is_draining:
            raise OfferRefused(RefusalCode.BUSY, "this relay is about to be restarted: try again")
        if now().timestamp() > session.permit.claims.recover_until + SKEW_SECONDS:
            raise OfferRefused(RefusalCode.PERMIT_TIMES, "past recover_until")
        if key in self._sessions or key in self._being_admitted:
            raise OfferRefused(RefusalCode.SESSION_KNOWN, "a session of this name exists")
        self._being_admitted[key] = trio.Event()
        former = (key[0], session.recovery_id)
        try:
            await session.recover(offer.session_id, offer.attempt)
            self._sessions.pop(former, None)  # that of a recovery that was interrupted, too
            self._sessions[key] = session
        except (HypervisorError, LocalBroken) as error:
            raise OfferRefused(RefusalCode.HYPERVISOR, f"post-copy cannot be recovered: {error}") from None
        finally:
            self._being_admitted.pop(key).set()
        log.warning("post-copy goes on in a new session", vm=session.permit.claims.vm)
        self._bring_to_life(session)
        return session

    def _bring_to_life(self, session: DestinationSession) -> None:
        channels = Channels(Role.DESTINATION, self._host.config.limits.window_bytes, session.permit.claims)
        channels.pace = self._host.pace_of(session.permit)
        session.facts.channels = channels.counts
        live = session.live = Live(channels)

        async def run() -> None:
            with self._host.board.session("destination", session.permit.claims) as entry:
                entry.lanes = lambda: session.facts.channels
                entry.state_of = lambda: session.journal.state
                await live.run()

        self._nursery.start_soon(run)

    async def serve(
        self,
        session: DestinationSession,
        offer: Offer,
        link: ControlLink,
        desk: LaneDesk,
        ends: tuple[ControlPeer, bytes],
    ) -> None:
        """Carry one connection of `session` until Bye or a break; then see to it that it is taken up or settled.

        `ends`: the peer, and SHA-256 of the certificate that this host has shown it.
        """
        said_bye = may_go_on = False
        with trio.CancelScope() as scope:
            if not await session.take_connection(scope, offer.attempt):
                return
            try:
                session.facts.peer, session.facts.own_leaf_sha256 = ends
                session.facts.connections += 1
                if session.only_settles:
                    session.let_go()
                said_bye, may_go_on = await self._carry_until_lost(session, offer, link, desk)
            except Exception:
                # A bug of ours, which our caller logs: the VM must not stay occupied because of it.
                session.let_go()
                self._nursery.start_soon(self._after_loss, session, False)
                raise
            finally:
                session.leave_connection()
        if said_bye and session.has_receipt:
            await self._end(session)
        elif not scope.cancelled_caught:
            self._nursery.start_soon(self._after_connection, session, said_bye, may_go_on)

    async def _carry_until_lost(
        self, session: DestinationSession, offer: Offer, link: ControlLink, desk: LaneDesk
    ) -> tuple[bool, bool]:
        """Whether it ended with Bye, and whether it may go on over another connection. Raises what is a bug of ours."""
        vm = session.permit.claims.vm
        said_bye = may_go_on = False
        try:
            with trio.move_on_after(self._seconds_left(session)) as deadline:
                await self._carry(session, offer, link, desk)
                said_bye = True
            if deadline.cancelled_caught:
                log.warning("session past its deadline", vm=vm)
                await _say_cancelled(link, "deadline")
        except (TransportError, HypervisorError, BaseExceptionGroup) as error:
            cause = cause_of(error)
            event = Event.LOST if isinstance(cause, ConnectionBroken) else Event.VIOLATION
            is_kept = follow(Role.DESTINATION, State.CONNECTED, event).state is State.LOST
            may_go_on = is_kept and session.may_go_on and self._resume_seconds(session) > 0
            log.warning("connection lost" if may_go_on else "session broke", vm=vm, cause=str(cause))
            if not may_go_on:
                of_hypervisor = isinstance(cause, (HypervisorError, LocalBroken))
                await _say_cancelled(link, "hypervisor" if of_hypervisor else "broken")
        return said_bye, may_go_on

    async def _after_connection(self, session: DestinationSession, said_bye: bool, may_go_on: bool) -> None:
        carried_by = session.live
        if may_go_on and await session.comes_back(self._resume_seconds(session)):
            return
        if session.live is not carried_by:
            return  # it is being recovered
        session.let_go()
        await self._after_loss(session, said_bye)

    def _resume_seconds(self, session: DestinationSession) -> float:
        """For how long a lost connection may be replaced by another."""
        left = session.until + SKEW_SECONDS - now().timestamp()
        return max(0.0, min(self._host.config.limits.resume_seconds, left))

    @property
    def is_busy(self) -> bool:
        """Whether a guest's way is not decided yet, with or without its connection."""
        return bool(self._vms_being_admitted) or any(session.occupies_vm for session in self._sessions.values())

    def give_up(self, migration_id: str) -> None:
        """Discard what is being loaded of this migration, unless the guest was taken: for where S cannot be told."""
        for session in self._sessions.values():
            if session.permit.claims.migration_id == migration_id and session.journal.state == "prepared":
                self._nursery.start_soon(self._give_up, session)

    async def _give_up(self, session: DestinationSession) -> None:
        # Chosen under the same lock as the answer to a handover: whichever is first, S is told the same for ever.
        try:
            outcome = await session.settle(handed_over=False)
        except (HypervisorError, TransportError) as error:
            log.error("session cannot be given up", vm=session.permit.claims.vm, cause=str(error))
            return
        log.warning("the gateway asked for the end", vm=session.permit.claims.vm, outcome=outcome)

    def recover(self, journal: SessionJournal, permit: VerifiedPermit) -> None:
        """Take up what a former process of this relay left."""
        facts = journal.facts
        end = self._host.destination_end(permit, facts)
        session = DestinationSession(
            self._host,
            permit,
            journal,
            end,
            Path(str(facts["folder"])),
            ReceiptFacts(
                Role.DESTINATION,
                permit,
                end.vm_binding,
                datetime.fromisoformat(str(facts["started_at"])),
                local_leaf_sha256(self._host.credentials),
            ),
        )
        self._sessions[(str(facts["source"]), str(facts["session_id"]))] = session
        self._hold(session)
        self._nursery.start_soon(self._after_loss, session, False)

    def _seconds_left(self, session: DestinationSession) -> float:
        """How long a connection may take: else a source that goes silent would keep the VM from all others."""
        limits = self._host.config.limits
        left = session.until + SKEW_SECONDS - now().timestamp()
        of_all = limits.migration_deadline_seconds - (trio.current_time() - session.began)
        return max(limits.message_seconds, min(of_all, left))

    def _known(self, key: SessionKey, offer: Offer) -> DestinationSession:
        session = self._sessions.get(key)
        if session is None:
            raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "no session of this name and host is known here")
        if offer.permits != permits_in_offer(session.permit, Role.DESTINATION):
            raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "the session was begun under another permit")
        if offer.attempt <= session.attempt:
            raise OfferRefused(RefusalCode.PROTOCOL, "an attempt that does not increase")
        session.attempt = offer.attempt
        return session

    async def _resumed(self, key: SessionKey, offer: Offer) -> DestinationSession:
        """The session whose connection S has lost. Neither `exp` nor single use are looked at again, all else is."""
        if (admission := self._being_admitted.get(key)) is not None:  # S may have lost its Answer before it was given
            with trio.move_on_after(self._host.config.limits.message_seconds):
                await admission.wait()
        session = self._known(key, offer)
        if not session.may_go_on:
            raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "the session's channels are gone: it can only be settled")
        if self._resume_seconds(session) <= 0:
            raise OfferRefused(RefusalCode.PERMIT_TIMES, "the session is past its permit, or is not to be resumed here")
        return session

    def _movement(self, offer: Offer) -> Movement:
        """How S's QEMU is going to send; only QEMUs that a relay drives are told. `OfferRefused` for what none can."""
        if offer.movement is msgspec.UNSET:
            return Movement()
        if (problem := offer.movement.problem()) is not None:
            raise OfferRefused(RefusalCode.PROTOCOL, problem)
        if self._host.config.hypervisor.kind != "qmp":
            raise OfferRefused(RefusalCode.HYPERVISOR, "no QEMU here is driven by the relay (hypervisor.kind)")
        return offer.movement

    async def _begin(self, key: SessionKey, permit: VerifiedPermit, movement: Movement) -> DestinationSession:
        """Spend the permit, note the session, prepare the hypervisor: in this order, each durable before the next."""
        host = self._host
        claims = permit.claims
        name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:32]
        started = now()
        try:
            both = [permit] if permit.other is None else [permit, permit.other]
            uses = [(each.key_id, each.claims.jti, each.claims.exp) for each in both]
            await host.on_disk(host.used_permits.use_all, uses, int(started.timestamp()))
            folder = await host.on_disk(make_session_folder, host.spool.run_dir, name, host.qemu_uid)
            journal = await host.on_disk(
                host.spool.begin,
                Role.DESTINATION,
                name,
                session_id=key[1],
                source=key[0],
                permit=permit.token,
                **other_in_journal(permit),
                folder=str(folder),
                started_at=started.isoformat(),
            )
        except (SpoolFailed, OSError) as error:
            log.error("no session can be noted durably", cause=str(error))
            raise OfferRefused(RefusalCode.INTERNAL, "the relay cannot write its spool") from None
        end = host.destination_end(permit, {}, movement)
        facts = ReceiptFacts(Role.DESTINATION, permit, end.vm_binding, started, local_leaf_sha256(host.credentials))
        session = DestinationSession(host, permit, journal, end, folder, facts)
        try:
            process = await end.prepare(folder)
            await host.enter(journal, "prepared", process=process, **end.facts)
        except (HypervisorError, LocalBroken, ValueError) as error:
            # Whatever is behind that monitor was not prepared by us, so it is left alone.
            log.warning("hypervisor not ready", vm=claims.vm, cause=str(error))
            await end.__aexit__(None, None, None)
            await host.enter(journal, "ended")
            await host.on_disk(remove_session_folder, folder)
            raise OfferRefused(RefusalCode.HYPERVISOR, f"no hypervisor waits for this VM: {error}") from None
        except SpoolFailed as error:
            log.error("a prepared session cannot be noted durably", vm=claims.vm, cause=str(error))
            await end.__aexit__(None, None, None)
            raise OfferRefused(RefusalCode.INTERNAL, "the relay cannot write its spool") from None
        return session

    async def _carry(self, session: DestinationSession, offer: Offer, link: ControlLink, desk: LaneDesk) -> None:
        """Answer, and do what S says until Bye. Any break raises."""
        limits = self._host.config.limits
        live = session.live if session.may_go_on else None
        channels = live.channels if live is not None else Channels(Role.DESTINATION, limits.window_bytes)
        if len(offer.next) < len(channels.all):
            raise ProtocolViolation("a resumption that leaves channels out")
        channels.rewind(offer.next)
        link.sent_frames, link.acknowledged = channels.sent_frames, channels.acknowledged
        await link.send(Answer(channels.next(), desk.max_channels))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channels.acknowledge, link, limits.ack_interval_seconds)
            if live is not None:
                nursery.start_soon(live.watch)
            for channel in channels.all:
                nursery.start_soon(self._carry_lane, session, channels, channel, desk)
            message: Message | None = None
            while not isinstance(message, Bye):
                message = await link.next()
                await self._do(message, session, link, desk, channels, nursery)
            nursery.cancel_scope.cancel()

    async def _do(
        self,
        message: Message,
        session: DestinationSession,
        link: ControlLink,
        desk: LaneDesk,
        channels: Channels,
        nursery: trio.Nursery,
    ) -> None:
        limits = self._host.config.limits
        if link.order.phase is Phase.SETTLED and isinstance(message, (Open, Handover, Cancel)):
            return  # it was under way when we chose, and changes nothing
        match message:
            case Open(port=port):
                channel = await self._open(session, channels, port)
                nursery.start_soon(self._carry_lane, session, channels, channel, desk)
            case Handover(post_copy=post_copy):
                outcome = await self._settle(session, handed_over=True, post_copy=post_copy)
                log.info("handover", vm=session.permit.claims.vm, outcome=outcome)
                await link.send(Outcome(outcome))
            case Cancel():
                outcome = await self._settle(session, handed_over=False)
                await link.send(Outcome(outcome))
            case Receipt() as receipt:
                assert session.facts.peer is not None
                verify_peer_receipt(receipt, session.facts.peer)
                await channels.wait_drained(limits.drain_seconds)
                session.facts.peer_receipt_sha256 = receipt_sha256(receipt)
                await link.send(await session.keep_receipt())
            case Bye():
                pass

    async def _open(self, session: DestinationSession, channels: Channels, port: PortName) -> Channel:
        """Dial the hypervisor for the next channel, one after the other, in the order in which S accepted: QEMU counts
        on it. A connection that is lost meanwhile waits: a hypervisor that was dialled twice would take the second for
        another channel."""
        if not session.may_go_on or session.live is None:
            # Neither the permit's times nor its use were looked at again, so nothing is carried on it.
            raise ProtocolViolation("a channel on a connection that only settles")
        if port not in session.permit.claims.ports:
            raise ProtocolViolation(f"port {port} is not the permit's")
        nursery = await session.live.nursery()
        arrival = Arrival(session.folder, self._host.config.limits.dial_seconds, nursery, session.note_loaded)
        with trio.CancelScope(shield=True):
            local = await session.end.dial(port, arrival)
        # Not the first memory channel: it says at once that QEMU has died. Disks may come before it.
        is_further = any(each.port == port for each in channels.counts)
        may_leave = session.end.hands_over and port == "memory" and is_further
        return channels.add(port, local, may_leave=may_leave)

    async def _settle(
        self, session: DestinationSession, *, handed_over: bool, post_copy: bool = False
    ) -> Literal["running", "discarded"]:
        """Settle in a task of the relay's own.

        S asks again on a new connection, which ends this one. With a hypervisor that hangs, settling takes longer than
        S is patient, so if it ended with its connection it would begin anew for ever.
        """
        told, chosen = trio.open_memory_channel[Literal["running", "discarded"] | TransportError | HypervisorError](1)

        async def work() -> None:
            try:
                told.send_nowait(await session.settle(handed_over=handed_over, post_copy=post_copy))
                self._hold(session)
            except (TransportError, HypervisorError) as error:
                told.send_nowait(error)

        self._nursery.start_soon(work)
        outcome = await chosen.receive()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _hold(self, session: DestinationSession) -> None:
        """See to it that a guest in post-copy can be recovered, until all of its memory is here."""
        if session.may_recover and not session.is_held:
            session.is_held = True
            self._nursery.start_soon(session.end.hold_until_whole)

    async def _carry_lane(
        self, session: DestinationSession, channels: Channels, channel: Channel, desk: LaneDesk
    ) -> None:
        number, seconds = channel.counts.channel, self._host.config.limits.handshake_seconds
        sock = None
        with trio.move_on_after(seconds):
            sock = await desk.take(number)
        if sock is None:
            raise ConnectionBroken("a lane that was announced did not come")
        lane: Lane = sock
        if channels.is_tls:
            assert session.facts.peer is not None
            identity = self._host.identity
            ends = LaneEnds(identity.credentials, session.facts.peer.leaf_sha256, desk.keys, now(), seconds)
            lane = await as_server(sock, identity.context, number, ends)
        await channels.carry(channel, desk.keys, lane)

    async def _after_loss(self, session: DestinationSession, said_bye: bool) -> None:
        """The connection is gone and S may never come back: settle what can be settled without it.

        A guest that is here whole is held, paused, until S says what it did: only S knows whether its own goes on. One
        that is not whole can never run here, so it is discarded.
        """
        limits = self._host.config.limits
        while True:
            try:
                if session.is_undecided:
                    if await session.holds_whole_guest(limits.drain_seconds):
                        log.warning("guest is here whole, held until its source settles", vm=session.permit.claims.vm)
                        return
                    await session.settle(handed_over=False)
                    self._hold(session)
                if session.journal.state in OUTCOMES and not session.has_receipt:
                    await session.keep_receipt()
                if session.journal.state == "admitted" or said_bye:
                    await self._end(session)
                return
            except (TransportError, HypervisorError) as error:
                log.error("session cannot be settled yet", vm=session.permit.claims.vm, cause=str(error))
                await trio.sleep(limits.settle_retry_seconds)

    async def _end(self, session: DestinationSession) -> None:
        """S knows the outcome, or there is none: nothing is owed to anyone any more."""
        session.let_go()
        if not session.is_held:
            await session.end.__aexit__(None, None, None)
        if not session.journal.is_ended:
            await self._host.enter(session.journal, "ended")
        await self._host.on_disk(remove_session_folder, session.folder)
        for key in [k for k, s in self._sessions.items() if s is session]:
            del self._sessions[key]


async def _say_cancelled(link: ControlLink, code: str) -> None:
    """Let S know at once, if the connection still carries it; the outcome it gets when it comes to settle."""
    try:
        await link.send(Cancel(code, "the destination relay ended the session"))
    except TransportError:
        pass
