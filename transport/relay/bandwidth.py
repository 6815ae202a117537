"""How fast a host's sessions may send: each under its permit's limit, all together under the host's, in fair shares.

Tokens are bytes. A sender takes what it is about to send and waits while the bucket is in debt, so that one frame may
be larger than what has gathered. Fair: of each session one sender at a time stands in the host's queue, first come,
first served, so that a session with eight lanes gets no more than one with one; what a session does not use, others do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from transport.wire.frames import MAX_PAYLOAD_BYTES

# What may gather while nothing is sent. Much more would let a session that was idle overtake the others for long.
_BURST_SECONDS = 0.05
_MIN_FRAME_BYTES = 16 * 1024


@dataclass(slots=True)
class Bucket:
    """Fills with `rate` bytes a second. `clock` counts seconds and never goes back."""

    rate: float
    clock: Callable[[], float] = trio.current_time
    _level: float = 0.0
    _seen: float | None = None

    def take(self, size_bytes: int) -> float:
        """Take so many bytes, and return for how many seconds whoever took them must wait before sending."""
        now = self.clock()
        if self._seen is not None:
            self._level = min(self._level + (now - self._seen) * self.rate, self.rate * _BURST_SECONDS)
        self._seen = now
        self._level -= size_bytes
        return max(0.0, -self._level / self.rate)


@dataclass(slots=True)
class HostBandwidth:
    """What all sessions of a host share. `bytes_per_second` 0: no limit."""

    bytes_per_second: int = 0
    _queue: trio.Lock = field(default_factory=trio.Lock)
    _bucket: Bucket | None = None

    async def take(self, size_bytes: int) -> None:
        """Wait for one's turn and one's bytes. Cancelled in between, the bytes count as sent."""
        if not self.bytes_per_second:
            return
        if self._bucket is None:
            self._bucket = Bucket(self.bytes_per_second)
        async with self._queue:  # trio's lock is handed on in the order in which it was asked for
            await trio.sleep(self._bucket.take(size_bytes))


class Pace:
    """One session's way to send: under its own limit, then in the host's queue."""

    def __init__(self, bytes_per_second: int, host: HostBandwidth) -> None:
        self._own = Bucket(bytes_per_second) if bytes_per_second else None
        self._host = host
        self._turn = trio.Lock()

    @property
    def frame_bytes(self) -> int:
        """How much to read for one frame: what may be sent in a moment, or others would wait long behind it."""
        rates = [rate for rate in (self._own.rate if self._own else 0, self._host.bytes_per_second) if rate]
        return max(_MIN_FRAME_BYTES, min([MAX_PAYLOAD_BYTES, *(int(rate * _BURST_SECONDS) for rate in rates)]))

    @property
    def is_limited(self) -> bool:
        """Whether anything has to wait at all; the hot path asks once a channel."""
        return self._own is not None or self._host.bytes_per_second > 0

    async def take(self, size_bytes: int) -> None:
        """Return when so many bytes may be sent."""
        async with self._turn:
            if self._own is not None:
                await trio.sleep(self._own.take(size_bytes))
            await self._host.take(size_bytes)
