"""What this relay is doing, for whoever may ask: its sessions with their numbers, and counts since its start.

Sessions put themselves on it and keep no numbers for it: channels and progress are read when somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from policy.permit import PermitClaims
from transport.hypervisors.migration_progress import MigrationProgress
from transport.relay.channel import ChannelCounts
from transport.relay.news import News, Tell
from transport.relay.places import Places

PAGE_BYTES: Final = 4096  # QEMU counts dirty pages of its target, x86


@dataclass(eq=False, slots=True)
class Entry:
    """One session. `lanes`, `state_of` and `trouble_of` are asked when somebody looks; `cancelled` is set to ask for
    its end. `is_awaited`: by a relay that drains; `is_idle`: it waits for somebody who may never come, and as well in
    the next process."""

    role: str
    claims: PermitClaims
    began: float
    cancelled: trio.Event | None = None
    is_awaited: bool = True
    progress: MigrationProgress | None = None
    lanes: Callable[[], Sequence[ChannelCounts]] = tuple
    state_of: Callable[[], str] | None = None
    trouble_of: Callable[[], str] = str
    is_reconnecting: Callable[[], bool] = lambda: False
    is_idle: Callable[[], bool] = lambda: False
    _state: str = "running"
    _message: str = ""
    _looked: tuple[float, int] | None = None

    @property
    def state(self) -> str:
        if self.is_reconnecting():
            return "reconnecting"
        return self.state_of() if self.state_of is not None else self._state

    @property
    def channels(self) -> Sequence[ChannelCounts]:
        return self.lanes()

    def telling(self, tell: Tell) -> Tell:
        """`tell`, and the news are noted here first."""

        async def note(news: News) -> None:
            self._state, self._message = news.state, news.message
            self.progress = news.progress or self.progress
            await tell(news)

        return note

    @property
    def carried_bytes(self) -> int:
        return sum(each.sent_bytes + each.received_bytes for each in self.channels)

    def document(self, now: float) -> dict[str, Any]:
        """Times by trio's clock. The rate is QEMU's, else that of the lanes since somebody last looked."""
        at, before = self._looked or (self.began, 0)
        carried = self.carried_bytes
        self._looked = (now, carried)
        lanes = round((carried - before) / (now - at)) if now > at else 0
        seen = self.progress
        rate = seen.rate_bytes_per_second if seen and seen.rate_bytes_per_second else lanes
        return {
            "migration_id": self.claims.migration_id,
            "vm": self.claims.vm,
            "role": self.role,
            "peer": self.claims.destination if self.role == "source" else self.claims.source,
            "state": self.state,
            "message": self.trouble_of() or self._message,
            "kind": seen.status if seen else None,
            "seconds": round(now - self.began, 1),
            "rate_bytes_per_second": rate,
            "carried_bytes": carried,
            "remaining_bytes": seen.remaining_bytes if seen else None,
            "total_bytes": seen.total_bytes if seen else None,
            "pass": seen.passes if seen else None,
            "dirty_bytes_per_second": seen.dirty_pages_per_second * PAGE_BYTES if seen else None,
            "seconds_left": _seconds_left(seen, rate),
            "channels": [
                {"port": each.port, "sent_bytes": each.sent_bytes, "received_bytes": each.received_bytes}
                for each in self.channels
            ],
        }


@dataclass(slots=True)
class Board:
    """All of one relay. `is_draining`: it takes nothing new and ends with its last session. `held`: sessions without a
    connection, of which something is owed, if somebody asks."""

    places: Places
    is_draining: bool = False
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (role, outcome)
    carried: Counter[tuple[str, str]] = field(default_factory=Counter)  # bytes of ended sessions, by (role, direction)
    held: Callable[[], Sequence[Entry]] = tuple
    _entries: list[Entry] = field(default_factory=list)

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries)

    @contextmanager
    def session(
        self, role: str, claims: PermitClaims, cancelled: trio.Event | None = None, *, is_awaited: bool = True
    ) -> Iterator[Entry]:
        """A session, from its beginning to its end; its state then is its outcome."""
        entry = Entry(role, claims, trio.current_time(), cancelled=cancelled, is_awaited=is_awaited)
        self._entries.append(entry)
        try:
            yield entry
        finally:
            self._entries.remove(entry)
            self.ended[role, entry.state] += 1
            for direction, size in _carried(entry):
                self.carried[role, direction] += size

    @property
    def is_empty(self) -> bool:
        """Whether no session is left that is waited for, those in the queue included."""
        return not any(each.is_awaited and not each.is_idle() for each in self._entries) and not self.places.waiting

    def is_idle(self, migration_id: str) -> bool:
        """Whether there is a session of it here, and nothing happens in any."""
        found = [each for each in self._entries if each.claims.migration_id == migration_id]
        return bool(found) and all(each.is_idle() for each in found)

    def cancel(self, migration_id: str) -> bool:
        """Ask for the end of a migration from this host; False if none of that id can be asked."""
        found = [each.cancelled for each in self._entries if each.claims.migration_id == migration_id]
        found += [each.cancelled for each in self.places.waiting if each.migration_id == migration_id]
        asked = [event for event in found if event is not None]
        for event in asked:
            event.set()
        return bool(asked)

    def carried_by(self) -> Counter[tuple[str, str]]:
        """Bytes since the start, by (role, direction)."""
        total = Counter(self.carried)
        for entry in self._entries:
            total.update({(entry.role, direction): size for direction, size in _carried(entry)})
        return total

    def document(self) -> dict[str, Any]:
        """What `sealane relay status --json` shows."""
        now = trio.current_time()
        return {
            "draining": self.is_draining,
            "sessions": [entry.document(now) for entry in (*self._entries, *self.held())],
            "queue": [
                {"migration_id": each.migration_id, "vm": each.vm, "seconds": round(now - each.since, 1)}
                for each in self.places.waiting
            ],
        }


def _carried(entry: Entry) -> list[tuple[str, int]]:
    return [
        ("sent", sum(each.sent_bytes for each in entry.channels)),
        ("received", sum(each.received_bytes for each in entry.channels)),
    ]


def _seconds_left(seen: MigrationProgress | None, rate: int) -> int | None:
    """By what is left and how fast the guest makes more of it; None where that has no end, or nothing is known."""
    if seen is None or not seen.total_bytes:
        return None
    gain = rate - (0 if seen.status.startswith("postcopy") else seen.dirty_pages_per_second * PAGE_BYTES)
    return round(seen.remaining_bytes / gain) if gain > 0 else None
