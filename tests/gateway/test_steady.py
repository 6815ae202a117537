"""Time that never goes back, whatever is done to the wall clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gateway.recording import Clock
from gateway.steady import SteadyTime

START = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)


class Hands:
    def __init__(self) -> None:
        self.wall = START
        self.ticks = 0

    def time(self) -> SteadyTime:
        return SteadyTime(Clock(lambda: self.wall, lambda: self.ticks))

    def step(self, wall_seconds: float, seconds: float) -> None:
        self.wall += timedelta(seconds=wall_seconds)
        self.ticks += int(seconds * 1e9)


@given(st.lists(st.tuples(st.integers(-100_000, 100_000), st.integers(0, 10_000)), max_size=20))
def test_it_never_goes_back_and_is_never_slower_than_time(steps: list[tuple[int, int]]) -> None:
    hands = Hands()
    time = hands.time()
    for wall_seconds, seconds in steps:
        before = time.now()
        hands.step(wall_seconds, seconds)
        assert time.now() >= before + seconds
        assert time.now() >= int(hands.wall.timestamp())


def test_it_follows_a_clock_that_is_right() -> None:
    hands = Hands()
    time = hands.time()
    hands.step(3600, 3600)
    assert time.now() == int(hands.wall.timestamp())


def test_it_goes_on_from_what_the_log_says() -> None:
    hands = Hands()
    time = hands.time()
    time.not_before(int(START.timestamp()) + 500)
    time.not_before(int(START.timestamp()) + 100)
    hands.step(10, 10)
    assert time.now() == int(START.timestamp()) + 510
