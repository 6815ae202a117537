"""How often the log says what a peer can bring about again and again: a line a second, of each thing apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

_SECONDS: Final = 1.0
_MAX_REMEMBERED: Final = 1024


class LogRate:
    """Nobody fills the disk, or hides another's line. `clock`: seconds, never back."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._said: dict[tuple[str, ...], float] = {}

    def allows(self, *what: str) -> bool:
        """Whether to say it now: not where it was said within the last second."""
        now = self._clock()
        if now - self._said.get(what, -math.inf) < _SECONDS:
            return False
        if len(self._said) >= _MAX_REMEMBERED:
            self._said = {each: at for each, at in self._said.items() if now - at < _SECONDS}
        self._said[what] = now
        return True
