"""Refusals on record within a rate: somebody without any right must not be able to fill the log.

How many were left out is said in the next such record, as `left_out_before`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from gateway.recording import Event, Recorder
from gateway.throttle import Throttle

AT_ONCE: Final = 20  # of all addresses together, because a stranger may have many; then one more every SECONDS
SECONDS: Final = 1.0


class RecordedRefusals:
    """Of one kind of stranger."""

    def __init__(self, recorder: Recorder, monotonic: Callable[[], float]) -> None:
        self._recorder = recorder
        self._throttle = Throttle(AT_ONCE, SECONDS, monotonic)
        self._left_out = 0

    async def record(self, event: Event) -> None:
        """Record it, or count it. Errors: LogUnavailable, Overloaded, AuditError; then it is counted, too."""
        if not self._throttle.admits("all"):
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        try:
            await self._recorder.append(replace(event, details={**event.details, "left_out_before": left_out}))
        except BaseException:
            self._left_out += left_out + 1
            raise
