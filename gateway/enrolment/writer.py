"""Group commit for the register: whoever wants to write while a commit is under way shares the next one.

A commit is an fsync, some milliseconds; a rack that is switched on enrols its hosts at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import trio

from gateway.enrolment.errors import AuthorityFailed
from gateway.enrolment.one_thread import OneThread
from gateway.enrolment.register import Note, Register, Spend

MAX_WAITING: Final = 256
MAX_BATCH: Final = 64


@dataclass(slots=True)
class _Waiting:
    step: Spend | Note
    done: trio.Event = field(default_factory=trio.Event)
    succeeded: bool | None = None  # None: the register failed


class Writer:
    """`thread`: the register is not for two at once; all who use it share this one."""

    def __init__(self, register: Register, thread: OneThread) -> None:
        self._register = register
        self._thread = thread
        self._send, self._receive = trio.open_memory_channel[_Waiting](MAX_WAITING)

    async def write(self, step: Spend | Note) -> bool:
        """Durable on return; False for a token that is not for this key. Cancelled, it may or may not be written.

        Errors: AuthorityFailed.
        """
        waiting = _Waiting(step)
        await self._send.send(waiting)
        await waiting.done.wait()
        if waiting.succeeded is None:
            raise AuthorityFailed("the register of enrolled hosts cannot be used")
        return waiting.succeeded

    async def run(self) -> None:
        """For ever."""
        async for first in self._receive:
            batch = [first]
            while len(batch) < MAX_BATCH:
                try:
                    batch.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            await self._commit(batch)

    async def _commit(self, batch: list[_Waiting]) -> None:
        try:
            results = await self._thread.do(self._register.apply, [waiting.step for waiting in batch])
        except AuthorityFailed:
            pass  # it was logged, and each of them is told
        else:
            for waiting, succeeded in zip(batch, results, strict=True):
                waiting.succeeded = succeeded
        finally:
            for waiting in batch:
                waiting.done.set()
