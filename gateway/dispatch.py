"""What relays are to do: one bounded queue for each host, emptied by that host's long poll.

An assignment is handed out again when the relay has not reported on the migration some seconds after it took it
(the answer to its poll may have been lost), until it is acknowledged or has expired. Relays tell assignments apart
by migration id, and a permit can be used once only, so handing it out twice moves nothing twice.

A poll tells only *that* a permit waits; the relay fetches it by a call of its own, which shows that it is alive: the
answer to a poll may go to a host that lost its power. A permit that nobody has fetched in time is withdrawn. It is in
this memory alone until then, and fetching and withdrawing are one step each, so one that is withdrawn is never used.
Relays of the first version get it with the poll.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from transport.link_version import FETCHES, FIRST

MAX_WAITING: Final = 64  # assignments of one host
REDELIVER_SECONDS: Final = 5.0
FETCH_SECONDS: Final = 15.0  # as [limits] `relay_fetch_seconds`; a relay that is restarted is back within some five
PERMIT: Final = "migrate"  # the kind of assignment that carries one


@dataclass(slots=True)
class Assignment:
    """`document` is what the relay gets. `expires`: when it is worth nothing any more (clock of `trio`)."""

    migration_id: str
    kind: str
    document: dict[str, Any] = field(repr=False)  # holds the permit
    expires: float
    delivered: float | None = None
    queued: float = 0.0
    fetch_by: float = 0.0
    is_fetched: bool = False
    tells_left: int | None = None  # of what no relay acknowledges: an answer may be lost, and one of them is heard

    def is_over(self, now: float) -> bool:
        """Whether nothing is to be begun by it any more."""
        return now >= self.expires or self.tells_left == 0 or (self.is_unfetched and now >= self.fetch_by)

    @property
    def is_unfetched(self) -> bool:
        """A permit that the relay does not have."""
        return self.kind == PERMIT and not self.is_fetched

    def is_due(self, now: float) -> bool:
        return self.delivered is None or now - self.delivered >= REDELIVER_SECONDS


@dataclass(slots=True)
class _Host:
    waiting: list[Assignment] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)
    last_seen: float | None = None
    left: float | None = None  # when the connection of its poll ended under it
    link: int | None = None  # version of calls that both speak; None: not heard yet; 0: none
    turn: int = 0
    links: set[int] = field(default_factory=set)


class QueueFull(Exception):
    """The host already has MAX_WAITING assignments that it did not take."""


class Dispatch:
    """`clock` counts seconds and never goes back (`trio.current_time`). `fetch_seconds`: a permit waits so long."""

    def __init__(self, clock: Callable[[], float] = trio.current_time, *, fetch_seconds: float = FETCH_SECONDS) -> None:
        self._clock = clock
        self.fetch_seconds = fetch_seconds
        self._hosts: dict[str, _Host] = {}
        self._withdrawn: list[tuple[str, Assignment]] = []
        self._is_closed = False

    def is_reachable(self, host: str, within_seconds: float) -> bool:
        """Whether the relay of `host` polls now, or did so in the last seconds.

        One whose connection ended is waited for as long as a permit waits to be fetched: it may be restarting.
        """
        state = self._hosts.get(host)
        if state is None or state.last_seen is None:
            return False
        now = self._clock()
        if state.left is not None and now - state.left > self.fetch_seconds:
            return False
        return now - state.last_seen <= within_seconds

    def note_link(self, host: str, version: int) -> bool:
        """Which version of calls its relay and this gateway speak. Whether it was never that one before: to be said
        once, whatever a host says in turn."""
        state = self._hosts.setdefault(host, _Host())
        state.link = version
        is_news = version not in state.links
        state.links.add(version)
        return is_news

    def link(self, host: str) -> int | None:
        """The version of calls that the relay of `host` and this gateway speak; None until it was heard."""
        return self._hosts[host].link if host in self._hosts else None

    def assign(self, host: str, assignment: Assignment) -> None:
        """Queue it. Errors: QueueFull."""
        state = self._hosts.setdefault(host, _Host())
        self._drop_over(host, state)
        if len(state.waiting) >= MAX_WAITING:
            raise QueueFull(host)
        assignment.queued = self._clock()
        assignment.fetch_by = min(assignment.queued + self.fetch_seconds, assignment.expires)
        state.waiting.append(assignment)
        state.news.set()

    def acknowledge(self, host: str, migration_id: str, kinds: frozenset[str]) -> None:
        """The relay has reported on the migration: it has what it was sent of these kinds."""
        if (state := self._hosts.get(host)) is not None:
            state.waiting = [a for a in state.waiting if a.migration_id != migration_id or a.kind not in kinds]

    def count(self, host: str, kind: str) -> int:
        """How many of this kind the host has yet to take, or to be told again."""
        state = self._hosts.get(host)
        return 0 if state is None else sum(a.kind == kind and not a.is_over(self._clock()) for a in state.waiting)

    def fetch(self, host: str, migration_id: str) -> dict[str, Any] | None:
        """The document with the permit, for its source relay; None for one that was withdrawn, or is another's.

        The same however often it asks, until it reports: the answer may be lost.
        """
        if (state := self._hosts.get(host)) is None:
            return None
        self._drop_over(host, state)
        for assignment in state.waiting:
            if assignment.migration_id == migration_id and assignment.kind == PERMIT:
                assignment.is_fetched = True
                return assignment.document
        return None

    def withdraw(self, host: str, migration_id: str) -> bool:
        """Take back the permit that the relay does not have yet; False if it has it (or never will)."""
        if (state := self._hosts.get(host)) is None:
            return False
        taken = [a for a in state.waiting if a.migration_id == migration_id and a.is_unfetched]
        state.waiting = [a for a in state.waiting if a not in taken]
        self._withdrawn += [(host, assignment) for assignment in taken]
        return bool(taken)

    def withdrawn(self) -> list[tuple[str, Assignment]]:
        """The permits that were taken back, or fetched by no relay in time, each with its host; told once. Nobody gets
        them any more.

        Hosts that were late are not reachable until they poll anew: a poll of theirs that seems to wait is one that
        died.
        """
        for host, state in self._hosts.items():
            self._drop_over(host, state)
        told, self._withdrawn = self._withdrawn, []
        return told

    async def poll(self, host: str, wait_seconds: float) -> list[dict[str, Any]]:
        """What the relay is to do now; waits up to `wait_seconds` for something.

        A newer poll of the same host ends this one with nothing: after a relay's restart its old connection may
        linger, and must not swallow what the new one waits for. Cancellation leaves everything in the queue, and is for
        a relay whose connection has ended.
        """
        state = self._hosts.setdefault(host, _Host())
        self._drop_over(host, state)
        state.turn += 1
        turn = state.turn
        state.left = None
        state.news.set()  # ends the older poll
        deadline = self._clock() + wait_seconds
        while True:
            self._drop_over(host, state)
            if self._is_closed or turn != state.turn:
                return []
            now = state.last_seen = self._clock()
            due = [assignment for assignment in state.waiting if assignment.is_due(now)]
            if due or now >= deadline:
                return [_handed_out(assignment, state, now) for assignment in due]
            state.news = trio.Event()
            again = [a.delivered + REDELIVER_SECONDS for a in state.waiting if a.delivered is not None]
            try:
                with trio.move_on_at(min([deadline, *again])):
                    await state.news.wait()
            except trio.Cancelled:
                if turn == state.turn:
                    state.left = self._clock()
                raise

    def wake_all(self) -> None:
        """End all polls now, with what there is: their answers carry news that is no assignment."""
        for state in self._hosts.values():
            state.turn += 1
            state.news.set()

    def close(self) -> None:
        """End all polls with nothing, now and from now on: a gateway that stops must not wait for them."""
        self._is_closed = True
        for state in self._hosts.values():
            state.news.set()

    def _drop_over(self, host: str, state: _Host) -> None:
        now = self._clock()
        over = [assignment for assignment in state.waiting if assignment.is_over(now)]
        if not over:
            return
        state.waiting = [assignment for assignment in state.waiting if not assignment.is_over(now)]
        if unfetched := [assignment for assignment in over if assignment.is_unfetched]:
            self._withdrawn += [(host, assignment) for assignment in unfetched]
            state.last_seen = None
            state.turn += 1
            state.news.set()  # who is alive polls anew


def _handed_out(assignment: Assignment, state: _Host, now: float) -> dict[str, Any]:
    """What the relay is told of it."""
    assignment.delivered = now
    if assignment.tells_left is not None:
        assignment.tells_left -= 1
    if assignment.kind == PERMIT and (state.link or FIRST) >= FETCHES:
        return {"kind": "permit", "migration_id": assignment.migration_id}
    assignment.is_fetched = True
    return assignment.document
