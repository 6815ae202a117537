"""How many VMs leave this host at once, and the queue of those that wait for a place: first come, first served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from transport.errors import LocalBroken
from transport.hypervisors.errors import MigrationCancelled


@dataclass(eq=False, slots=True)
class Waiting:
    """Somebody in the queue; `since` by trio's clock."""

    migration_id: str
    vm: str
    since: float
    cancelled: trio.Event
    called: trio.Event = field(default_factory=trio.Event)


class Places:
    """`most` sessions at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._queue: list[Waiting] = []

    @property
    def waiting(self) -> tuple[Waiting, ...]:
        """Who waits, in the order in which they will be called."""
        return tuple(self._queue)

    @asynccontextmanager
    async def place(self, migration_id: str, vm: str, seconds: float, cancelled: trio.Event) -> AsyncIterator[None]:
        """Hold a place. `LocalBroken` after `seconds` in the queue, `MigrationCancelled` if it was cancelled there."""
        if self._taken >= self._most:
            await self._wait(Waiting(migration_id, vm, trio.current_time(), cancelled), seconds)
        else:
            self._taken += 1
        try:
            yield
        finally:
            self._hand_on()

    async def _wait(self, waiting: Waiting, seconds: float) -> None:
        """Returns with a place, which whoever left it has handed on: nobody can slip in between."""
        self._queue.append(waiting)
        try:
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:

                    async def until(event: trio.Event) -> None:
                        await event.wait()
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(until, waiting.called)
                    nursery.start_soon(until, waiting.cancelled)
            if waiting.called.is_set():
                return
            if waiting.cancelled.is_set():
                raise MigrationCancelled("the migration was cancelled while it waited for its turn")
            raise LocalBroken(
                f"{seconds:.0f} s in the queue: limits.max_moves, of how many VMs at once, is {self._most}"
            )
        except BaseException:
            if waiting.called.is_set():
                self._hand_on()
            raise
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)

    def _hand_on(self) -> None:
        if self._queue:
            self._queue.pop(0).called.set()
        else:
            self._taken -= 1
