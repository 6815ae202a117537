"""More than one core for bulk: where several channels carry it at once, each of their frames is worked on in a thread.

A relay's own thread seals, opens and copies a channel faster alone: a thread costs some 0.1 ms for each frame. But one
thread is one core, and what takes the time, AES and the copies into and out of sockets, runs outside the GIL.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple

import trio

WORTH_BYTES: Final = 256 * 1024
_SHARED_SECONDS: Final = 0.05
_ENOUGH_CORES: Final = 4  # with two, two QEMUs and a relay have no core to spare
_MOST_THREADS: Final = 8  # each frame needs the GIL for a while, too
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def threads_for_this_host() -> int:
    """One for each core but the relay's own; none where there are few, since there it is slower.

    A quota of CPU time (`CPUQuota=`, a container's) is not seen here: the configuration says what is right there.
    """
    cores = len(os.sched_getaffinity(0))
    return min(cores - 1, _MOST_THREADS) if cores >= _ENOUGH_CORES else 0


class Cores:
    """Of one relay. `threads`: at most so many frames are in threads at once; 0: none ever is."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._limiter = trio.CapacityLimiter(max(1, threads))
        self._last = 0
        self._seen = self._changed = float("-inf")

    def are_shared(self, by: object, size_bytes: int) -> bool:
        """Whether a frame of the channel `by` goes to a thread: another channel had one a moment ago."""
        if not self._threads or size_bytes < WORTH_BYTES:
            return False
        now = trio.current_time()
        if id(by) != self._last:
            if now - self._seen < _SHARED_SECONDS:
                self._changed = now
            self._last = id(by)
        self._seen = now
        return now - self._changed < _SHARED_SECONDS

    async def work(self, step: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """In a thread, when there is one. Once it has begun it is not abandoned, whatever is cancelled: it returns
        as if nothing were, and the caller must not take what it then meets for a failure of its own."""
        return await trio.to_thread.run_sync(step, *arguments, limiter=self._limiter)
