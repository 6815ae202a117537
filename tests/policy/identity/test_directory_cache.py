"""Ages, turns and bounds of the cache of accounts."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from policy.errors import AccountRefused, DirectoryUnavailable
from policy.identity.directory_account import Account, AccountName, AccountState
from policy.identity.directory_cache import Cached, DirectoryCache

ALICE = AccountName("userPrincipalName", "alice@corp.example")
STATE = AccountState(False, False, False, False, None)


@dataclass
class World:
    """A clock, and a directory whose answers are numbered."""

    now: float = 100.0
    calls: int = 0
    gate: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None

    def clock(self) -> float:
        return self.now

    async def find(self) -> tuple[Account, str]:
        self.calls += 1
        number = self.calls
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Account(f"guid-{number}", "S-1-5-21-1", "alice", frozenset({"S-1-5-21-2"}), STATE), "dc1"


async def test_the_age_counts_from_the_start_of_the_look_up() -> None:
    world = World()
    cache = DirectoryCache(world.clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.get, ALICE, 100.0, world.find)
        await wait_all_tasks_blocked()
        world.now = 130.0
        world.gate.set()
    assert (await cache.get(ALICE, 100.0, world.find)).read_at == 100.0
    assert world.calls == 1
    assert (await cache.get(ALICE, 100.1, world.find)).read_at == 130.0


async def test_who_wants_it_fresh_does_not_take_an_answer_that_began_before_they_asked() -> None:
    world = World()
    cache = DirectoryCache(world.clock)
    got: list[Cached] = []

    async def ask(not_before: float) -> None:
        got.append(await cache.get(ALICE, not_before, world.find))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 40.0)
        await wait_all_tasks_blocked()
        world.now = 101.0
        nursery.start_soon(ask, 101.0)  # fresh
        nursery.start_soon(ask, 41.0)  # content with what is on its way
        await wait_all_tasks_blocked()
        assert world.calls == 1
        world.gate.set()
    assert sorted(each.account.guid for each in got)[0] == "guid-1"
    assert world.calls == 2


async def test_a_failure_is_nobodys_answer_and_the_next_one_asks_again() -> None:
    world = World(error=DirectoryUnavailable("timeout", "x"))
    world.gate.set()
    cache = DirectoryCache(world.clock)
    for _ in range(2):
        with pytest.raises(DirectoryUnavailable):
            await cache.get(ALICE, 0, world.find)
    assert world.calls == 2
    world.error = None
    await cache.get(ALICE, 0, world.find)
    world.error = AccountRefused("unknown", "x")
    with pytest.raises(AccountRefused):
        await cache.get(ALICE, 101, world.find)
    world.error = None
    await cache.get(ALICE, 0, world.find)
    assert world.calls == 5  # an account that is gone is forgotten, also for those content with an old answer
    assert not cache._turns


async def test_one_who_gives_up_does_not_hold_up_the_others() -> None:
    world = World()
    cache = DirectoryCache(world.clock)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as first:
                first.start_soon(cache.get, ALICE, 0, world.find)
                await wait_all_tasks_blocked()
                nursery.start_soon(cache.get, ALICE, 0, world.find)
                await wait_all_tasks_blocked()
                scope.cancel()
        world.gate.set()
    assert world.calls == 2
    assert not cache._turns


async def test_it_stays_small() -> None:
    world = World()
    world.gate.set()
    cache = DirectoryCache(world.clock, max_entries=2)
    for name in ("a", "b", "c"):
        await cache.get(AccountName("sAMAccountName", name), 0, world.find)
    await cache.get(AccountName("sAMAccountName", "c"), 0, world.find)
    assert world.calls == 3
    await cache.get(AccountName("sAMAccountName", "a"), 0, world.find)
    assert world.calls == 4
    assert len(cache._entries) == 2
