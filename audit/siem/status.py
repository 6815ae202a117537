"""What is known of one delivery, and what bounds it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

MAX_CAUSE: Final = 500
RATE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Bounds of one delivery.

    `degraded_seconds`: how long a sink may fail before the log says so. `refused_in_a_row`: so many refusals without
    one entry taken mean that the receiver is at fault. `quarantine_pause_seconds`: between two records of quarantine.
    """

    batch_entries: int = 500
    batch_bytes: int = 1024 * 1024
    deadline_seconds: float = 30.0
    longest_pause_seconds: float = 60.0
    poll_seconds: float = 0.5
    degraded_seconds: float = 60.0
    refused_in_a_row: int = 20
    quarantine_pause_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class SinkEvent:
    """Something about a sink that belongs into the log: `siem.degraded`, `siem.recovered`, …"""

    kind: str
    details: dict[str, Any]


class State(Enum):
    STARTING = "starting"
    DELIVERING = "delivering"
    FAILING = "failing"
    HANGING = "hanging"
    """It has a batch and has not answered for a third of the deadline."""
    STOPPED = "stopped"
    """An operator must act, and start the gateway again."""


@dataclass(slots=True)
class Status:
    """What `sealane siem status` shows. Times are of the shipper's clock, seconds."""

    state: State = State.STARTING
    position: int = 0
    log_size: int = 0
    delivered: int = 0
    quarantined: int = 0
    last_error: str | None = None
    failing_since: float | None = None
    delivered_at: float | None = None
    sent_at: float | None = None  # of the batch that it has not answered yet
    _moments: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def lag(self) -> int:
        """Entries that are yet to be delivered."""
        return max(0, self.log_size - self.position)

    def shown(self, now: float, deadline_seconds: float) -> State:
        """Its state: one that hangs fails only when the deadline is over, and until then nothing else tells."""
        is_late = self.sent_at is not None and now - self.sent_at >= deadline_seconds / 3
        return State.HANGING if is_late and self.state is State.DELIVERING else self.state

    def rate(self, now: float) -> float:
        """Entries a second over the last seconds."""
        return sum(count for moment, count in self._moments if now - moment <= RATE_SECONDS) / RATE_SECONDS

    def note(self, now: float, count: int) -> None:
        self.delivered += count
        self.delivered_at = now
        self._moments.append((now, count))
        while now - self._moments[0][0] > RATE_SECONDS:
            self._moments.popleft()


def one_line(text: str) -> str:
    """What a receiver says may hold anything; this is printable, one line, and short."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_CAUSE])
