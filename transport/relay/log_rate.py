"""How often the log says what a peer can bring about again and again: a line a second, of each thing apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

_SECONDS: Final = 1.0
_MAX_REMEMBERED: Final = 1024


class LogRate:
    """Nobody fills the disk, or hides another's line. `clock`: seconds, never back. `at_once`: lines of each thing
    after it was quiet for so many seconds."""

    def __init__(self, clock: Callable[[], float] = trio.current_time, at_once: int = 1) -> None:
        self._clock = clock
        self._ahead = (at_once - 1) * _SECONDS
        self._next: dict[tuple[str, ...], float] = {}  # when the next line would be due, a second after each

    def allows(self, *what: str) -> bool:
        """Whether to say it now: not where it was said within the last second."""
        now = self._clock()
        due = max(now, self._next.get(what, now))
        if due - now > self._ahead:
            return False
        if len(self._next) >= _MAX_REMEMBERED:
            self._next = {each: at for each, at in self._next.items() if at > now}
        self._next[what] = due + _SECONDS
        return True
