"""For how long a peer is believed that acknowledges nothing of what its kernel has."""

from __future__ import annotations

from itertools import pairwise

from transport.relay.limits import LimitsSection
from transport.relay.unacknowledged import Patience, Silence


def lost_at(silence: Silence, acknowledged: list[int], *, is_there: list[bool] | None = None) -> list[int]:
    """The seconds at which it was too long, looked at once in each; another connection came at once."""
    there = is_there or [True] * len(acknowledged)
    lost = []
    for at, count in enumerate(acknowledged):
        if silence.look(count, there[at], float(at)):
            lost.append(at)
            silence.patience.renew()
    return lost


def test_each_time_is_twice_as_long_up_to_sixteen_times() -> None:
    lost = lost_at(Silence(Patience(2.0)), [0] * 140)
    assert lost[0] == 2
    assert [later - sooner - 1 for sooner, later in pairwise(lost)] == [4, 8, 16, 32, 32, 32]


def test_an_acknowledgement_begins_it_anew() -> None:
    assert lost_at(Silence(Patience(3.0)), [0, 0, 1, 1, 1, 1, 1]) == [6]
    assert lost_at(Silence(Patience(2.0)), [0, 0, 0, 0, 1, 1, 1, 1, 1]) == [2, 6]


def test_a_peer_that_has_needed_longer_is_given_twice_that() -> None:
    """Else a slow one would be lost once for each of its frames."""
    assert lost_at(Silence(Patience(2.0)), [0] * 7 + [1] * 20) == [2, 15]  # it took 4, so it has 8


def test_while_nothing_is_under_way_nobody_is_lost_and_what_is_counts_from_its_own_time() -> None:
    assert lost_at(Silence(Patience(2.0)), [0] * 6, is_there=[False] * 6) == []
    assert lost_at(Silence(Patience(2.0)), [0] * 6, is_there=[False, False, True, False, False, False]) == [4]


def test_another_connection_has_its_own_time() -> None:
    silence = Silence(Patience(2.0))
    assert lost_at(silence, [0, 0]) == []
    silence.begin()
    assert lost_at(silence, [0, 0, 0]) == [2]


def test_all_channels_of_a_session_lose_one_patience() -> None:
    patience = Patience(2.0)
    channels = [Silence(patience) for _ in range(8)]
    assert [each.look(0, True, at) for at in (0.0, 2.0) for each in channels] == [False] * 8 + [True] * 8
    patience.renew()
    assert patience.left == 4.0


def test_who_does_not_listen_or_stood_still_itself_is_not_told_that_it_was_too_long() -> None:
    silence = Silence(Patience(2.0))
    with silence.patience.deaf():
        assert lost_at(silence, [0] * 6) == []
    assert lost_at(silence, [0] * 3) == [2]
    stood = Silence(Patience(2.0))
    assert [stood.look(0, True, at) for at in (0.0, 9.0, 10.0, 11.0)] == [False, False, False, True]


def test_no_connection_is_given_up_where_no_other_may_be_had() -> None:
    limits = LimitsSection(resume_seconds=60.0, unacknowledged_seconds=10.0)
    assert limits.may_ask_again(60.0)
    assert not limits.may_ask_again(9.0)  # the session ends before
    assert LimitsSection(resume_seconds=3.0).may_ask_again(3.0)
    assert not LimitsSection(resume_seconds=0.0).may_ask_again(0.0)
