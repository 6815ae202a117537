"""What relays are to do: one bounded queue for each host, emptied by that host's long poll.

An assignment is handed out again when the relay has not reported on the migration some seconds after it took it
(the answer to its poll may have been lost), until it is acknowledged or has expired. Relays tell assignments apart
by migration id, and a permit can be used once only, so handing it out twice moves nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import trio

MAX_WAITING: Final = 64  # assignments of one host
REDELIVER_SECONDS: Final = 5.0


@dataclass(slots=True)
class Assignment:
    """`document` is what the relay gets. `expires`: when it is worth nothing any more (clock of `trio`)."""

    migration_id: str
    kind: str
    document: dict[str, Any] = field(repr=False)  # holds the permit
    expires: float
    delivered: float | None = None

    def is_due(self, now: float) -> bool:
        return self.delivered is None or now - self.delivered >= REDELIVER_SECONDS


@dataclass(slots=True)
class _Host:
    waiting: list[Assignment] = field(default_factory=list)
    news: trio.Event = field(default_factory=trio.Event)
    last_seen: float | None = None
    link: int | None = None  # version of calls that both speak; None: not heard yet; 0: none
    turn: int = 0
    links: set[int] = field(default_factory=set)


class QueueFull(Exception):
    """The host already has MAX_WAITING assignments that it did not take."""


class Dispatch:
    """`clock` counts seconds and never goes back (`trio.current_time`)."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._hosts: dict[str, _Host] = {}
        self._is_closed = False

    def is_reachable(self, host: str, within_seconds: float) -> bool:
        """Whether the relay of `host` polls now or did so in the last seconds."""
        seen = self._hosts[host].last_seen if host in self._hosts else None
        return seen is not None and self._clock() - seen <= within_seconds

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
        self._drop_expired(state)
        if len(state.waiting) >= MAX_WAITING:
            raise QueueFull(host)
        state.waiting.append(assignment)
        state.news.set()

    def acknowledge(self, host: str, migration_id: str, kinds: frozenset[str]) -> None:
        """The relay has reported on the migration: it has what it was sent of these kinds."""
        if (state := self._hosts.get(host)) is not None:
            state.waiting = [a for a in state.waiting if a.migration_id != migration_id or a.kind not in kinds]

    def withdraw(self, host: str, migration_id: str) -> bool:
        """Take back what the relay has not been handed yet; False if it already has it (or never will)."""
        if (state := self._hosts.get(host)) is None:
            return False
        before = len(state.waiting)
        state.waiting = [a for a in state.waiting if a.migration_id != migration_id or a.delivered is not None]
        return len(state.waiting) < before

    async def poll(self, host: str, wait_seconds: float) -> list[dict[str, Any]]:
        """What the relay is to do now; waits up to `wait_seconds` for something.

        A newer poll of the same host ends this one with nothing: after a relay's restart its old connection may
        linger, and must not swallow what the new one waits for. Cancellation leaves everything in the queue.
        """
        state = self._hosts.setdefault(host, _Host())
        state.turn += 1
        turn = state.turn
        state.news.set()  # ends the older poll
        deadline = self._clock() + wait_seconds
        while True:
            now = state.last_seen = self._clock()
            if self._is_closed or turn != state.turn:
                return []
            self._drop_expired(state)
            due = [assignment for assignment in state.waiting if assignment.is_due(now)]
            if due or now >= deadline:
                for assignment in due:
                    assignment.delivered = now
                return [assignment.document for assignment in due]
            state.news = trio.Event()
            again = [a.delivered + REDELIVER_SECONDS for a in state.waiting if a.delivered is not None]
            with trio.move_on_at(min([deadline, *again])):
                await state.news.wait()

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

    def _drop_expired(self, state: _Host) -> None:
        now = self._clock()
        state.waiting = [assignment for assignment in state.waiting if assignment.expires > now]
