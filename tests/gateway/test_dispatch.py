from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gateway.dispatch import MAX_WAITING, REDELIVER_SECONDS, Assignment, Dispatch, QueueFull

MIGRATE = frozenset({"migrate"})


@pytest.fixture
def dispatch() -> Dispatch:
    return Dispatch()


def assignment(name: str, seconds: float = 60, kind: str = "migrate") -> Assignment:
    return Assignment(name, kind, {"migration_id": name}, trio.current_time() + seconds)


async def test_a_waiting_poll_gets_what_is_assigned_at_once(dispatch: Dispatch, autojump_clock: MockClock) -> None:
    got: list[Any] = []

    async def poll() -> None:
        got.extend(await dispatch.poll("a", 30))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        await trio.sleep(3)
        dispatch.assign("a", assignment("m1"))
        begun = trio.current_time()
    assert got == [{"migration_id": "m1"}]
    assert trio.current_time() == begun


async def test_a_poll_with_nothing_to_do_ends_in_time(dispatch: Dispatch, autojump_clock: MockClock) -> None:
    begun = trio.current_time()
    assert await dispatch.poll("a", 30) == []
    assert trio.current_time() - begun == 30


async def test_another_host_gets_nothing(dispatch: Dispatch, autojump_clock: MockClock) -> None:
    dispatch.assign("a", assignment("m1"))
    assert await dispatch.poll("b", 0) == []


async def test_what_was_not_acknowledged_is_handed_out_again_and_then_no_more(
    dispatch: Dispatch, autojump_clock: MockClock
) -> None:
    dispatch.assign("a", assignment("m1"))
    assert len(await dispatch.poll("a", 0)) == 1
    assert await dispatch.poll("a", 0) == []
    begun = trio.current_time()
    assert len(await dispatch.poll("a", 30)) == 1
    assert trio.current_time() - begun == REDELIVER_SECONDS
    dispatch.acknowledge("a", "m1", MIGRATE)
    assert await dispatch.poll("a", 30) == []


async def test_a_cancel_is_not_acknowledged_by_a_report_on_the_migration(
    dispatch: Dispatch, autojump_clock: MockClock
) -> None:
    dispatch.assign("a", assignment("m1", kind="cancel"))
    dispatch.acknowledge("a", "m1", MIGRATE)
    assert len(await dispatch.poll("a", 0)) == 1


async def test_an_expired_assignment_is_not_handed_out(dispatch: Dispatch, autojump_clock: MockClock) -> None:
    dispatch.assign("a", assignment("m1", seconds=60))
    await trio.sleep(61)
    assert await dispatch.poll("a", 0) == []


async def test_a_newer_poll_ends_the_older_one_which_takes_nothing(
    dispatch: Dispatch, autojump_clock: MockClock
) -> None:
    older: list[Any] = []
    newer: list[Any] = []

    async def poll(into: list[Any]) -> None:
        into.append(await dispatch.poll("a", 30))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll, older)
        await trio.sleep(1)
        nursery.start_soon(poll, newer)
        await trio.sleep(1)
        assert older == [[]]
        dispatch.assign("a", assignment("m1"))
    assert newer == [[{"migration_id": "m1"}]]


async def test_a_cancelled_poll_leaves_everything_in_the_queue(dispatch: Dispatch, autojump_clock: MockClock) -> None:
    with trio.move_on_after(1):
        await dispatch.poll("a", 30)
    dispatch.assign("a", assignment("m1"))
    assert len(await dispatch.poll("a", 0)) == 1


async def test_a_queue_that_nobody_empties_is_bounded(dispatch: Dispatch, autojump_clock: MockClock) -> None:
    for number in range(MAX_WAITING):
        dispatch.assign("a", assignment(f"m{number}"))
    with pytest.raises(QueueFull):
        dispatch.assign("a", assignment("one more"))


async def test_a_relay_is_reachable_while_it_polls_and_some_time_after(
    dispatch: Dispatch, autojump_clock: MockClock
) -> None:
    assert not dispatch.is_reachable("a", 45)
    await dispatch.poll("a", 0)
    await trio.sleep(45)
    assert dispatch.is_reachable("a", 45)
    await trio.sleep(1)
    assert not dispatch.is_reachable("a", 45)


async def test_only_what_the_relay_does_not_have_can_be_withdrawn(
    dispatch: Dispatch, autojump_clock: MockClock
) -> None:
    assert not dispatch.withdraw("a", "m1")
    dispatch.assign("a", assignment("m1"))
    assert dispatch.withdraw("a", "m1")
    assert await dispatch.poll("a", 0) == []
    dispatch.assign("a", assignment("m2"))
    await dispatch.poll("a", 0)
    assert not dispatch.withdraw("a", "m2")


async def test_a_stop_ends_polls_at_once_and_leaves_the_queue(dispatch: Dispatch, autojump_clock: MockClock) -> None:
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        answers: list[list[dict[str, object]]] = []

        async def poll() -> None:
            answers.append(await dispatch.poll("a", 30))

        nursery.start_soon(poll)
        await trio.testing.wait_all_tasks_blocked()
        dispatch.close()
    assert answers == [[]]
    dispatch.assign("a", assignment("m1"))
    assert await dispatch.poll("a", 30) == []
    assert trio.current_time() == started
    assert dispatch.withdraw("a", "m1")


def test_a_version_is_news_once_however_often_a_host_changes_its_mind() -> None:
    dispatch = Dispatch(lambda: 0.0)
    assert dispatch.link("a") is None
    assert [dispatch.note_link("a", version) for version in (1, 2, 1, 2, 0, 1)] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    assert dispatch.link("a") == 1
