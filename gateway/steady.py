"""Time that never goes back: what was granted for an hour must not last longer because a clock was stepped, and what is
reported of a host now must not seem older than what was known of it before.
"""

from __future__ import annotations

from gateway.recording import Clock


class SteadyTime:
    """Unix seconds, as the wall clock says, but never less than at the last call plus what has passed since.

    A clock that is stepped forward ends grants early, which is safe. After a restart `not_before` carries on from the
    newest record of the log.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._seconds = clock.wall().timestamp()
        self._ticks = clock.monotonic_ns()

    def now(self) -> int:
        return int(self.exact())

    def exact(self) -> float:
        ticks = self._clock.monotonic_ns()
        passed = max(0, ticks - self._ticks) / 1e9
        self._seconds = max(self._seconds + passed, self._clock.wall().timestamp())
        self._ticks = ticks
        return self._seconds

    def not_before(self, seconds: int) -> None:
        self._seconds = max(self._seconds, float(seconds))
