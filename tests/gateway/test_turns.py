"""Turns: so many in all, so many of each, and nobody kept out by one who asks for much."""

from __future__ import annotations

import trio
import trio.testing

from gateway.errors import Overloaded
from gateway.turns import WAIT_SECONDS, Turns


async def test_one_who_asks_for_much_leaves_room_for_others() -> None:
    turns, within, leave = Turns(3, 2), list[str](), trio.Event()

    async def ask(name: str) -> None:
        async with turns.of(name):
            within.append(name)
            await leave.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask, "much")
        await trio.testing.wait_all_tasks_blocked()
        assert within == ["much"] * 2
        nursery.start_soon(ask, "little")
        await trio.testing.wait_all_tasks_blocked()
        assert within[2:] == ["little"]
        nursery.start_soon(ask, "late")  # all three are taken
        await trio.testing.wait_all_tasks_blocked()
        assert len(within) == 3
        leave.set()
    assert sorted(within) == ["late", "little", *["much"] * 5]
    assert not turns._own  # nothing is kept of who is gone


async def test_who_gives_up_waiting_takes_no_place() -> None:
    turns = Turns(1, 1)
    async with turns.of("a"):
        with trio.move_on_after(0) as scope:
            async with turns.of("b"):
                raise AssertionError("it is taken")
        assert scope.cancelled_caught
    async with turns.of("b"):
        pass
    assert not turns._own


async def test_nobody_waits_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    turns, errors = Turns(1, 1), list[Overloaded]()

    async def ask(name: str) -> None:
        try:
            async with turns.of(name):
                await trio.sleep_forever()
        except Overloaded as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "a")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, "a")
        nursery.start_soon(ask, "b")
        await trio.sleep(WAIT_SECONDS + 1)
        assert len(errors) == 2
        nursery.cancel_scope.cancel()
    async with turns.of("b"):
        pass
    assert not turns._own
