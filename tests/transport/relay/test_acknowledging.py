"""When a receiver tells what was written: much soon, little by the clock, nothing never."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from transport.relay.channels import Channels
from transport.relay.cores import Cores
from transport.relay.lane_memory import lane_memory_of
from transport.relay.limits import LimitsSection
from transport.wire.control import Phase, Role
from transport.wire.messages import Ack
from transport.wire.window import ACK_BYTES

KIB = 1024


@dataclass
class Link:
    """Of a peer that knows one channel; when it was told what."""

    began: float
    told: list[tuple[int, int]] = field(default_factory=list)
    order: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(phase=Phase.OPEN, channels=1))

    async def send(self, message: Ack) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append((round((trio.current_time() - self.began) * 1000), message.written["0"]))


@pytest.mark.parametrize(
    ("frames", "told"),
    [
        ([(0, ACK_BYTES)], [(0, 1)]),
        ([(0, 512 * KIB)], [(10, 1)]),
        ([(0, 100 * KIB), (50, 450 * KIB)], [(50, 2)]),
        ([(0, 100 * KIB)], [(100, 1)]),
        ([(0, 600 * KIB), (4, 600 * KIB), (11, 600 * KIB), (300, 1)], [(10, 2), (21, 3), (400, 4)]),
    ],
    ids=["a window's half at once", "much", "little that becomes much", "little", "one after another"],
)
async def test_much_is_acknowledged_soon_and_little_by_the_clock(
    autojump_clock: trio.testing.MockClock, frames: list[tuple[int, int]], told: list[tuple[int, int]]
) -> None:
    channels = Channels(Role.DESTINATION, LimitsSection(), Cores(0), lane_memory_of(LimitsSection()))
    ours, theirs = socket.socketpair()
    channel = channels.add("memory", ours)
    link = Link(trio.current_time())
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channels.acknowledge, cast(Any, link), 0.1)
            for at, size in frames:
                await trio.sleep_until(link.began + at / 1000)
                channel.counts.received_frames += 1
                channel.wrote(size, False)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        channels.close()
    assert link.told == told
