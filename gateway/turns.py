"""Who waits for whom: so many at once in all, so many of each, so that whoever asks much holds up only themselves.

Nobody waits for ever, as they would for a lock: whoever asked has left by then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from gateway.errors import Overloaded

WAIT_SECONDS: Final = 60.0  # twice as long as `sealane` waits for its answer, if nobody has told it otherwise.
# As [limits] `turn_seconds`, which is for questions over many records. No setting for turns of a record or two: where
# those do not come within a minute the log has failed.


@dataclass(slots=True)
class _Own:
    limiter: trio.CapacityLimiter
    here: int = 0  # waiting, or in their turn


class Turns:
    """`at_once` in all, `of_one` of them under one key. First come, first served."""

    def __init__(self, at_once: int, of_one: int, wait_seconds: float = WAIT_SECONDS) -> None:
        self.wait_seconds = wait_seconds
        self._all = trio.CapacityLimiter(at_once)
        self._of_one = of_one
        self._own: dict[str, _Own] = {}

    @asynccontextmanager
    async def of(self, key: str) -> AsyncIterator[None]:
        """Wait for a turn of `key`, and have it within the block. Errors: Overloaded: it does not come in time."""
        own = self._own.setdefault(key, _Own(trio.CapacityLimiter(self._of_one)))
        own.here += 1
        try:
            async with AsyncExitStack() as turn:
                try:
                    with trio.fail_after(self.wait_seconds):
                        # First their own: nobody stands in the common line who could not go in.
                        await turn.enter_async_context(own.limiter)
                        await turn.enter_async_context(self._all)
                except trio.TooSlowError as error:
                    raise Overloaded("others take as long as this could wait") from error
                yield
        finally:
            own.here -= 1
            if not own.here:
                del self._own[key]
