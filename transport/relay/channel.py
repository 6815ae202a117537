"""One hypervisor connection of a session, and what has been carried of it: all that outlives a lost lane."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from transport.errors import LocalBroken
from transport.relay.bandwidth import Pace
from transport.relay.content_digests import ContentDigests
from transport.relay.cores import Cores
from transport.relay.lane_memory import Lease, Share
from transport.relay.unacknowledged import Silence
from transport.wire.frames import HEADER_BYTES, TAG_BYTES, FrameType
from transport.wire.window import SMALL_BYTES, SendWindow, lazy_buffer

PortName = str  # memory, disks, libvirt, or a name of [ports]


@dataclass(slots=True)
class ChannelCounts:
    """What one channel has carried, for acknowledgements and receipts. Frames include fin and reset.

    `digests`: of what it carried, where the permit asks for them. `may_leave`: that the hypervisor leaves with
    something unread is an end. QEMU closes multifd's channels when the guest is whole, while their last packets are on
    the way; whether it is, it is asked itself.
    """

    channel: int
    port: PortName
    may_leave: bool = False
    sent_bytes: int = 0
    received_bytes: int = 0
    sent_frames: int = 0
    received_frames: int = 0
    digests: ContentDigests | None = None


@dataclass(slots=True)
class Arriving:
    """The direction towards the local hypervisor: the frame that is held, and how much of it is written already.

    A frame is opened in its place. Small ones have one of their own; a large one is leased, until nothing more comes.
    """

    share: Share
    next_seq: int = 0  # the first frame that is not authenticated and held
    closed_by: FrameType | None = None
    held: int = 0
    written: int = 0
    digested: int = 0  # of what is written: what the hypervisor had of it before is in the digest
    plaintext: memoryview = field(default_factory=lambda: memoryview(b""))
    _small: memoryview = field(default_factory=lambda: lazy_buffer(SMALL_BYTES + TAG_BYTES + HEADER_BYTES))
    _lease: Lease | None = None
    _skipped: int = 0  # bytes from `next_seq` on that the hypervisor has already

    async def place(self, due: int, ask_back: Callable[[], None]) -> memoryview:
        """For `due` bytes and the next header. `ask_back`: of what uses it, where others have waited for a turn."""
        if self._lease is not None:
            if self._lease.is_due:
                self.rest()
            else:
                self._lease.begin_frame()
        if self._lease is None:
            if due + HEADER_BYTES <= len(self._small):
                return self._small
            self._lease = await self.share.lease(ask_back)
        return self._lease.place

    def hold(self, size: int, place: memoryview) -> None:
        """A frame's payload is here, and is the peer's no more: its first `size` bytes of `place`."""
        self.plaintext, self.held = place, size
        self.written = self.digested = min(size, self._skipped)
        self._skipped -= self.written

    def rest(self) -> None:
        """Nothing of a frame is here."""
        if self._lease is not None:
            lease, self._lease = self._lease, None
            self.plaintext = memoryview(b"")
            lease.give_back()

    def let_go(self) -> None:
        """The lane is gone, and nothing is kept of a frame that is not written whole: the peer has it still, and sends
        it again, in whatever pieces. What the hypervisor has of it is skipped then."""
        if self.held:
            self.next_seq -= 1
            self._skipped += self.written
            self.held = self.written = 0
        self.rest()

    def give_all(self) -> None:
        """Nothing arrives here any more; its counts stay."""
        self.rest()
        self.plaintext = self._small = memoryview(b"")


@dataclass(slots=True)
class Channel:
    """One hypervisor connection: what of it outlives the network's connections. It owns `local`.

    `wrote` is told of each frame that has been written to the hypervisor, so that it is acknowledged.
    """

    counts: ChannelCounts
    local: socket.socket
    window: SendWindow
    wrote: Callable[[int, bool], None]
    cores: Cores
    arriving: Arriving
    silence: Silence
    pace: Pace | None = None
    broke: str = ""
    last_filled: int = 0
    _is_carried: bool = False
    _is_over: bool = False
    _was_acknowledged: trio.Event = field(default_factory=trio.Event)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    @property
    def has_ended(self) -> bool:
        """Both directions have ended in order as far as this end can see by itself."""
        return self.window.is_finished and self.has_written

    @property
    def has_written(self) -> bool:
        """Whether all that arrives here was written to the hypervisor."""
        return self.arriving.closed_by is FrameType.FIN and not self.arriving.held

    @property
    def has_arrived(self) -> bool:
        """As `has_ended`, and the peer has said that it has written everything."""
        return self.has_ended and self.window.is_acknowledged

    def write_held(self) -> None:
        """Write of the frame that is held what the hypervisor takes now; perhaps in a thread. OSError."""
        arriving = self.arriving
        with self._writing:
            while arriving.written < arriving.held:
                arriving.written += self.local.send(arriving.plaintext[arriving.written : arriving.held])

    def digest_written(self) -> None:
        """What the hypervisor has got; a frame that comes again may be another one."""
        arriving = self.arriving
        if self.counts.digests is not None and arriving.held:
            self.counts.digests.received.update(arriving.plaintext[arriving.digested : arriving.written])
            arriving.digested = arriving.written

    @contextmanager
    def carried(self) -> Iterator[None]:
        """By a lane, whose tasks have ended when this ends. `LocalBroken` where its session has ended meanwhile."""
        if self._is_over and not self.has_ended:
            raise LocalBroken("the hypervisor's connection was closed, as its session has ended")
        self._is_carried = True
        try:
            yield
        finally:
            self._is_carried = False
            self.digest_written()
            self.arriving.let_go()
            self.window.note_whole()
            if self._is_over:
                self._give_all()

    def close(self) -> None:
        """Let go of the hypervisor's connection; not within a thread's write, whose descriptor might be another's.

        What a lane may still send out of is given back when that has ended: it would become another session's.
        """
        with self._writing:
            if self.local.fileno() >= 0:
                # Whoever waits for it yet would be met by the session whose descriptor has this number next.
                trio.lowlevel.notify_closing(self.local)
            self.local.close()
        if not self._is_over:
            self._is_over = True
            self.arriving.share.leave_lane()
            if not self._is_carried:
                self._give_all()

    def _give_all(self) -> None:
        self.window.give_all()
        self.arriving.give_all()

    def acknowledge(self, count: int) -> None:
        self.window.acknowledge(count)
        self._was_acknowledged.set()

    async def wait_acknowledged(self) -> None:
        """Until the peer acknowledges something."""
        self._was_acknowledged = trio.Event()
        await self._was_acknowledged.wait()

    async def room(self) -> memoryview:
        """Where to read to; waits for the peer's acknowledgements while there is none."""
        while not (room := self.window.room()):
            await self.wait_acknowledged()
        return room if self.pace is None else room[: self.pace.frame_bytes]
