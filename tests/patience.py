"""trio's `autojump_clock` for code that works in threads: it then jumps to the next deadline, never over their work.

By itself it takes a task that waits for a thread for an idle one, and jumps: on a busy machine the deadline of
such a task fires before its thread has had its turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import inf

import trio
from trio.testing import MockClock


@contextmanager
def no_jump_over_threads(clock: MockClock) -> Iterator[None]:
    """Meanwhile the time stands still while a thread of trio's default limiter works. It sees those of no other."""
    instrument = _Patience(clock)
    trio.lowlevel.add_instrument(instrument)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(instrument)
        clock.autojump_threshold = 0


class _Patience(trio.abc.Instrument):
    def __init__(self, clock: MockClock) -> None:
        self._clock = clock

    def after_task_step(self, task: trio.lowlevel.Task) -> None:  # noqa: ARG002 - its contract
        """Only in a step of a task does a thread begin, or come to be known to have ended."""
        working = trio.to_thread.current_default_thread_limiter().borrowed_tokens
        self._clock.autojump_threshold = inf if working else 0
