"""A peer that acknowledges nothing, although its kernel has what was sent to it: for how long to believe it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_MOST_TIMES = 16
_STALE_SECONDS = 3.0


@dataclass(slots=True)
class Patience:
    """With a session's peer, over all of its channels and connections.

    It begins with `seconds`. Whoever has lost it asks the peer over another connection, whose Answer tells what the
    peer holds. Its hypervisor may just take nothing, and that answer be no news: so it is twice as long the next time,
    up to sixteen times, until something is acknowledged, and then at least twice what the peer has needed once.

    `may_ask`: whether another connection may be had; `is_deaf`: that acknowledgements are not heard at the moment.
    """

    seconds: float
    may_ask: Callable[[], bool] = lambda: True
    is_deaf: bool = False
    left: float = field(init=False)
    _least: float = field(init=False)
    _was_lost: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.left = self._least = self.seconds

    def lose(self) -> None:
        """The connection is given up for it."""
        self._was_lost = True

    def renew(self) -> None:
        """Another connection."""
        if self._was_lost:
            self._was_lost = False
            self.left = min(2 * self.left, _MOST_TIMES * self.seconds)

    def reward(self, waited_seconds: float) -> None:
        """The peer has acknowledged something after so long."""
        self._least = max(self._least, min(2 * waited_seconds, _MOST_TIMES * self.seconds))
        self.left = self._least

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Nothing that the peer says is heard within."""
        self.is_deaf = True
        try:
            yield
        finally:
            self.is_deaf = False


@dataclass(slots=True)
class Silence:
    """Of one channel's peer; looked at about once a second."""

    patience: Patience
    _since: float | None = None
    _known: int = 0
    _looked: float = float("inf")

    def begin(self) -> None:
        """Another connection, or another reason to believe it."""
        self._since = None

    def look(self, acknowledged: int, is_there: bool, now: float) -> bool:
        """Whether it is too long now. `acknowledged`: frames; `is_there`: that the peer's kernel has others, whole;
        `now`: seconds, steady."""
        # What a process that stood still itself has not read yet may be the answer.
        was_away, self._looked = now > self._looked + _STALE_SECONDS, now
        if acknowledged != self._known:
            self._known = acknowledged
            if self._since is not None:
                self.patience.reward(now - self._since)
            self.begin()
        if was_away or self.patience.is_deaf:
            self.begin()
        if self._since is None:
            self._since = now if is_there and not self.patience.is_deaf else None
            return False
        if now < self._since + self.patience.left:
            return False
        self.begin()
        self.patience.lose()
        return True
