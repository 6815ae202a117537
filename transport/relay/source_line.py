"""S's connection to D while it lives, and another one when it is lost: neither hypervisor notices more than time.

A connection lives and dies whole: its control connection, its lanes and its keys. What must outlive it stands in
`Channels`. What is asked of D (`ask`) is asked again on the next connection, so D answers the same question alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import structlog
import trio

from transport.errors import ConnectionBroken, OfferRefused, PeerCancelled, RefusalCode, TransportError
from transport.hypervisors.moving import PLAIN
from transport.relay.channel import Channel
from transport.relay.channels import Channels
from transport.relay.content_digests import most_channels
from transport.relay.dialling import AnswerLost, SourceConnection, offered
from transport.relay.failures import SessionError, cause_of
from transport.relay.host import now
from transport.relay.source_session import SourceSession
from transport.relay.tls_lane import Lane, LaneEnds, as_client
from transport.wire.control import Role
from transport.wire.messages import Bye, Cancel, Handover, Open, Outcome, Purpose, Receipt
from transport.wire.session_states import Event, State, follow

log = structlog.get_logger("sealane.relay")
_FIRST_PAUSE_SECONDS = 0.05
_MAX_PAUSE_SECONDS = 2.0
_UNANSWERED = "the destination relay has not answered in time"
_LAST_WORDS_SECONDS = 0.5  # D closes lanes before it says why, and a busy host takes a moment in between
A = TypeVar("A", Outcome, Receipt)


class SourceLine:
    """Of one source session. `run` beside whatever uses it."""

    def __init__(self, session: SourceSession) -> None:
        limits = session.host.config.limits
        self._session = session
        self._limits = limits
        self.channels = Channels(Role.SOURCE, limits, session.host.cores, session.host.memory, session.permit.claims)
        self.channels.patience.may_ask = lambda: self._limits.may_ask_again(self._patience())
        self.most_channels = 0
        self._connection: SourceConnection | None = None
        self._generation = 0
        self._unanswered = trio.Event()  # on the connection that lives now
        self._changed = trio.Event()
        self._answers: dict[type, Outcome | Receipt] = {}
        self._has_ended = False
        self._state = State.BEGINNING
        self._was_busy = False  # D, which may be about to be restarted

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and again whenever the connection is lost; started once D has answered for the first time.

        Raises what ended the session: `ConnectionBroken` if D could not be reached again in time.
        """
        pause, until = _FIRST_PAUSE_SECONDS, 0.0
        try:
            while True:
                before = self.channels.carried_frames
                was_answered = self._session.was_answered
                try:
                    await self._connect_once(task_status)
                except (TransportError, BaseExceptionGroup) as error:
                    cause = cause_of(error)
                    if not self._goes_on_after(cause):
                        raise cause from None
                was_lost = self._connection is not None
                self._connection = None
                self._note_change()
                if was_lost or not until:
                    until = trio.current_time() + self._patience()
                    if self._may_say("connection lost"):
                        log.warning("connection lost", session=self._session.session_id, cause=str(cause))
                    self._session.is_reconnecting = was_answered or was_lost
                if self.channels.carried_frames > before:  # else a peer that breaks each at once would keep us busy
                    pause = _FIRST_PAUSE_SECONDS
                if trio.current_time() >= until:
                    self._follow(Event.DEADLINE)
                    raise cause
                await trio.sleep(min(pause * random.uniform(0.75, 1.25), max(0.0, until - trio.current_time())))  # noqa: S311
                pause = min(2 * pause, _MAX_PAUSE_SECONDS)
        finally:
            self._has_ended = True
            self._connection = None
            self._note_change()

    async def ask(self, message: Handover | Callable[[], Receipt], kind: type[A]) -> A:
        """D's answer to `message`; a receipt is taken anew for each connection. `ConnectionBroken` if D gives none
        although it can be reached, or cannot be.

        A guest that was given away in post-copy lives by this connection's channels alone, so an answer that is lost on
        its way must not end them: it is asked for again over another, for as long as lost connections are replaced.
        """
        lives_by_it = isinstance(message, Handover) and message.post_copy
        until = trio.current_time() + self._limits.resume_seconds if lives_by_it else 0.0
        while (answer := await self._answer_in_time(message, kind)) is None:
            if trio.current_time() >= until:
                raise ConnectionBroken(_UNANSWERED)
            await self._leave_connection()
        return answer

    async def _answer_in_time(self, message: Handover | Callable[[], Receipt], kind: type[A]) -> A | None:
        """Over the connection that lives, or whichever comes; None if D is silent on one that is there."""
        asked_on = 0
        with trio.CancelScope() as patience:
            while not isinstance(answer := self._answers.get(kind), kind):
                if self._has_ended:
                    raise ConnectionBroken("the destination relay cannot be reached any more")
                if self._connection is None:
                    patience.deadline = float("inf")
                elif asked_on != self._generation:
                    asked_on = self._generation
                    patience.deadline = trio.current_time() + self._limits.message_seconds
                    try:
                        await self._connection.link.send(message if isinstance(message, Handover) else message())
                    except ConnectionBroken:
                        pass  # whoever reads from it notices too
                    continue
                await self._changed.wait()
            return answer
        return None

    async def _leave_connection(self) -> None:
        """For another one."""
        former = self._generation
        self._unanswered.set()
        while self._connection is not None and self._generation == former:
            await self._changed.wait()

    async def say_bye(self) -> None:
        if self._connection is not None:
            await self._connection.link.send(Bye())

    def _patience(self) -> float:
        """For how long to try from now on."""
        session = self._session
        begins = self._state is State.BEGINNING and not session.recovery_id and not session.is_offered
        left = (session.permit.claims.exp if begins else session.until) - now().timestamp()
        return max(0.0, min(self._limits.resume_seconds, left))

    def _goes_on_after(self, cause: SessionError) -> bool:
        """Whether another connection may help. What the peer does wrong, or refuses, it would do again."""
        event = self._event_of(cause)
        self._session.is_offered = event is Event.OFFER_LOST
        state = self._follow(event)
        if state is not State.OVER and not self._limits.resume_seconds:
            state = self._follow(Event.DEADLINE)
        return state is not State.OVER

    def _event_of(self, cause: SessionError) -> Event:
        session, is_beginning = self._session, self._state is State.BEGINNING
        if isinstance(cause, OfferRefused):
            # D has no place now, or never had our first offer, or another host answers at its address, for now: whoever
            # sits in between can do the latter two, and must end nobody's session.
            never_heard = session.is_offered and cause.code is RefusalCode.SESSION_UNKNOWN
            self._was_busy |= cause.code is RefusalCode.BUSY
            if is_beginning and (never_heard or cause.code is RefusalCode.BUSY):
                return Event.NEVER_HEARD
            is_another = self._state is State.LOST and cause.code is RefusalCode.PERMIT_PARTIES
            return Event.ANOTHER_HOST if is_another else Event.REFUSED
        if not isinstance(cause, ConnectionBroken):
            return Event.VIOLATION
        if not is_beginning:
            return Event.LOST
        if session.is_offered or isinstance(cause, AnswerLost):
            return Event.OFFER_LOST
        return Event.AWAY if self._was_busy else Event.NOT_OFFERED

    def _follow(self, event: Event) -> State:
        self._state = follow(Role.SOURCE, self._state, event).state
        return self._state

    async def _connect_once(self, task_status: trio.TaskStatus[None]) -> None:
        """One connection until it is lost, which raises."""
        session, host = self._session, self._session.host
        # Once an offer may have reached D, it may know the session: only a session that it does not know begins again.
        purpose: Purpose = "recover" if session.recovery_id else "begin"
        if session.was_answered or session.is_offered:
            purpose = "resume"
        attempt = session.next_attempt()
        following = self.channels.next() if purpose == "resume" else {}
        movement = session.movement if purpose == "begin" else PLAIN  # what D's hypervisor was told then holds
        async with offered(
            host, session.permit, session.address, session.session_id, attempt, purpose, movement, following
        ) as connection:
            link = connection.link
            self.channels.rewind(connection.answer.next)
            link.sent_frames, link.acknowledged = self.channels.sent_frames, self.channels.acknowledged
            # Before what is asked for again: once a guest is being handed over no channel is opened.
            announced = await self._announce(connection, len(connection.answer.next))
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read, connection)
                    nursery.start_soon(self.channels.acknowledge, link, self._limits.ack_interval_seconds)
                    nursery.start_soon(self._open_lanes, connection, announced, nursery)
                    nursery.start_soon(self._give_up_unanswered)
                    self._is_answered(connection, task_status)
            except BaseExceptionGroup as error:
                if isinstance(cause_of(error), ConnectionBroken):
                    await self._hear_last_words(connection)
                raise

    async def _hear_last_words(self, connection: SourceConnection) -> None:
        """A lane that ends may be the end of the session, which D then says, or had said already: what raises here is
        the cause. Whoever took that for a lost connection would come again, and be told only that all is over."""
        with trio.move_on_after(_LAST_WORDS_SECONDS), suppress(ConnectionBroken):
            await self._read(connection)

    async def _give_up_unanswered(self) -> None:
        """`ConnectionBroken` once something was asked in vain: to its kernel the peer may be there all the same."""
        self._unanswered = trio.Event()
        await self._unanswered.wait()
        raise ConnectionBroken(_UNANSWERED)

    def _is_answered(self, connection: SourceConnection, task_status: trio.TaskStatus[None]) -> None:
        session = self._session
        is_first = not session.was_answered
        self._follow(Event.ANSWERED)
        session.answered(connection.peer, connection.own_leaf_sha256)
        session.is_reconnecting = False
        self._connection = connection
        self._generation += 1
        self._note_change()
        if is_first:
            allowed = most_channels(session.permit.claims)
            self.most_channels = min(connection.link.order.max_channels, allowed)
            task_status.started()
        elif self._may_say("session resumed"):
            log.info("session resumed", session=session.session_id, resumptions=session.facts.connections - 1)

    async def _announce(self, connection: SourceConnection, number: int) -> int:
        """Open the channels that there are from `number` on, in the order of their arrival; returns the next number."""
        while number < len(self.channels.all):
            await connection.link.send(Open(number, self.channels.all[number].counts.port))
            number += 1
        return number

    async def _open_lanes(self, connection: SourceConnection, announced: int, nursery: trio.Nursery) -> None:
        """A lane for each channel, and for each that comes once it is announced, too."""
        number = 0
        while True:
            await self.channels.wait_more(number)
            announced = await self._announce(connection, announced)
            nursery.start_soon(self._carry, connection, self.channels.all[number])
            number += 1

    async def _carry(self, connection: SourceConnection, channel: Channel) -> None:
        number = channel.counts.channel
        lane: Lane
        lane = sock = await connection.open_lane(number, self._limits.dial_seconds)
        if self.channels.is_tls:
            credentials = self._session.host.identity.of_lanes(connection.own_leaf_sha256)
            seconds = self._limits.handshake_seconds
            ends = LaneEnds(credentials, connection.peer.leaf_sha256, connection.keys, now(), seconds)
            lane = await as_client(sock, number, ends)
        await self.channels.carry(channel, connection.keys, lane)

    async def _read(self, connection: SourceConnection) -> None:
        while True:
            match await connection.link.next():
                case Outcome() | Receipt() as answer:
                    self._answers[type(answer)] = answer
                    self._note_change()
                case Cancel(code=code, reason=reason):
                    raise PeerCancelled(code, reason)

    def _may_say(self, event: str) -> bool:
        """D may break connections off as fast as they are made."""
        return self._session.host.log_rate.allows(event, self._session.session_id)

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
