"""Carriage at the destination: take the offer, verify the permit, note its use, prepare the hypervisor, carry."""

from __future__ import annotations

import hashlib
import socket
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
from transport.relay.lane import ChannelCounts
from transport.relay.listener import LaneDesk
from transport.relay.receipts import ReceiptFacts, receipt_sha256, verify_peer_receipt
from transport.relay.spool import SessionJournal
from transport.relay.used_permits import SKEW_SECONDS
from transport.wire.control import Phase, Role
from transport.wire.messages import Answer, Bye, Cancel, Handover, Message, Offer, Open, Outcome, Receipt

log = structlog.get_logger("sealane.relay")
SessionKey = tuple[str, str]  # S's SPIFFE id, session id


class Destination:
    """All sessions in which this host is the destination."""

    def __init__(self, host: RelayHost, nursery: trio.Nursery) -> None:
        self._host = host
        self._nursery = nursery
        self._sessions: dict[SessionKey, DestinationSession] = {}
        self._vms_being_admitted: set[str] = set()

    async def admit(self, offer: Offer, peer: ControlPeer) -> DestinationSession:
        """The session that this offer begins or comes back to. Raises `OfferRefused`."""
        key = (str(peer.spiffe_id), offer.session_id)
        if len(offer.permits) != 1:
            raise OfferRefused(RefusalCode.PERMIT_FORMAT, "permits of two sites are not supported yet")
        if offer.purpose == "settle":
            return self._known(key, offer)
        permit = self._host.permits.verify(offer.permits[0], source=key[0], destination=self._host.spiffe_id)
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
        try:
            session = await self._begin(key, permit, self._movement(offer))
        finally:
            self._vms_being_admitted.discard(vm)
        self._sessions[key] = session
        session.attempt = offer.attempt
        return session

    async def serve(self, session: DestinationSession, link: ControlLink, desk: LaneDesk, peer: ControlPeer) -> None:
        """Carry one answered connection of `session` until Bye or a break; then see to it that it is settled."""
        session.facts.peer = peer
        session.facts.connections += 1
        said_bye = False
        with self._host.board.session("destination", session.permit.claims) as entry, trio.CancelScope() as scope:
            entry.lanes = lambda: session.facts.channels
            entry.state_of = lambda: session.journal.state
            await session.take_connection(scope)
            try:
                said_bye = await self._carry_until_lost(session, link, desk)
            except Exception:
                # A bug of ours, which our caller logs: the VM must not stay occupied because of it.
                self._nursery.start_soon(self._after_loss, session, False)
                raise
            finally:
                session.leave_connection()
        if said_bye and session.has_receipt:
            await self._end(session)
        elif not scope.cancelled_caught:
            self._nursery.start_soon(self._after_loss, session, said_bye)

    async def _carry_until_lost(self, session: DestinationSession, link: ControlLink, desk: LaneDesk) -> bool:
        """Whether it ended with Bye. Raises what is a bug of ours."""
        said_bye = False
        try:
            with trio.move_on_after(self._seconds_left(session)) as deadline:
                said_bye = await self._carry(session, link, desk)
            if deadline.cancelled_caught:
                log.warning("session past its deadline", vm=session.permit.claims.vm)
                await _say_cancelled(link, "deadline")
        except (TransportError, HypervisorError, BaseExceptionGroup) as error:
            cause = cause_of(error)
            log.warning("session broke", vm=session.permit.claims.vm, cause=str(cause))
            of_hypervisor = isinstance(cause, (HypervisorError, LocalBroken))
            await _say_cancelled(link, "hypervisor" if of_hypervisor else "broken")
        return said_bye

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
        self._nursery.start_soon(self._after_loss, session, False)

    def _seconds_left(self, session: DestinationSession) -> float:
        """How long a connection may take: else a source that goes silent would keep the VM from all others."""
        limits = self._host.config.limits
        left = session.permit.claims.session_until + SKEW_SECONDS - now().timestamp()
        return max(limits.message_seconds, min(limits.migration_deadline_seconds, left))

    def _known(self, key: SessionKey, offer: Offer) -> DestinationSession:
        session = self._sessions.get(key)
        if session is None:
            raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "no session of this name and host is known here")
        if offer.permits[0] != session.permit.token:
            raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "the session was begun under another permit")
        if offer.attempt <= session.attempt:
            raise OfferRefused(RefusalCode.PROTOCOL, "an attempt that does not increase")
        session.attempt = offer.attempt
        session.only_settles = True
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
            await host.on_disk(host.used_permits.use, permit.key_id, claims.jti, claims.exp, int(started.timestamp()))
            folder = await host.on_disk(make_session_folder, host.spool.run_dir, name, host.qemu_uid)
            journal = await host.on_disk(
                host.spool.begin,
                Role.DESTINATION,
                name,
                session_id=key[1],
                source=key[0],
                permit=permit.token,
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

    async def _carry(self, session: DestinationSession, link: ControlLink, desk: LaneDesk) -> bool:
        """Answer, and do what S says until Bye (True). Any break raises."""
        limits = self._host.config.limits
        channels = Channels(Role.DESTINATION, desk.keys)
        channels.pace = self._host.pace_of(session.permit)
        if not session.facts.channels:
            session.facts.channels = channels.counts
        link.sent_frames = channels.sent_frames
        await link.send(Answer({}, desk.max_channels))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channels.acknowledge, link, limits.ack_interval_seconds)
            message: Message | None = None
            while not isinstance(message, Bye):
                message = await link.next()
                await self._do(message, session, link, desk, channels, nursery)
            nursery.cancel_scope.cancel()
        return True

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
                if session.only_settles:
                    # Neither the permit's times nor its use were looked at again, so nothing is carried on it.
                    raise ProtocolViolation("a channel on a connection that only settles")
                if port not in session.permit.claims.ports:
                    raise ProtocolViolation(f"port {port} is not the permit's")
                counts = channels.add(port)
                # Not the first: it says at once that QEMU has died.
                counts.may_leave = session.end.hands_over and port == "memory" and counts.channel > 0
                # Dialled here, one after the other, in the order in which S accepted: QEMU counts on it.
                local = await session.end.dial(
                    port, Arrival(session.folder, limits.dial_seconds, nursery, session.note_loaded)
                )
                nursery.start_soon(self._carry_lane, channels, counts, local, desk)
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
            except (TransportError, HypervisorError) as error:
                told.send_nowait(error)

        self._nursery.start_soon(work)
        outcome = await chosen.receive()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _carry_lane(
        self, channels: Channels, counts: ChannelCounts, local: socket.socket, desk: LaneDesk
    ) -> None:
        with local:
            lane = None
            with trio.move_on_after(self._host.config.limits.handshake_seconds):
                lane = await desk.take(counts.channel)
            if lane is None:
                raise ConnectionBroken("a lane that was announced did not come")
            await channels.carry(counts, local, lane)

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
