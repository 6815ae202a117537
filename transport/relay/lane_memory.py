"""What the lanes of all sessions of a relay may keep in memory together: places for large frames, lent in fair shares.

A place is `LARGE_BYTES`, one frame of the largest size. Two things need them, and each gets on without, slower:

- What was sent and is not acknowledged (`SendWindow`). It must be kept, so it cannot be asked back. A session is lent
  no more than four times what is left, so something is left for whoever comes next, and a quarter is never lent so.
  While a session is refused that has less than an equal part, nobody is lent more than that.
- A frame that arrives. It must be whole before anything of it is believed, and a peer may never finish it, or say what
  the hypervisor does not take. It can be asked back, because the peer keeps it: whoever has had a place for a turn,
  while others wait, gives it back between two frames; if its frame takes a turn itself, it loses its connection, and
  the session goes on over another one.

Each lane has small buffers of its own beside that, so lanes are bounded, too: one for each session, and
`max_further_lanes`, of which a session has no more than are left to others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from transport.errors import LocalBroken
from transport.relay.limits import LimitsSection
from transport.wire.window import LARGE_BYTES, lazy_buffer

# The slowest way to bring a frame of 1 MiB in its turn is 1.7 Mb/s; without somebody who waits there are no turns.
TURN_SECONDS = 5.0
_GRACE_SECONDS = 1.0  # for whoever is between two frames soon, and gives it back without losing anything
_TIMES_WHAT_IS_LEFT = 4
_FOR_ARRIVING = 4  # the fourth part
_WINDOWS = 3
_LEAST_SENDING = 2  # to carry large frames at all: one, and where it is sealed
_REFUSED_SECONDS = 1.0  # for so long a session that does not ask again counts as one that was refused


@dataclass(slots=True, eq=False)
class Lease:
    """A place for a frame that arrives. `ask_back` ends whatever uses it, which then gives it back."""

    share: Share
    place: memoryview
    since: float
    ask_back: Callable[[], None]
    frame_since: float
    is_asked_back: bool = False

    @property
    def is_due(self) -> bool:
        """Whether others wait for it and it has had its turn."""
        return self.share.memory.is_past_its_turn(self)

    def begin_frame(self) -> None:
        """Another one in the same place."""
        self.frame_since = trio.current_time()

    def give_back(self) -> None:
        self.share.memory.end_lease(self)


@dataclass(slots=True, eq=False)
class _Waiting:
    share: Share
    ask_back: Callable[[], None]
    granted: trio.Event = field(default_factory=trio.Event)
    lease: Lease | None = None


class LaneMemory:
    """Of one relay, in its own thread. Memory is taken from the system as it is needed, and given back to it when
    no session that has had a lane goes on."""

    def __init__(self, capacity_bytes: int, max_further_lanes: int, turn_seconds: float = TURN_SECONDS) -> None:
        self._most = max(_FOR_ARRIVING, capacity_bytes // LARGE_BYTES)
        self._max_further_lanes = max_further_lanes
        self._turn_seconds = turn_seconds
        self._kept: list[memoryview] = []
        self._leases: dict[Lease, None] = {}  # the oldest first
        self._waiting: list[_Waiting] = []
        self._served = 0
        self._refused: dict[Share, float] = {}
        self.sending_sessions = 0
        self.lent = 0
        self.sessions = self.further_lanes = 0

    @property
    def left(self) -> int:
        return self._most - self.lent

    def share(self, most_sending: int) -> Share:
        """A new session's. `most_sending`: places for what it sends."""
        return Share(self, most_sending)

    def may_send_more(self, share: Share, count: int) -> bool:
        """Whether a session is lent so many more places for its windows."""
        wants = share.sending + count
        left = self.left - count - self._most // _FOR_ARRIVING
        if not self._waiting and left >= 0 and wants <= _TIMES_WHAT_IS_LEFT * left:
            self._refused.pop(share, None)
            return not self._refused or wants <= self._equal_part()
        if wants <= self._equal_part():
            self._refused[share] = time.monotonic()
        return False

    def _equal_part(self) -> int:
        """Of a session, if each that sends or would like to had as many places."""
        since = time.monotonic() - _REFUSED_SECONDS
        self._refused = {share: at for share, at in self._refused.items() if at >= since}
        sessions = self.sending_sessions + sum(not share.sending for share in self._refused)
        return max(_LEAST_SENDING, (self._most - self._most // _FOR_ARRIVING) // max(1, sessions))

    def take(self) -> memoryview:
        """The one that was given back last: it may still be in the processor's caches."""
        place = self._kept.pop() if self._kept else lazy_buffer(LARGE_BYTES)
        self.lent += 1
        return place

    def give(self, place: memoryview) -> None:
        if self.sessions:
            self._kept.append(place)
        self.lent -= 1
        self._serve()

    def end_session(self) -> None:
        """With the last one memory goes back to the system; not sooner, as zeroed pages cost as much as a copy, and not
        with its last lane: a guest stands still just then, for as long as this takes."""
        self.sessions -= 1
        if not self.sessions:
            self._kept.clear()

    def enter_further_lane(self, of_session: int) -> None:
        """The one of that number of a session that has its first. `LocalBroken` where more than that are not left:
        nobody gives a lane back while its session goes on, so whoever comes next must find some."""
        left = self._max_further_lanes - self.further_lanes
        if of_session > left:
            beyond = f"{left} of {self._max_further_lanes} lanes beyond each session's first are left here"
            raise LocalBroken(
                f"{beyond}, and a session may have no more than are left: "
                "use fewer channels of multifd, or raise limits.max_further_lanes"
            )
        self.further_lanes += 1

    async def lease(self, share: Share, ask_back: Callable[[], None]) -> Lease:
        """A place for a frame that arrives, perhaps after some turns of others. Cancelled, nothing is kept."""
        if not self._waiting and self.left > 0:
            return self._granted(share, ask_back)
        waiting = _Waiting(share, ask_back)
        patience = trio.current_time() + _GRACE_SECONDS
        self._waiting.append(waiting)
        self._serve()
        try:
            while not waiting.granted.is_set():
                with trio.move_on_at(max(patience, self._next_turn())) as turn:
                    await waiting.granted.wait()
                if turn.cancelled_caught and not self._ask_back():
                    patience = trio.current_time() + _GRACE_SECONDS
        except trio.Cancelled:
            if waiting.lease is not None:
                waiting.lease.give_back()
            else:
                self._waiting.remove(waiting)
            raise
        assert waiting.lease is not None
        return waiting.lease

    def is_past_its_turn(self, lease: Lease) -> bool:
        return bool(self._waiting) and trio.current_time() >= lease.since + self._turn_seconds

    def end_lease(self, lease: Lease) -> None:
        del self._leases[lease]
        lease.share.arriving -= 1
        self.give(lease.place)

    def _next_turn(self) -> float:
        """When the first of those that were not asked yet is asked; if all were, others have their places soon."""
        patience = trio.current_time() + _GRACE_SECONDS
        return min((self._end_of(lease) for lease in self._leases if not lease.is_asked_back), default=patience)

    def _end_of(self, lease: Lease) -> float:
        """Of its turn, for who does not give it back: each frame has a whole turn, or a slow link would lose it."""
        return self._turn_seconds + max(lease.since + _GRACE_SECONDS, lease.frame_since)

    def _ask_back(self) -> bool:
        """One for each who waits, of those that have had their turn. Whether any was left to ask."""
        now, asked = trio.current_time(), [lease for lease in self._leases if lease.is_asked_back]
        due = [lease for lease in self._leases if not lease.is_asked_back and now >= self._end_of(lease)]
        due = due[: max(0, len(self._waiting) - len(asked))]
        for lease in due:
            lease.is_asked_back = True
            lease.ask_back()
        return bool(due)

    def _serve(self) -> None:
        """Whose session has fewest is first, and among those whose was served least lately: many lanes are no more
        than one."""
        while self._waiting and self.left > 0:
            waiting = min(self._waiting, key=lambda each: (each.share.arriving, each.share.last_served))
            self._waiting.remove(waiting)
            waiting.lease = self._granted(waiting.share, waiting.ask_back)
            waiting.granted.set()

    def _granted(self, share: Share, ask_back: Callable[[], None]) -> Lease:
        share.arriving += 1
        self._served += 1
        share.last_served = self._served
        now = trio.current_time()
        lease = Lease(share, self.take(), now, ask_back, frame_since=now)
        self._leases[lease] = None
        return lease


@dataclass(slots=True, eq=False)
class Share:
    """One session's. `most_sending`: places in all of its windows together. As `Lender` it lends to those."""

    memory: LaneMemory
    most_sending: int
    sending: int = 0
    arriving: int = 0
    lanes: int = 0
    last_served: int = 0  # the number of the lease that it got last
    is_counted: bool = False
    has_ended: bool = False

    def lend(self, count: int) -> list[memoryview] | None:
        if self.sending + count > self.most_sending or not self.memory.may_send_more(self, count):
            return None
        self.memory.sending_sessions += not self.sending
        self.sending += count
        return [self.memory.take() for _ in range(count)]

    def take_back(self, *places: memoryview) -> None:
        if places:
            self.sending -= len(places)
            self.memory.sending_sessions -= not self.sending
        for place in places:
            self.memory.give(place)

    def enter_lane(self) -> None:
        """`LocalBroken` where the relay has as many as it may."""
        if self.lanes:
            self.memory.enter_further_lane(self.lanes)
        self.lanes += 1
        if not self.is_counted and not self.has_ended:
            self.is_counted = True
            self.memory.sessions += 1

    def leave_lane(self) -> None:
        self.lanes -= 1
        if self.lanes:
            self.memory.further_lanes -= 1

    def end(self) -> None:
        """The session has ended: what others do not need of its memory may go back to the system."""
        self.has_ended = True
        if self.is_counted:
            self.is_counted = False
            self.memory.end_session()

    async def lease(self, ask_back: Callable[[], None]) -> Lease:
        return await self.memory.lease(self, ask_back)


def lane_memory_of(limits: LimitsSection) -> LaneMemory:
    """As the configuration says."""
    capacity_bytes = limits.lane_memory_bytes or _WINDOWS * limits.window_bytes
    return LaneMemory(capacity_bytes, limits.max_further_lanes)
