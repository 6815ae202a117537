"""Who has not proven himself: how many, how long, and who gives way to whom."""

from __future__ import annotations

import trio
import trio.testing

from transport.relay.limits import LimitsSection
from transport.relay.strangers import HandshakeTurns, Strangers


def test_at_its_cap_an_address_loses_its_oldest_stranger() -> None:
    async def main() -> None:
        strangers = Strangers(LimitsSection(max_unauthenticated=4, max_unauthenticated_per_address=2))
        first, other = strangers.enter("10.0.0.1"), strangers.enter("10.0.0.2")
        second, third = strangers.enter("10.0.0.1"), strangers.enter("10.0.0.1")
        assert [s.cancel_called for s in (first, second, third, other)] == [True, False, False, False]
        assert len(strangers) == 3

    trio.run(main)


def test_at_the_cap_of_all_the_address_with_the_most_gives_way_and_the_oldest_of_equals() -> None:
    async def main() -> None:
        strangers = Strangers(LimitsSection(max_unauthenticated=4, max_unauthenticated_per_address=2))
        honest = strangers.enter("10.0.0.2")
        first, second = strangers.enter("10.0.0.1"), strangers.enter("10.0.0.1")
        strangers.enter("10.0.0.3")
        strangers.enter("10.0.0.4")
        assert [s.cancel_called for s in (honest, first, second)] == [False, True, False]
        strangers.enter("10.0.0.5")
        assert honest.cancel_called
        assert len(strangers) == 4

    trio.run(main)


def test_who_has_proven_himself_is_not_put_out() -> None:
    async def main() -> None:
        strangers = Strangers(LimitsSection(max_unauthenticated_per_address=1))
        first = strangers.enter("10.0.0.1")
        strangers.proven(first)
        strangers.enter("10.0.0.1")
        assert not first.cancel_called
        assert first.deadline == float("inf")
        strangers.leave(first)
        assert len(strangers) == 1

    trio.run(main)


async def test_handshakes_beyond_the_rate_wait(autojump_clock: trio.testing.MockClock) -> None:
    turns, begun = HandshakeTurns(3), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        for _ in range(7):
            await turns.take("10.0.0.1")
            begun.append(trio.current_time())
        nursery.cancel_scope.cancel()
    assert begun[2] - begun[0] < 1 <= begun[3] - begun[0]
    assert 2 <= begun[6] - begun[0] < 3


async def test_one_address_keeps_only_itself_waiting(autojump_clock: trio.testing.MockClock) -> None:
    turns, begun = HandshakeTurns(10), {}

    async def handshake(address: str, number: int) -> None:
        await turns.take(address)
        begun[address, number] = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        async with trio.open_nursery() as all_of_them:
            for number in range(200):
                all_of_them.start_soon(handshake, "10.0.0.66", number)
            await trio.testing.wait_all_tasks_blocked()
            all_of_them.start_soon(handshake, "10.0.0.1", 0)
        nursery.cancel_scope.cancel()
    assert begun["10.0.0.1", 0] <= 1.2
    assert max(begun.values()) >= 19


async def test_who_gives_up_waiting_costs_no_turn(autojump_clock: trio.testing.MockClock) -> None:
    turns = HandshakeTurns(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await turns.take("10.0.0.1")
        with trio.move_on_after(0.5) as impatient:
            await turns.take("10.0.0.2")
        assert impatient.cancelled_caught
        await turns.take("10.0.0.3")
        assert 1 <= trio.current_time() < 1.1
        nursery.cancel_scope.cancel()
