from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from gateway.dispatch import FETCH_SECONDS, MAX_WAITING, REDELIVER_SECONDS, Assignment, Dispatch, QueueFull
from transport.link_version import FETCHES

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


async def test_what_nobody_acknowledges_is_told_so_often_and_leaves_its_place(
    dispatch: Dispatch, autojump_clock: MockClock
) -> None:
    for number in range(MAX_WAITING):
        told = assignment(f"e{number}", 86_400, "withdraw_evacuation")
        told.tells_left = 3
        dispatch.assign("a", told)
    for _ in range(3):
        assert len(await dispatch.poll("a", 0)) == MAX_WAITING
        await trio.sleep(REDELIVER_SECONDS)
    assert await dispatch.poll("a", 0) == []
    dispatch.assign("a", assignment("m1"))


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
    ((host, withdrawn),) = dispatch.withdrawn()
    assert (host, withdrawn.migration_id) == ("a", "m1")
    assert await dispatch.poll("a", 0) == []
    dispatch.assign("a", assignment("m2"))
    await dispatch.poll("a", 0)
    assert not dispatch.withdraw("a", "m2")


TOLD = {"kind": "permit", "migration_id": "m1"}


@pytest.fixture
def fetching(dispatch: Dispatch) -> Dispatch:
    """The relay of `a` fetches its permits."""
    dispatch.note_link("a", FETCHES)
    return dispatch


async def test_a_poll_tells_of_a_permit_which_its_host_alone_fetches_as_often_as_it_needs(
    fetching: Dispatch, autojump_clock: MockClock
) -> None:
    fetching.assign("a", assignment("m1"))
    fetching.assign("a", assignment("m1", kind="cancel"))
    assert await fetching.poll("a", 0) == [TOLD, {"migration_id": "m1"}]
    assert fetching.fetch("b", "m1") is None
    assert fetching.fetch("a", "m2") is None
    assert fetching.fetch("a", "m1") == fetching.fetch("a", "m1") == {"migration_id": "m1"}
    await trio.sleep(FETCH_SECONDS + 1)
    assert fetching.withdrawn() == []
    fetching.acknowledge("a", "m1", MIGRATE)
    assert fetching.fetch("a", "m1") is None


@pytest.mark.parametrize("is_told", [False, True], ids=["nobody polls", "the answer goes to a host that died"])
async def test_a_permit_that_nobody_fetches_is_withdrawn_for_good_and_its_host_is_not_waited_for_again(
    fetching: Dispatch, autojump_clock: MockClock, is_told: bool
) -> None:
    async with trio.open_nursery() as nursery:
        if is_told:
            nursery.start_soon(fetching.poll, "a", FETCH_SECONDS + 5)
        else:
            await fetching.poll("a", 0)
        await trio.testing.wait_all_tasks_blocked()
        fetching.assign("a", assignment("m1"))
        await trio.sleep(FETCH_SECONDS - 1)
        assert fetching.withdrawn() == []
        assert fetching.is_reachable("a", 45)
        await trio.sleep(1)
        assert fetching.fetch("a", "m1") is None, "withdrawn in the very moment, whoever looks first"
        ((host, withdrawn),) = fetching.withdrawn()
        assert (host, withdrawn.migration_id) == ("a", "m1")
        assert fetching.withdrawn() == []
        await trio.testing.wait_all_tasks_blocked()
        assert not fetching.is_reachable("a", 45)
    assert await fetching.poll("a", 0) == []
    assert fetching.is_reachable("a", 45)


async def test_a_relay_that_is_restarted_gets_what_was_assigned_meanwhile(
    fetching: Dispatch, autojump_clock: MockClock
) -> None:
    with trio.move_on_after(1):
        await fetching.poll("a", 30)
    fetching.assign("a", assignment("m1"))
    await trio.sleep(5)
    assert fetching.is_reachable("a", 45)
    assert await fetching.poll("a", 30) == [TOLD]
    assert fetching.fetch("a", "m1") is not None


async def test_a_relay_whose_connection_ended_is_reachable_no_longer_than_a_permit_waits(
    fetching: Dispatch, autojump_clock: MockClock
) -> None:
    with trio.move_on_after(1):
        await fetching.poll("a", 30)
    await trio.sleep(FETCH_SECONDS)
    assert fetching.is_reachable("a", 45)
    await trio.sleep(1)
    assert not fetching.is_reachable("a", 45)


async def test_the_end_of_an_older_connection_is_not_that_of_the_relay(
    fetching: Dispatch, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        older = trio.CancelScope()

        async def poll_until_cut() -> None:
            with older:
                await fetching.poll("a", 30)

        nursery.start_soon(poll_until_cut)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(fetching.poll, "a", 40)
        older.cancel()
        await trio.sleep(FETCH_SECONDS + 1)
        assert fetching.is_reachable("a", 45)


async def test_a_permit_of_a_short_life_is_withdrawn_at_its_end(fetching: Dispatch, autojump_clock: MockClock) -> None:
    fetching.assign("a", assignment("m1", seconds=5))
    await trio.sleep(5)
    assert [each.migration_id for _, each in fetching.withdrawn()] == ["m1"]


STEPS = st.lists(st.sampled_from(["assign", "fetch", "withdraw", "acknowledge", "look", "tick", "long tick"]))


@given(STEPS)
def test_nothing_is_fetched_that_was_withdrawn_and_nothing_withdrawn_that_was_fetched(steps: list[str]) -> None:
    now, number, fetched, gone = 0.0, 0, set(), set()
    dispatch = Dispatch(lambda: now)
    dispatch.note_link("a", FETCHES)
    for step in steps:
        name = f"m{number}"
        match step:
            case "assign":
                number += 1
                dispatch.assign("a", Assignment(f"m{number}", "migrate", {}, now + 60))
            case "fetch" if dispatch.fetch("a", name) is not None:
                fetched.add(name)
            case "withdraw" if dispatch.withdraw("a", name):
                gone.add(name)
            case "acknowledge":
                dispatch.acknowledge("a", name, MIGRATE)
            case "look":
                gone |= {each.migration_id for _, each in dispatch.withdrawn()}
            case "tick" | "long tick":
                now += FETCH_SECONDS if step == "long tick" else 1.0
    gone |= {each.migration_id for _, each in dispatch.withdrawn()}
    assert not fetched & gone
    assert all(dispatch.fetch("a", name) is None for name in gone)


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
