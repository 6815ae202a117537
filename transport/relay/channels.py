"""The channels of one connection while they run: counts for acknowledgements, and who waits for their end."""

from __future__ import annotations

import socket

import trio

from transport.relay.bandwidth import Pace
from transport.relay.control import ControlLink
from transport.relay.lane import ChannelCounts, carry_channel
from transport.wire.control import Phase, Role
from transport.wire.frames import LaneOpener, LaneSealer
from transport.wire.keys import ConnectionKeys, Direction
from transport.wire.messages import Ack

_ACK_PHASES = frozenset({Phase.OPEN, Phase.HANDING_OVER, Phase.SETTLED})


class Channels:
    """All channels of one connection, at either end."""

    def __init__(self, role: Role, keys: ConnectionKeys) -> None:
        outward, inward = Direction.SOURCE_TO_DESTINATION, Direction.DESTINATION_TO_SOURCE
        if role is Role.DESTINATION:
            outward, inward = inward, outward
        self._outward, self._inward = outward, inward
        self._keys = keys
        self.counts: list[ChannelCounts] = []
        self.pace: Pace | None = None  # how fast this end may send
        self._running = 0
        self._ended = trio.Event()

    def add(self, port: str) -> ChannelCounts:
        """Note the next channel; its number is its place."""
        counts = ChannelCounts(len(self.counts), port)
        self.counts.append(counts)
        self._running += 1
        return counts

    async def carry(self, counts: ChannelCounts, local: socket.socket, lane: socket.socket) -> None:
        """Carry one channel to its end; see `lane.carry_channel`."""
        sealer = LaneSealer(self._keys.lane_secret(counts.channel, self._outward))
        opener = LaneOpener(self._keys.lane_secret(counts.channel, self._inward))
        await carry_channel(local, lane, sealer, opener, counts, self.pace)
        self._running -= 1
        if self._running == 0:
            self._ended.set()

    async def wait_ended(self) -> None:
        """Until at least one channel was opened and all that were have ended in order."""
        while not self.counts or self._running:
            await self._ended.wait()
            if self._running:
                self._ended = trio.Event()

    async def wait_drained(self, seconds: float) -> None:
        """Until no channel runs, if that happens within `seconds`: what is late counts for the receipt as it is."""
        with trio.move_on_after(seconds):
            while self._running:
                self._ended = trio.Event()
                await self._ended.wait()

    def sent_frames(self) -> dict[str, int]:
        return {str(c.channel): c.sent_frames for c in self.counts}

    async def acknowledge(self, link: ControlLink, interval_seconds: float) -> None:
        """Tell the peer, again and again, which of its frames have been written to the hypervisor."""
        told: dict[str, int] = {}
        while True:
            await trio.sleep(interval_seconds)
            written = {str(c.channel): c.received_frames for c in self.counts if c.received_frames}
            if written != told and link.order.phase in _ACK_PHASES:
                await link.send(Ack(written))
                told = written
