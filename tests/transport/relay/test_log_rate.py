"""A line a second, of each thing apart."""

from __future__ import annotations

from transport.relay.log_rate import LogRate


def test_a_line_a_second_of_each_thing_apart() -> None:
    seconds = [0.0]
    rate = LogRate(lambda: seconds[0])
    assert [rate.allows("a"), rate.allows("a"), rate.allows("a", "b"), rate.allows("a", "b")] == [
        True, False, True, False,
    ]  # fmt: skip
    seconds[0] = 0.9
    assert not rate.allows("a")
    seconds[0] = 1.0
    assert rate.allows("a")


def test_some_lines_at_once_where_many_are_honest() -> None:
    seconds = [0.0]
    rate = LogRate(lambda: seconds[0], at_once=3)
    assert [rate.allows("a") for _ in range(5)] == [True] * 3 + [False] * 2
    seconds[0] = 1.0
    assert [rate.allows("a") for _ in range(3)] == [True, False, False]
    seconds[0] = 60.0
    assert [rate.allows("a") for _ in range(5)] == [True] * 3 + [False] * 2


def test_of_what_is_long_past_nothing_is_kept() -> None:
    seconds = [0.0]
    rate = LogRate(lambda: seconds[0])
    for number in range(5000):
        seconds[0] = number * 0.01
        assert rate.allows(str(number))
    assert len(rate._next) <= 1024
