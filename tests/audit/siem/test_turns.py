"""What is made of batches, beside whoever waits for an answer."""

from __future__ import annotations

import threading
import time

import pytest
import trio
import trio.testing

from audit.siem.turns import PAUSE_SECONDS, SLICE_SECONDS, ahead_of_deliveries, made

MANY = 20


def slowly(item: int) -> int:
    """As long as a slice: each one is a turn of its own."""
    time.sleep(SLICE_SECONDS)
    return item * 2


async def test_all_is_made_in_order() -> None:
    assert await made(lambda item: item * 2, range(5_000)) == [item * 2 for item in range(5_000)]
    assert await made(slowly, []) == []


async def test_what_cannot_be_made_is_told() -> None:
    with pytest.raises(ZeroDivisionError):
        await made(lambda item: 1 // item, [1, 1, 0])
    assert await made(slowly, [1]) == [2]  # and stops nobody else


async def test_two_deliveries_make_one_at_a_time_and_take_turns() -> None:
    order: list[str] = []
    running = threading.Lock()

    def noting(item: str) -> None:
        assert running.acquire(blocking=False)
        order.append(item)
        time.sleep(SLICE_SECONDS)
        running.release()

    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(made, noting, [name] * MANY)
    assert "".join(order).count("aa") <= 1
    assert len(order) == 2 * MANY


async def test_who_waits_for_an_answer_is_ahead_of_all_slices_but_one() -> None:
    done: list[int] = []

    async def deliver() -> None:
        await made(lambda item: done.append(slowly(item)), range(1_000))
        raise AssertionError("it was to be cancelled")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(deliver)
        while not done:
            await trio.sleep(0)
        with ahead_of_deliveries():
            before, began = len(done), trio.current_time()
            await trio.sleep(PAUSE_SECONDS * MANY)
            took = trio.current_time() - began
        # At most one slice between two pauses, and those of the beginning and the end.
        assert len(done) - before <= took / PAUSE_SECONDS + 2
        nursery.cancel_scope.cancel()


async def test_a_crowd_that_asks_without_a_pause_ends_no_delivery() -> None:
    with ahead_of_deliveries(), ahead_of_deliveries():
        assert await made(slowly, range(MANY)) == [item * 2 for item in range(MANY)]


async def test_once_nobody_waits_a_delivery_pauses_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.siem.turns.PAUSE_SECONDS", 3600)
    done: list[str] = []
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            with ahead_of_deliveries():
                nursery.start_soon(made, done.append, ["in the pause"])
                await trio.testing.wait_all_tasks_blocked()
                assert done == []
        await made(done.append, ["after it"])
    assert done == ["in the pause", "after it"]
