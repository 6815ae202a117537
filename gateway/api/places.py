"""Connections are few: so many for each address, so many in all, and when all are taken, room for whoever has fewer.

Strangers (no client certificate) could else take every place from some addresses and keep relays and people out for as
long as they like. When all places are taken, a newcomer gets that of the oldest stranger of the largest crowd, if that
crowd is larger than its own would be; else that of the oldest of its own. Of IPv6 a crowd is a /64, which one machine
may have for itself. Hosts of a rack share one with it, and have certificates, but only after their handshake: they must
be let in, and are out of its reach before it has renewed the whole crowd. People have no certificates: theirs keep
their places while a call of theirs lasts, or what it put on record would not be done; half of all places at most, or
one person with slow calls from many addresses would keep relays and everybody else out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter

import trio

from gateway.crowds import crowd_of


@dataclass(eq=False, slots=True)
class Place:
    """One connection's. When its place is given to another, `scope` is cancelled, then `close` called: what it sends is
    shielded from cancellation, and whoever does not read it would stay beside all who have places.
    """

    address: str
    crowd: str
    close: Callable[[], object]
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_stranger: bool = True
    kept: set[Place] = field(default_factory=set)  # of all places those that make no room for others
    most_kept: int = 0

    def keep(self) -> None:
        """Somebody has shown who they are: for the length of their call."""
        if len(self.kept) < self.most_kept:
            self.kept.add(self)

    def let_go(self) -> None:
        self.kept.discard(self)


class Places:
    def __init__(self, most: int, most_per_address: int) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._by_address: Counter[str] = Counter()
        self._taken: dict[Place, None] = {}  # the oldest first
        self._kept: set[Place] = set()

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, address: str, close: Callable[[], object]) -> Place | None:
        """A place, which is left by `leave`; None if there is none."""
        if self._by_address[address] >= self._most_per_address:
            return None
        place = Place(address, crowd_of(address), close, kept=self._kept, most_kept=max(1, self._most // 2))
        if len(self._taken) >= self._most:
            yielding = self._yielding_to(place)
            if yielding is None:
                return None
            self.leave(yielding)
            yielding.scope.cancel()
            yielding.close()
        self._by_address[address] += 1
        self._taken[place] = None
        return place

    def leave(self, place: Place) -> None:
        """Once, or again after its place was given away."""
        if place not in self._taken:
            return
        del self._taken[place]
        place.let_go()
        self._by_address[place.address] -= 1
        if not self._by_address[place.address]:
            del self._by_address[place.address]

    def _yielding_to(self, newcomer: Place) -> Place | None:
        strangers = [place for place in self._taken if place.is_stranger and place not in self._kept]
        crowds = Counter(place.crowd for place in strangers)
        largest, size = max(crowds.items(), key=itemgetter(1), default=("", 0))
        crowd = largest if size > crowds[newcomer.crowd] + 1 else newcomer.crowd
        return next((place for place in strangers if place.crowd == crowd), None)
