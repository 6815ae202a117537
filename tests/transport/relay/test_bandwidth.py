"""Limits of a session and of a host, and who gets which share."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
import trio.testing

from transport.relay.bandwidth import Bucket, HostBandwidth, Pace
from transport.wire.frames import MAX_PAYLOAD_BYTES

MIB = 1 << 20


def test_a_bucket_gives_its_rate_and_no_more_than_a_moment_in_advance() -> None:
    now = [100.0]
    bucket = Bucket(MIB, lambda: now[0])
    assert bucket.take(MIB) == pytest.approx(1.0)
    now[0] += 1.0
    assert bucket.take(MIB) == pytest.approx(1.0)
    now[0] += 3600.0  # an idle hour earns no burst of an hour
    assert bucket.take(MIB) == pytest.approx(1.0, abs=0.06)


async def send(pace: Pace, size: int, sent: Counter[str], name: str) -> None:
    while True:
        await pace.take(size)
        sent[name] += size


async def sent_within(seconds: float, senders: dict[str, tuple[Pace, int]]) -> Counter[str]:
    sent: Counter[str] = Counter()
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for name, (pace, lanes) in senders.items():
                for _ in range(lanes):
                    nursery.start_soon(send, pace, MIB // 16, sent, name)
    return sent


async def test_a_session_keeps_to_its_permit(autojump_clock: trio.testing.MockClock) -> None:
    sent = await sent_within(10, {"a": (Pace(10 * MIB, HostBandwidth()), 4)})
    assert sent["a"] == pytest.approx(100 * MIB, rel=0.02)


async def test_the_lower_of_permit_and_host_wins(autojump_clock: trio.testing.MockClock) -> None:
    host = HostBandwidth(5 * MIB)
    assert (await sent_within(10, {"a": (Pace(10 * MIB, host), 1)}))["a"] == pytest.approx(50 * MIB, rel=0.02)
    host = HostBandwidth(50 * MIB)
    assert (await sent_within(10, {"a": (Pace(10 * MIB, host), 1)}))["a"] == pytest.approx(100 * MIB, rel=0.02)


async def test_sessions_share_a_host_alike_however_many_lanes_they_have(
    autojump_clock: trio.testing.MockClock,
) -> None:
    host = HostBandwidth(30 * MIB)
    sent = await sent_within(10, {"one": (Pace(0, host), 1), "eight": (Pace(0, host), 8), "two": (Pace(0, host), 2)})
    assert sum(sent.values()) == pytest.approx(300 * MIB, rel=0.02)
    for name in ("one", "eight", "two"):
        assert sent[name] == pytest.approx(100 * MIB, rel=0.05), sent


async def test_what_one_session_leaves_another_takes(autojump_clock: trio.testing.MockClock) -> None:
    host = HostBandwidth(30 * MIB)
    sent = await sent_within(10, {"slow": (Pace(5 * MIB, host), 1), "fast": (Pace(0, host), 1)})
    assert sent["slow"] == pytest.approx(50 * MIB, rel=0.1)
    assert sent["fast"] == pytest.approx(250 * MIB, rel=0.05)


def test_without_any_limit_nobody_is_asked_to_wait() -> None:
    assert not Pace(0, HostBandwidth()).is_limited
    assert Pace(1, HostBandwidth()).is_limited
    assert Pace(0, HostBandwidth(1)).is_limited


def test_frames_are_small_where_the_rate_is_so_that_others_do_not_wait_long() -> None:
    assert Pace(1, HostBandwidth()).frame_bytes == 16 * 1024
    assert Pace(MIB, HostBandwidth(10 * MIB)).frame_bytes == MIB // 20
    assert Pace(0, HostBandwidth(1 << 40)).frame_bytes == MAX_PAYLOAD_BYTES
