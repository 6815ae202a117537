"""Refusals within a rate: what was left out is told in the next record of its key; a log that fails costs no place."""

from __future__ import annotations

from typing import Any, cast

import pytest
import trio

from gateway.errors import LogUnavailable
from gateway.recorded_refusals import RecordedRefusals, of_strangers
from gateway.recording import Event, Recorder
from gateway.throttle import Throttle

REFUSED = Event("token.refused", "denied")


class Kept:
    """A recorder that keeps what was left out before each event."""

    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[int] = []
        self.is_broken = False

    async def append(self, event: Event) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.is_broken:
            raise LogUnavailable("full")
        self.told.append(event.details["left_out_before"])

    def monotonic(self) -> float:
        return self.now


async def test_strangers_are_counted_together() -> None:
    kept = Kept()
    refusals = of_strangers(cast(Recorder, kept), kept.monotonic)
    for _ in range(50):
        await refusals.record(REFUSED)
    assert kept.told == [0] * 20
    kept.now = 1.0
    await refusals.record(REFUSED)
    assert kept.told[20:] == [30]


async def test_of_each_key_what_was_left_out_is_told_apart() -> None:
    kept = Kept()
    refusals = RecordedRefusals(cast(Recorder, kept), Throttle(1, 60, kept.monotonic))
    for key in ("a", "b", "a", "a", "b"):
        await refusals.record(REFUSED, key)
    kept.now = 60.0
    await refusals.record(REFUSED, "b")
    await refusals.record(REFUSED, "a")
    assert kept.told == [0, 0, 1, 2]


async def test_what_a_broken_log_did_not_take_is_left_out_and_its_place_is_not() -> None:
    kept = Kept()
    refusals = RecordedRefusals(cast(Recorder, kept), Throttle(1, 60, kept.monotonic))
    kept.is_broken = True
    for _ in range(3):
        with pytest.raises(LogUnavailable):
            await refusals.record(REFUSED)
    kept.is_broken = False
    await refusals.record(REFUSED)
    assert kept.told == [3]


async def test_who_hangs_up_while_it_is_recorded_gets_no_further_record_for_it() -> None:
    """A record that was waited for may come after all, and would be one more each time."""
    kept = Kept()
    refusals = RecordedRefusals(cast(Recorder, kept), Throttle(1, 60, kept.monotonic))
    with trio.CancelScope() as gone:
        gone.cancel()
        await refusals.record(REFUSED)
    assert gone.cancelled_caught
    await refusals.record(REFUSED)
    assert kept.told == []
    kept.now = 60.0
    await refusals.record(REFUSED)
    assert kept.told == [2]
