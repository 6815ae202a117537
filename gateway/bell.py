"""Rings when something that decisions stand on may have changed: then running migrations are looked at at once."""

from __future__ import annotations

import trio


class Bell:
    """Rings when something that decisions stand on may have changed."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, seconds: float) -> None:
        """Until it rings, `seconds` at most; what rings meanwhile rings the next time."""
        with trio.move_on_after(seconds):
            await self._rung.wait()
        self._rung = trio.Event()
