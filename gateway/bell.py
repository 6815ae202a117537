"""Rings when something that decisions stand on may have changed: then running migrations are looked at at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Bell:
    """Rings when something that decisions stand on may have changed."""

    def __init__(self) -> None:
        self._rung = trio.Event()
        self._rings = 0

    def ring(self) -> None:
        self._rings += 1
        self._rung.set()

    @contextmanager
    def again_if_missed(self) -> Iterator[None]:
        """For what is decided within and watched over only after it: what rang meanwhile rings again at the end."""
        before = self._rings
        try:
            yield
        finally:
            if self._rings != before:
                self._rung.set()  # not counted: of two that are decided at once neither would end the other's ringing

    async def wait(self, seconds: float) -> None:
        """Until it rings, `seconds` at most; what rings meanwhile rings the next time."""
        with trio.move_on_after(seconds):
            await self._rung.wait()
        self._rung = trio.Event()
