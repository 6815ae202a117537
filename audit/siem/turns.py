"""What a batch is made into, in worker threads: a little at a time, one delivery after the other, and behind whoever
waits for an answer of this process.

Python has one interpreter for all its threads. A thread that makes a thousand lines at one go takes half of it from a
person who waits for a permit, ten deliveries take most of it. So documents and lines are made for SLICE_SECONDS at a
time, by one delivery at any time, and between two slices the others have the interpreter to themselves for as long as
somebody is `ahead_of_deliveries`, at most PAUSE_SECONDS: a crowd that asks without a pause slows deliveries down, and
never ends them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

SLICE_SECONDS: Final = 0.002
PAUSE_SECONDS: Final = 0.005
Item = TypeVar("Item")
Made = TypeVar("Made")


class _RightOfWay:
    """Of all deliveries of one trio run."""

    def __init__(self) -> None:
        self.one_at_a_time = trio.Lock()  # first come, first served: each delivery has its turn
        self.ahead = 0
        self.nobody_ahead = trio.Event()

    async def give_way(self) -> None:
        if self.ahead:
            with trio.move_on_after(PAUSE_SECONDS):
                await self.nobody_ahead.wait()


_of_this_run: trio.lowlevel.RunVar[_RightOfWay] = trio.lowlevel.RunVar("right of way")


def _right_of_way() -> _RightOfWay:
    try:
        return _of_this_run.get()
    except LookupError:
        _of_this_run.set(here := _RightOfWay())
        return here


@contextmanager
def ahead_of_deliveries() -> Iterator[None]:
    """While somebody waits for what is done within."""
    here = _right_of_way()
    if not here.ahead:
        here.nobody_ahead = trio.Event()
    here.ahead += 1
    try:
        yield
    finally:
        here.ahead -= 1
        if not here.ahead:
            here.nobody_ahead.set()


async def made(make: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """`make` of each item, in their order. It only computes: whatever could hang would stop all deliveries.

    Raises what `make` raises. Cancellation leaves nothing behind.
    """
    here, done = _right_of_way(), list[Made]()
    while len(done) < len(items):
        async with here.one_at_a_time:
            await here.give_way()
            await trio.to_thread.run_sync(_make_some, make, items, done)
    return done


def _make_some(make: Callable[[Item], Made], items: Sequence[Item], done: list[Made]) -> None:
    end = time.perf_counter() + SLICE_SECONDS
    for at in range(len(done), len(items)):
        done.append(make(items[at]))
        if time.perf_counter() >= end:
            return
