"""The queue of those who wait to leave this host."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from transport.errors import LocalBroken
from transport.hypervisors.errors import MigrationCancelled
from transport.relay.places import Places


async def test_as_many_as_there_are_places_go_at_once_and_the_others_in_their_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    places = Places(2)
    began: list[str] = []

    async def move(name: str) -> None:
        async with places.place(name, "vm", 100, trio.Event()):
            began.append(name)
            await trio.sleep(1.5 if name == "a" else 1)

    async with trio.open_nursery() as nursery:
        for name in "abcde":
            nursery.start_soon(move, name)
            await trio.testing.wait_all_tasks_blocked()
        assert began == ["a", "b"]
        assert [each.migration_id for each in places.waiting] == ["c", "d", "e"]
    assert began == ["a", "b", "c", "d", "e"]
    assert trio.current_time() == pytest.approx(3)
    assert places.waiting == ()


async def test_patience_ends_and_leaves_no_place_lost(autojump_clock: trio.testing.MockClock) -> None:
    places = Places(1)
    async with places.place("a", "vm", 1, trio.Event()):
        with pytest.raises(LocalBroken, match=r"5 s in the queue: limits.max_moves, of how many VMs at once, is 1"):
            async with places.place("b", "vm", 5, trio.Event()):
                pass
        assert places.waiting == ()
    async with places.place("c", "vm", 0, trio.Event()):
        pass


async def test_who_is_cancelled_in_the_queue_leaves_it(autojump_clock: trio.testing.MockClock) -> None:
    places, cancelled = Places(1), trio.Event()
    async with places.place("a", "vm", 1, trio.Event()), trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(MigrationCancelled):
                async with places.place("b", "vm", 500, cancelled):
                    pass

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        cancelled.set()
    assert places.waiting == ()


async def test_a_place_that_was_handed_to_somebody_who_just_stopped_goes_to_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    places = Places(1)
    order: list[str] = []

    async def move(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with places.place(name, "vm", 100, trio.Event()):
                order.append(name)

    async with trio.open_nursery() as nursery:
        stopped = trio.CancelScope()
        async with places.place("a", "vm", 1, trio.Event()):
            nursery.start_soon(move, "b", stopped)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(move, "c", trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
        stopped.cancel()  # b has been called and has not run since
    assert "c" in order
    with trio.fail_after(1):
        async with places.place("d", "vm", 0, trio.Event()):
            pass
