"""Refusals on record within a rate: whoever is refused again and again must not be able to fill the log.

How many were left out is said in the next such record, as `left_out_before`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from audit.errors import AuditError
from gateway.errors import GatewayError
from gateway.recording import Event, Recorder
from gateway.throttle import Throttle

STRANGERS: Final = "strangers"


def of_strangers(recorder: Recorder, monotonic: Callable[[], float]) -> RecordedRefusals:
    """Of all addresses together, because a stranger may have many. No setting: nobody's work needs more of their
    records, and how many were left out is told in any case."""
    return RecordedRefusals(recorder, Throttle(20, 1.0, monotonic))


class RecordedRefusals:
    """Of one kind. `throttle`: how many records there may be of each key."""

    def __init__(self, recorder: Recorder, throttle: Throttle) -> None:
        self._recorder = recorder
        self._throttle = throttle

    async def record(self, event: Event, key: str = STRANGERS) -> None:
        """Record it, or count it. Errors: LogUnavailable, Overloaded, AuditError; then it is counted, too, and takes no
        place. One that was cancelled may be on record all the same: its place stays taken."""
        bucket = self._throttle.bucket(key)
        if not bucket.take():
            bucket.left_out += 1
            return
        left_out, bucket.left_out = bucket.left_out, 0
        try:
            await self._recorder.append(replace(event, details={**event.details, "left_out_before": left_out}))
        except BaseException as error:
            if isinstance(error, (GatewayError, AuditError)):
                bucket.tokens += 1
            bucket.left_out += left_out + 1
            raise
