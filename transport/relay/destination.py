"""Carriage at the destination: answer, carry what S sends, and see to it that each session is settled."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import structlog
import trio

from certs.tls import ControlPeer, local_leaf_sha256
from policy.permit import VerifiedPermit
from transport.errors import ConnectionBroken, LocalBroken, NobodyListens, SpoolFailed, TransportError
from transport.hypervisors.errors import HypervisorError
from transport.relay.admitting import Admissions
from transport.relay.board import Entry
from transport.relay.channels import Channels
from transport.relay.control import ControlLink
from transport.relay.destination_line import DestinationLine
from transport.relay.destination_session import OUTCOMES, UNDECIDED, DestinationSession, receipt_name
from transport.relay.ends import remove_session_folder
from transport.relay.failures import SessionError, cause_of
from transport.relay.host import RelayHost, now
from transport.relay.listener import LaneDesk
from transport.relay.live import Live
from transport.relay.receipts import ReceiptFacts
from transport.relay.spool import SessionJournal
from transport.relay.used_permits import SKEW_SECONDS
from transport.wire.control import Role
from transport.wire.messages import Cancel, Offer
from transport.wire.session_states import Event, State, follow

log = structlog.get_logger("sealane.relay")
_ENDED = "the destination relay ended the session"
_STARTS = (
    "the hypervisor here is asked to start the guest; if its hypervisor has ended, docs/failures.md says what to do"
)
_MAX_ASKERS = 4  # for one session's outcome; each stays when its connection is gone


class Destination:
    """Carries the sessions in which this host is the destination."""

    def __init__(self, host: RelayHost, nursery: trio.Nursery) -> None:
        self._host = host
        self._nursery = nursery
        self.admissions = Admissions(host, self._bring_to_life)
        host.board.held = self._held

    def _bring_to_life(self, session: DestinationSession) -> None:
        limits = self._host.config.limits
        channels = Channels(Role.DESTINATION, limits, self._host.cores, self._host.memory, session.permit.claims)
        channels.pace = self._host.pace_of(session.permit)
        channels.patience.may_ask = lambda: limits.may_ask_again(self.admissions.resume_seconds(session))
        session.facts.channels = channels.counts
        live = session.live = Live(channels)

        async def run() -> None:
            with self._host.board.session("destination", session.permit.claims) as entry:
                entry.lanes = lambda: session.facts.channels
                entry.state_of = lambda: session.journal.state
                await live.run()

        self._nursery.start_soon(run)

    def _held(self) -> list[Entry]:
        """What waits for its source without a connection, each once: for `relay status`."""
        moment = now().timestamp()
        waits = (s for s in self.admissions.sessions.values() if s.occupies_vm or (s.may_recover and moment < s.until))
        waiting = {id(each): each for each in waits}
        return [_entry_of(each) for each in waiting.values() if each.live is None or each.live.is_over]

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

                async def settle(*, handed_over: bool, post_copy: bool = False) -> Literal["running", "discarded"]:
                    outcome = await self._settle(session, handed_over=handed_over, post_copy=post_copy)
                    deadline.deadline = trio.current_time() + self._seconds_left(session)
                    return outcome

                await DestinationLine(session, link, desk, settle).carry(offer)
                said_bye = True
            if deadline.cancelled_caught:
                if self._host.log_rate.allows("session past its deadline", vm):
                    log.warning("session past its deadline", vm=vm)
                await _say_cancelled(link, "deadline", _ENDED)
        except (TransportError, HypervisorError, BaseExceptionGroup) as error:
            cause = cause_of(error)
            event = Event.LOST if isinstance(cause, ConnectionBroken) else Event.VIOLATION
            is_kept = follow(Role.DESTINATION, State.CONNECTED, event).state is State.LOST
            may_go_on = is_kept and session.may_go_on and self.admissions.resume_seconds(session) > 0
            event_name = "connection lost" if may_go_on else "session broke"
            if self._host.log_rate.allows(event_name, vm):  # S may come back and break off as often as it likes
                log.warning(event_name, vm=vm, cause=str(cause))
            if not may_go_on:
                await _say_broken(link, cause, "hypervisor" if session.permit.claims.moves_guest else "program")
        return said_bye, may_go_on

    async def _after_connection(self, session: DestinationSession, said_bye: bool, may_go_on: bool) -> None:
        carried_by = session.live
        if may_go_on and await session.comes_back(self.admissions.resume_seconds(session)):
            return
        if session.live is not carried_by:
            return  # it is being recovered
        session.let_go()
        await self._after_loss(session, said_bye)

    def give_up(self, migration_id: str) -> None:
        """Discard what is being loaded of this migration, unless the guest was taken: for where S cannot be told."""
        for session in self.admissions.sessions.values():
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
        waits = any(path.stem == receipt_name(permit) for path in self._host.spool.receipts())
        is_kept = waits or facts.get("receipt_kept") is True
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
                lacks_counts=True,
                is_kept=is_kept,  # by a former process, which knew more of it
            ),
        )
        self.admissions.sessions[(str(facts["source"]), str(facts["session_id"]))] = session
        self._hold(session)
        self._nursery.start_soon(self._after_loss, session, False)

    def _seconds_left(self, session: DestinationSession) -> float:
        """How long a connection may take: else a source that goes silent would keep the VM from all others.

        In post-copy the guest runs here, which nobody is kept from, and lacks what an end would keep from it.
        """
        limits = self._host.config.limits
        left = session.until + SKEW_SECONDS - now().timestamp()
        if session.may_recover:
            return max(limits.message_seconds, left)
        of_all = limits.migration_deadline_seconds - (trio.current_time() - session.began)
        return max(limits.message_seconds, min(of_all, left))

    async def _settle(
        self, session: DestinationSession, *, handed_over: bool, post_copy: bool = False
    ) -> Literal["running", "discarded"]:
        """Settle in a task of the relay's own.

        S asks again on a new connection, which ends this one. With a hypervisor that hangs, settling takes longer than
        S is patient, so if it ended with its connection it would begin anew for ever.
        """
        if session.askers >= _MAX_ASKERS:
            raise ConnectionBroken(
                "its source has asked for the outcome before, and the hypervisor has not answered yet"
            )
        session.askers += 1
        told, chosen = trio.open_memory_channel[Literal["running", "discarded"] | TransportError | HypervisorError](1)

        async def work() -> None:
            try:
                told.send_nowait(await session.settle(handed_over=handed_over, post_copy=post_copy))
                self._hold(session)
            except (TransportError, HypervisorError) as error:
                told.send_nowait(error)
            finally:
                session.askers -= 1

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

    async def _after_loss(self, session: DestinationSession, said_bye: bool) -> None:
        """The connection is gone and S may never come back: settle what can be settled without it.

        Once at a time: a hypervisor that hangs would be asked by one more each time that S has come in vain, for ever.
        """
        session.has_said_bye |= said_bye
        if not session.is_left:
            session.is_left = True
            try:
                await self._settle_without_source(session)
            finally:
                session.is_left = False
        for each in self.admissions.outlived(session.permit.claims.source):
            await self._end(each)

    async def _settle_without_source(self, session: DestinationSession) -> None:
        """A guest that is here whole is held, paused, until S says what it did: only S knows whether its own goes on.
        One that is not whole can never run here, so it is discarded."""
        limits = self._host.config.limits
        while True:
            try:
                if session.is_undecided:
                    if await session.holds_whole_guest(limits.drain_seconds):
                        log.warning("guest is here whole, held until its source settles", vm=session.permit.claims.vm)
                        return
                    if session.has_arrived and session.owes_receipt:
                        await session.keep_receipt()  # S's, which would have ended it, was lost alone
                    await session.settle(handed_over=False)
                    self._hold(session)
                while session.journal.state in OUTCOMES and session.owes_receipt and not session.is_carried:
                    await session.keep_receipt()  # of what went before a recovery, which may have ended meanwhile
                if session.journal.state == "admitted" or session.has_said_bye:
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
        while not session.journal.is_ended:
            try:
                await session.note_ended()
            except SpoolFailed as error:  # nobody else would try again, and its VM could not come here any more
                log.error("session cannot be ended yet", vm=session.permit.claims.vm, cause=str(error))
                await trio.sleep(self._host.config.limits.settle_retry_seconds)
        await self._host.on_disk(remove_session_folder, session.folder)
        self.admissions.forget(session)


def _entry_of(session: DestinationSession) -> Entry:
    claims, state = session.permit.claims, session.journal.state
    host = claims.source.rpartition("/")[2]
    until = datetime.fromtimestamp(claims.recover_until, UTC)
    if session.may_recover:
        words = (
            f"the guest runs here and may lack memory, which {host} can bring until {until:%Y-%m-%dT%H:%M:%SZ}: see "
            "that the relays reach each other, and what the status of the one there says"
        )
        return Entry("destination", claims, session.began, state_of=lambda: state, trouble_of=lambda: words)
    words = (
        f"a guest that is here whole is held, paused, until the relay of {host} says where it runs: see that it does; "
        f"if {host} is gone for good, docs/failures.md says what to do"
    )
    return Entry(
        "destination",
        claims,
        session.began,
        state_of=lambda: "held" if state in UNDECIDED else state,
        trouble_of=lambda: words if state in UNDECIDED else _STARTS,
    )


async def _say_cancelled(link: ControlLink, code: str, words: str) -> None:
    """Let S know at once, if the connection still carries it; the outcome it gets when it comes to settle."""
    with suppress(TransportError):
        await link.send(Cancel(code, words))


async def _say_broken(link: ControlLink, cause: SessionError, whose: str) -> None:
    match cause:
        case NobodyListens():
            await _say_cancelled(link, "port", cause.told)
        case HypervisorError() | LocalBroken():
            words = f"the {whose} there failed, refused or hangs; the log of the relay there says which"
            await _say_cancelled(link, "hypervisor", words)
        case _:
            await _say_cancelled(link, "broken", _ENDED)
