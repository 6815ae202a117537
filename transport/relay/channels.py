"""The channels of a session: they outlive its connections. And the lanes of one connection, which carry them.

`Channels` knows what has been carried, and says to a new connection from where on each channel is sent again.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

import trio

from policy.permit import PermitClaims
from transport.errors import LocalBroken, Misuse, ProtocolViolation
from transport.relay.bandwidth import Pace
from transport.relay.channel import Arriving, Channel, ChannelCounts, PortName
from transport.relay.content_digests import ContentDigests
from transport.relay.control import ControlLink
from transport.relay.cores import Cores
from transport.relay.lane import carry_channel
from transport.relay.lane_memory import LaneMemory
from transport.relay.limits import LimitsSection
from transport.relay.tls_lane import Lane, TlsLane
from transport.relay.unacknowledged import Patience, Silence
from transport.wire.clear_frames import ClearOpener, ClearSealer
from transport.wire.control import Phase, Role
from transport.wire.frames import MAX_PAYLOAD_BYTES, LaneOpener, LaneSealer
from transport.wire.keys import ConnectionKeys, Direction
from transport.wire.messages import Ack
from transport.wire.window import ACK_BYTES, ACK_FRAMES, SendWindow

_ACK_PHASES = frozenset({Phase.OPEN, Phase.HANDING_OVER, Phase.SETTLED})
# So much that is written is acknowledged soon: where many sessions share a relay's memory, a peer's window may be full
# of it. The clock is for what is less; acknowledging whatever comes at once would cost slow streams more than it gives.
_SOON_BYTES = 512 * 1024
_SOON_SECONDS = 0.01
_SHARED_WINDOWS = 2  # of a session's channels together; they share a link


class Channels:
    """All channels of one session, at either end. `limits`: its `window_bytes` are what each may have under way, and
    half of what all may have together, beside a little that each has of its own; `memory`: of the relay, which may have
    less for them.

    `claims`: of the permit, which says how lanes are sealed, and whether their content is digested.
    """

    def __init__(
        self, role: Role, limits: LimitsSection, cores: Cores, memory: LaneMemory, claims: PermitClaims | None = None
    ) -> None:
        self._is_tls = claims is not None and claims.seal == "tls"
        self._digests_content = claims is not None and claims.requirements.content_digest
        self._outward, self._inward = Direction.SOURCE_TO_DESTINATION, Direction.DESTINATION_TO_SOURCE
        if role is Role.DESTINATION:
            self._outward, self._inward = self._inward, self._outward
        self._limits = limits
        self.patience = Patience(limits.unacknowledged_seconds)
        self._share = memory.share(_SHARED_WINDOWS * limits.window_bytes // MAX_PAYLOAD_BYTES)
        self._cores = cores
        self.all: list[Channel] = []
        self.counts: list[ChannelCounts] = []
        self.pace: Pace | None = None  # how fast this end may send
        self.is_closed = False
        self._changed = trio.Event()
        self._unacknowledged = 0
        self._unacknowledged_frames = 0
        self._wrote = trio.Event()
        self._is_worth_it = trio.Event()
        self._is_due = trio.Event()

    def add(self, port: PortName, local: socket.socket, *, may_leave: bool = False) -> Channel:
        """Take `local`, which is ours from now on, as the next channel; its number is its place. `LocalBroken` where
        the relay has as many as it may."""
        try:
            self._share.enter_lane()
        except LocalBroken:
            local.close()
            raise
        number = len(self.all)
        digests = ContentDigests.new() if self._digests_content else None
        counts = ChannelCounts(number, port, may_leave, digests=digests)
        window, arriving = SendWindow(self._limits.window_bytes, self._share), Arriving(self._share)
        silence = Silence(self.patience)
        channel = Channel(counts, local, window, self._note_written, self._cores, arriving, silence, pace=self.pace)
        self.all.append(channel)
        self.counts.append(counts)
        if self.is_closed:
            channel.close()  # the session has ended while this was being dialled
        self.note_change()
        return channel

    def next(self) -> dict[str, int]:
        """By channel, the first frame that is not held here: from there on the peer sends again."""
        return {str(number): channel.arriving.next_seq for number, channel in enumerate(self.all)}

    def rewind(self, following: Mapping[str, int]) -> None:
        """What the peer holds. A channel that it has never heard of begins at its beginning. `ProtocolViolation`."""
        if any(count and int(number) >= len(self.all) for number, count in following.items()):
            raise ProtocolViolation("a channel resumed that was never opened")
        self.patience.renew()
        for number, channel in enumerate(self.all):
            channel.window.rewind(following.get(str(number), 0))
        # What was written while no connection was there to say so is said on the next one.
        self._wrote.set()
        self._is_worth_it.set()
        self._is_due.set()

    @property
    def is_tls(self) -> bool:
        """Whether lanes are to be TLS, by the permit."""
        return self._is_tls

    async def carry(self, channel: Channel, keys: ConnectionKeys, lane: Lane) -> None:
        """Carry one channel over one lane; see `lane.carry_channel`. A lane that the permit wants sealed otherwise is
        our mistake, and `Misuse`."""
        if isinstance(lane, TlsLane) is not self._is_tls:
            raise Misuse("a lane that is not sealed as the permit says")
        number = channel.counts.channel
        first_sent, first_received = channel.window.sent, channel.arriving.next_seq
        if self._is_tls:
            await carry_channel(channel, lane, ClearSealer(first_sent), ClearOpener(first_received))
        else:
            sealer = LaneSealer(keys.lane_secret(number, self._outward), first_sent)
            opener = LaneOpener(keys.lane_secret(number, self._inward), first_received)
            await carry_channel(channel, lane, sealer, opener)
        self.note_change()

    async def wait_more(self, count: int) -> None:
        """Until there are more than `count` channels."""
        while len(self.all) <= count:
            await self._changed.wait()

    async def wait_arrived(self) -> None:
        """Until `has_arrived`."""
        while not self.has_arrived:
            await self._changed.wait()

    @property
    def has_arrived(self) -> bool:
        """Whether at least one channel was opened, and all that were have ended in order at both ends."""
        return bool(self.all) and all(channel.has_arrived for channel in self.all)

    async def wait_ended(self, port: PortName) -> None:
        """Until every channel of this port has ended in order, as far as this end sees."""
        while not all(channel.has_ended for channel in self.all if channel.counts.port == port):
            await self._changed.wait()

    async def wait_written(self, port: PortName) -> None:
        """Until `has_written`."""
        while not self.has_written(port):
            await self._changed.wait()

    def has_written(self, port: PortName) -> bool:
        """Whether there are channels of this port, and all that was to arrive on them was written to the hypervisor."""
        ours = [channel for channel in self.all if channel.counts.port == port]
        return bool(ours) and all(channel.has_written for channel in ours)

    async def wait_drained(self, seconds: float) -> None:
        """Until no channel runs as far as this end sees, if that happens within `seconds`: what is late counts for the
        receipt as it is."""
        with trio.move_on_after(seconds):
            while not all(channel.has_ended for channel in self.all):
                await self._changed.wait()

    @property
    def carried_frames(self) -> int:
        """That are where they were to go, both ways."""
        return sum(channel.window.base + channel.arriving.next_seq for channel in self.all)

    def sent_frames(self) -> dict[str, int]:
        return {str(number): channel.window.sent for number, channel in enumerate(self.all)}

    def acknowledged(self, written: Mapping[str, int]) -> None:
        """The peer's word, checked by the order of the control connection and by each window. `ProtocolViolation`.

        One that was announced once the outcome was chosen was not dialled for: nothing was sent on it, or said to be.
        """
        for number, count in written.items():
            if int(number) >= len(self.all):
                continue
            channel = self.all[int(number)]
            channel.acknowledge(count)
            if channel.has_arrived:
                self.note_change()

    async def acknowledge(self, link: ControlLink, interval_seconds: float) -> None:
        """Tell the peer, again and again, which of its frames have been written to the hypervisor.

        Within the interval; soon where much was written, and at once where so much was that a whole window may be half
        empty.
        """
        told: dict[str, int] = {}
        while True:
            await self._wrote.wait()
            latest = trio.current_time() + interval_seconds
            with trio.move_on_after(_SOON_SECONDS):
                await self._is_due.wait()
            with trio.move_on_at(latest):
                await self._is_worth_it.wait()
            if link.order.phase not in _ACK_PHASES:
                await trio.sleep(interval_seconds)
                continue
            self._wrote, self._is_worth_it, self._is_due = trio.Event(), trio.Event(), trio.Event()
            self._unacknowledged = self._unacknowledged_frames = 0
            known = link.order.channels
            written = {str(c.channel): c.received_frames for c in self.counts[:known] if c.received_frames}
            if written != told:
                await link.send(Ack(written))
                told = written

    def close(self) -> None:
        """Let go of the hypervisor's connections: nothing of this session is carried any more."""
        self.is_closed = True
        try:
            for channel in self.all:
                channel.close()
        finally:
            self._share.end()
            self.note_change()

    def note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _note_written(self, size_bytes: int, is_end: bool) -> None:
        self._unacknowledged += size_bytes
        self._unacknowledged_frames += 1
        if not self._wrote.is_set():
            self._wrote.set()
        if is_end:
            self.note_change()
        if is_end or self._unacknowledged >= ACK_BYTES or self._unacknowledged_frames >= ACK_FRAMES:
            self._is_worth_it.set()
            self._is_due.set()
        elif self._unacknowledged >= _SOON_BYTES and not self._is_worth_it.is_set():
            self._is_worth_it.set()
