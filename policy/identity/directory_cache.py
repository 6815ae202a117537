"""Accounts that were read a short while ago: at most one look-up of an account at a time, at most so many kept.

The age of an entry counts from the start of its look-up: what changed while the answer was on its way is not fresh.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from policy.errors import AccountRefused
from policy.identity.directory_account import Account, AccountName

MAX_ENTRIES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Cached:
    """`read_at`: monotonic seconds, when its look-up began. `controller`: who told."""

    account: Account
    controller: str
    read_at: float


@dataclass(slots=True)
class _Turn:
    lock: trio.Lock = field(default_factory=trio.Lock)
    users: int = 0


class DirectoryCache:
    """In one trio task at a time. `clock` is monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float], max_entries: int = MAX_ENTRIES) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._entries: dict[AccountName, Cached] = {}
        self._turns: dict[AccountName, _Turn] = {}

    async def get(
        self, name: AccountName, not_before: float, find: Callable[[], Awaitable[tuple[Account, str]]]
    ) -> Cached:
        """What was read at `not_before` or later; else what `find` tells. Raises what `find` raises.

        Whoever waits for another's look-up takes its answer, if that began late enough; else looks up themself.
        """
        if (cached := self._young(name, not_before)) is not None:
            return cached
        async with self._turn(name):
            if (cached := self._young(name, not_before)) is not None:
                return cached
            started = self._clock()
            try:
                account, controller = await find()
            except AccountRefused:
                self.forget(name)
                raise
            return self._keep(name, Cached(account, controller, started))

    def forget(self, name: AccountName) -> None:
        self._entries.pop(name, None)

    def _young(self, name: AccountName, not_before: float) -> Cached | None:
        cached = self._entries.get(name)
        return cached if cached is not None and cached.read_at >= not_before else None

    def _keep(self, name: AccountName, cached: Cached) -> Cached:
        self._entries.pop(name, None)
        while len(self._entries) >= self._max_entries:
            del self._entries[next(iter(self._entries))]  # the one that was read longest ago
        self._entries[name] = cached
        return cached

    @asynccontextmanager
    async def _turn(self, name: AccountName) -> AsyncIterator[None]:
        turn = self._turns.setdefault(name, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[name]
