"""What a live destination does in each state with each event that a source can bring about, against the table of
`transport.wire.session_states`, which docs/wire-protocol.md prints. What is left of a session is seen by resuming it.

Not here: its recovery (`test_recovered_at_destination`), its deadlines (`test_hostile_resumption`,
`test_hostile_peer`), and its end in order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import trio

from tests.transport.relay.conftest import Pair
from tests.transport.relay.hostile import Driver
from tests.transport.relay.test_carriage import VM
from tests.transport.relay.test_hostile_resumption import begun, pair, resumed, said_something, vm_listener
from transport.errors import RefusalCode
from transport.wire.control import Role
from transport.wire.messages import Answer, Handover, Open, Outcome, Refusal
from transport.wire.session_states import TABLE, Event, State

pytestmark = pytest.mark.whole
__all__ = ["pair", "vm_listener"]  # fixtures
ELSEWHERE = {Event.RECOVERS, Event.DEADLINE, Event.DONE}
ROWS = [
    (state, event, step.state)
    for (end, state, event), step in TABLE.items()
    if end is Role.DESTINATION and event not in ELSEWHERE
]
HELD = {"0": 0}  # of what the destination has sent on its one channel


@dataclass
class Here:
    """A session of one channel, and the connection that carries it while it is connected."""

    pair: Pair
    permit: str
    driver: Driver
    connection: AsyncExitStack
    attempt: int = 0

    def next(self) -> int:
        self.attempt += 1
        return self.attempt

    async def settle(self) -> None:
        """And hear the outcome, but say no bye: the destination knows it for ever."""
        async with Driver.connected(self.pair.address, self.pair.source.credentials) as settling:
            session_id, attempt = self.driver.session_id, self.next()
            said = await settling.offer(self.permit, session_id=session_id, attempt=attempt, purpose="settle")
            assert isinstance(said, Answer)
            await settling.send(Handover())
            assert await settling.hear() == Outcome("discarded")

    async def reach(self, state: State) -> None:
        if state is not State.CONNECTED:
            await self.connection.aclose()
        if state is State.OVER:
            await self.settle()

    async def bring_about(self, event: Event, state: State) -> None:
        match event:
            case Event.LOST:
                await self.connection.aclose()
            case Event.RESUMED:
                said = await resumed(self.pair, self.permit, self.driver.session_id, self.next(), HELD)
                assert isinstance(said, Refusal if state is State.OVER else Answer)
            case Event.STRANGE_OFFER:
                said = await resumed(self.pair, self.pair.site.permit(vm=VM), self.driver.session_id, 99, HELD)
                assert isinstance(said, Refusal)
                assert said.code is RefusalCode.SESSION_UNKNOWN
            case Event.SETTLES:
                await self.settle()
            case Event.VIOLATION if state is State.CONNECTED:
                await self.driver.send(Open(7, "memory"))
                await self.driver.hear_all()
            case Event.VIOLATION:
                assert not isinstance(
                    await resumed(self.pair, self.permit, self.driver.session_id, self.next(), {"0": 9}), Answer
                )
            case _:
                raise AssertionError(event)


@pytest.fixture
async def here(pair: Pair, vm_listener: trio.SocketListener) -> AsyncIterator[Here]:
    permit = pair.site.permit(vm=VM)
    async with AsyncExitStack() as connection:
        driver = await connection.enter_async_context(begun(pair, permit))
        await connection.enter_async_context(said_something(driver))
        async with await vm_listener.accept() as taken:
            assert await taken.receive_some(3)
            yield Here(pair, permit, driver, connection)


@pytest.mark.parametrize(("state", "event", "following"), ROWS, ids=lambda each: each.name.lower())
async def test_a_live_destination_keeps_to_the_table(here: Here, state: State, event: Event, following: State) -> None:
    with trio.fail_after(30):
        await here.reach(state)
        await here.bring_about(event, state)
        said = await resumed(here.pair, here.permit, here.driver.session_id, here.next(), HELD)
    assert isinstance(said, Answer) is (following is not State.OVER), said
