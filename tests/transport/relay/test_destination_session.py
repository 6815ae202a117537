"""What a destination says of a session, and which of its connections counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.transport.site import Site
from transport.errors import ProtocolViolation
from transport.relay.destination import Destination
from transport.relay.destination_session import DestinationSession
from transport.relay.host import open_host
from transport.relay.socket_ends import SocketDestination
from transport.wire.control import Role


def session_in(state: str) -> DestinationSession:
    nothing: Any = None
    journal: Any = SimpleNamespace(state=state, facts={})
    return DestinationSession(nothing, nothing, journal, SocketDestination(None), Path(), nothing)


@pytest.mark.parametrize("state", ["admitted", "ended"])
@pytest.mark.parametrize("handed_over", [True, False])
async def test_of_a_session_that_has_not_begun_or_has_ended_no_outcome_is_made_up(
    state: str, *, handed_over: bool
) -> None:
    """It ended as the source was told; anything said now could be the other thing, and a guest would run twice."""
    with pytest.raises(ProtocolViolation, match="has ended"):
        await session_in(state).settle(handed_over=handed_over)


@pytest.mark.parametrize(("state", "outcome"), [("started", "running"), ("discarded", "discarded")])
@pytest.mark.parametrize("handed_over", [True, False])
async def test_the_same_is_said_for_ever_whatever_is_asked(state: str, outcome: str, *, handed_over: bool) -> None:
    assert await session_in(state).settle(handed_over=handed_over) == outcome


async def test_a_connection_that_waited_for_an_older_one_to_close_gives_way_to_a_newer_one() -> None:
    session, took = session_in("prepared"), dict[int, bool]()

    async def take(attempt: int) -> None:
        session.attempt = attempt  # as it is when the offer is let in
        took[attempt] = await session.take_connection(trio.CancelScope(), attempt)

    assert await session.take_connection(trio.CancelScope(), -1)
    async with trio.open_nursery() as nursery:
        for attempt in (1, 2):
            nursery.start_soon(take, attempt)
            await trio.testing.wait_all_tasks_blocked()
        assert not took, "both wait for the first one to close"
        session.leave_connection()
    assert took == {1: False, 2: True}


async def test_a_session_ends_when_it_is_settled_and_not_in_the_midst_of_that(site: Site) -> None:
    """Bye on one connection and Cancel on the next: both were written, each where the other may not follow."""
    host, may_end = open_host(site.relay_config("b")), trio.Event()

    class Slow(SocketDestination):
        async def discard(self) -> None:
            await may_end.wait()

    journal = host.spool.begin(Role.DESTINATION, "1" * 32)
    journal.append("prepared")
    session = DestinationSession(host, cast(Any, None), journal, Slow(None), Path("/nonexistent"), cast(Any, None))
    outcomes: list[str] = []

    async def settle() -> None:
        outcomes.append(await session.settle(handed_over=False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(settle)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(Destination(host, nursery)._end, session)
        await trio.testing.wait_all_tasks_blocked(0.05)
        may_end.set()
    assert (outcomes, journal.state) == (["discarded"], "ended")
