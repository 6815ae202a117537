"""What one direction of a channel has sent and may have to send again: its plaintext, until it is acknowledged.

Frames are numbered from 0. `base` ≤ `sent` ≤ `next_seq`: frames below `base` are the peer's for good and their place
is free; those below `sent` went out on the connection that lives now; those from `sent` on are still to go out. A lost
connection sets `sent` back (`rewind`), and what goes out again is sealed anew, by another key: no ciphertext is kept,
so none can be sent twice.

The place of a frame is in a slot, so that a hypervisor's bytes are read into it and sealed from it: nothing is copied.
Two small slots are a window's own, so that it can always go on. The large ones are lent by a `Lender`, who may have
none: a peer that acknowledges nothing could make a relay keep a whole window for each of many channels. A window with
nothing under way, whose hypervisor says nothing, has none of them. With the first it is lent one more, to seal such
frames into: a full window could not be sent without it.
"""

from __future__ import annotations

import mmap
from collections import deque
from typing import Protocol

from transport.errors import Misuse, ProtocolViolation
from transport.wire.frames import HEADER_BYTES, MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES, FrameType

# A peer acknowledges after so much at the latest, so that it need not wait for its timer while a window fills.
ACK_BYTES = 4 << 20
ACK_FRAMES = 1024
MAX_FRAMES = 4 * ACK_FRAMES  # small frames need more memory for their places than for their bytes
MIN_WINDOW_BYTES = 2 * ACK_BYTES
SMALL_BYTES = 32 * 1024  # with two of them and an `ack` each 0.1 s a channel carries 640 kB/s
LARGE_BYTES = MAX_FRAME_BYTES  # of what is lent: a frame, sealed or not
_OWN_SLOTS = 2
_NOTHING = memoryview(b"")  # is open where nothing is read any more


def lazy_buffer(size_bytes: int) -> memoryview:
    """Zeros, for which memory is taken from the system as they are written."""
    return memoryview(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Lender(Protocol):
    """Of places of `LARGE_BYTES`, each given back once."""

    def lend(self, count: int) -> list[memoryview] | None:
        """So many, or None."""

    def take_back(self, *places: memoryview) -> None: ...


class Unlimited:
    """Lends whatever is asked for: for a window alone."""

    def __init__(self) -> None:
        self._kept: list[memoryview] = []

    def lend(self, count: int) -> list[memoryview] | None:
        return [self._kept.pop() if self._kept else lazy_buffer(LARGE_BYTES) for _ in range(count)]

    def take_back(self, *places: memoryview) -> None:
        self._kept.extend(places)


class SendWindow:
    """Up to `capacity_bytes`, in whole slots; frames that do not fill theirs have less, and so has a window whose
    `lender` has lent to others."""

    __slots__ = (
        "_capacity_slots",
        "_frames",
        "_head",
        "_is_resting",
        "_large_frame",
        "_lender",
        "_own",
        "_room",
        "_slot",
        "_small_frame",
        "_used",
        "acked",
        "base",
        "closed_by",
        "is_sending",
        "pending",
        "sent",
    )

    def __init__(self, capacity_bytes: int, lender: Lender | None = None) -> None:
        if capacity_bytes < MIN_WINDOW_BYTES:
            raise Misuse("a window that a peer's acknowledgements could not keep open")
        self._lender = lender or Unlimited()
        self._capacity_slots = capacity_bytes // MAX_PAYLOAD_BYTES
        own = lazy_buffer(_OWN_SLOTS * SMALL_BYTES)
        self._own = [own[at * SMALL_BYTES : (at + 1) * SMALL_BYTES] for at in range(_OWN_SLOTS)]
        self._small_frame = lazy_buffer(HEADER_BYTES + SMALL_BYTES + TAG_BYTES)
        self._large_frame: memoryview | None = None
        # Those before the open one, each with the number of the frame after its last.
        self._used: deque[tuple[memoryview, int]] = deque()
        self._frames: deque[tuple[FrameType, memoryview | bytes]] = deque()  # from `base` on
        self._slot = self._own.pop()
        self._head = 0  # in the open slot
        self._room = 0
        self._is_resting = False
        self.is_sending = False  # out of what `frame` gave: it must stay what it is
        self.base = self.acked = self.sent = 0
        self.pending = 0  # bytes that were read into `room` and are no frame yet
        self.closed_by: FrameType | None = None

    @property
    def next_seq(self) -> int:
        return self.base + len(self._frames)

    @property
    def is_finished(self) -> bool:
        """The last frame is out on the connection that lives now."""
        return self.closed_by is not None and self.sent == self.next_seq

    @property
    def is_held(self) -> bool:
        """Nothing is left that might have to be sent again."""
        return not self._frames

    @property
    def is_acknowledged(self) -> bool:
        """The last frame has been written by the peer to its own hypervisor."""
        return self.closed_by is not None and self.acked == self.next_seq

    def room(self) -> memoryview:
        """Where the next payload is read to; empty when nothing fits until the peer acknowledges. It stays the same
        while bytes are pending."""
        self._is_resting = False
        if not self.pending:
            if not self._frames:
                self._begin_anew()
            elif (slot := self._next_slot()) is not None:
                self._used.append((self._slot, self.next_seq))
                self._open(slot)
            size, left = self._left()
            self._room = left if left >= size // 4 and len(self._frames) < MAX_FRAMES else 0
        return self._slot[self._head : self._head + self._room]

    def rest(self) -> None:
        """The hypervisor says nothing at the moment: what was lent is given back as soon as nothing is under way."""
        self._is_resting = not self.pending
        if self._is_resting and not self._frames:
            self._rest()

    def frame(self, payload_bytes: int) -> memoryview:
        """Where a frame with such a payload of this window is sealed into."""
        if payload_bytes <= SMALL_BYTES:
            return self._small_frame
        assert self._large_frame is not None
        return self._large_frame

    def note_whole(self) -> None:
        """What was sealed last went out whole, or its connection is lost."""
        self.is_sending = False
        self._give_frame()

    def give_all(self) -> None:
        """Whatever was lent, and what is its own, once nothing of this window is sent any more; its counts stay."""
        self.is_sending = self._is_resting = False
        self._frames = deque((frame_type, b"") for frame_type, _ in self._frames)
        places = [*(slot for slot, _ in self._used), self._slot]
        self._used.clear()
        self._slot = self._small_frame = _NOTHING
        self._own.clear()
        self._lender.take_back(*(place for place in places if len(place) == LARGE_BYTES))
        self._give_frame()

    def append(self, frame_type: FrameType, size: int) -> None:
        """The first `size` bytes of `room` are the next frame's payload."""
        if self.closed_by is not None:
            raise Misuse("nothing follows fin or reset")
        self._frames.append((frame_type, self._slot[self._head : self._head + size]))
        self._head += size
        self.pending = 0
        if frame_type is not FrameType.DATA:
            self.closed_by = frame_type

    def close(self, frame_type: FrameType, payload: bytes = b"") -> None:
        """Fin or reset: it needs no room but its own few bytes, which a full window has beside it."""
        if self.closed_by is not None:
            raise Misuse("nothing follows fin or reset")
        self._frames.append((frame_type, payload))
        self._used.append((self._slot, self.next_seq))
        self._slot = _NOTHING
        self.pending = 0
        self.closed_by = frame_type

    def unsent(self) -> tuple[FrameType, memoryview | bytes] | None:
        """The frame numbered `sent`, if there is one; `note_sent` follows."""
        at = self.sent - self.base
        return self._frames[at] if at < len(self._frames) else None

    def note_sent(self) -> None:
        self.sent += 1

    def acknowledge(self, count: int) -> None:
        """The peer has written all frames below `count`. `ProtocolViolation` if it cannot have got them."""
        if count > self.sent:
            raise ProtocolViolation("an acknowledgement of frames that were not sent")
        if count < self.acked:
            raise ProtocolViolation("an acknowledgement that falls")
        self.acked = count
        self._forget(count)

    def rewind(self, count: int) -> None:
        """A new connection: the peer holds all frames below `count`, and the next one is sent first."""
        if not self.acked <= count <= self.sent or count < self.base:
            raise ProtocolViolation("a peer that resumes from frames that it cannot lack, or cannot have")
        self._forget(count)
        self.sent = count

    def _forget(self, count: int) -> None:
        while self.base < count:
            self._frames.popleft()
            self.base += 1
        while self._used and self._used[0][1] <= count:
            self._give(self._used.popleft()[0])
        if self._is_resting and not self._frames and self.closed_by is None:
            self._rest()

    def _rest(self) -> None:
        """Nothing is under way: a small slot of its own is open."""
        if len(self._slot) == LARGE_BYTES:
            slot = self._slot
            self._open(self._own.pop())
            self._give(slot)
        self._head = 0

    def _open(self, slot: memoryview) -> None:
        self._slot, self._head = slot, 0

    def _left(self) -> tuple[int, int]:
        """Payloads that the open slot has a place for, and what is left of it, in bytes."""
        size = min(len(self._slot), MAX_PAYLOAD_BYTES)
        return size, size - self._head

    def _next_slot(self) -> memoryview | None:
        """A large one once half of the open one is used, if that can be had; else, once it is full, one of its own."""
        size, left = self._left()
        if left >= size // 2:
            return None
        return self._lent() or (self._own.pop() if self._own and left < size // 4 else None)

    def _lent(self) -> memoryview | None:
        if len(self._used) < self._capacity_slots - 1:
            lent = self._lender.lend(1 if self._large_frame is not None else 2)
            if lent is not None:
                self._large_frame = self._large_frame or lent.pop()
                return lent[0]
        return None

    def _begin_anew(self) -> None:
        """Nothing is under way, and the hypervisor may go on: a large slot is kept until it says nothing (`rest`)."""
        size, left = self._left()
        if len(self._slot) != LARGE_BYTES and left < size // 2 and (slot := self._lent()) is not None:
            self._own.append(self._slot)
            self._slot = slot
        self._head = 0

    def _give(self, slot: memoryview) -> None:
        if len(slot) != LARGE_BYTES:
            self._own.append(slot)
            return
        self._lender.take_back(slot)
        self._give_frame()

    def _give_frame(self) -> None:
        """What large frames are sealed into, once there are none; not while one goes out: a peer may acknowledge what
        it has not got whole, and another session's bytes would be sent to it."""
        if self._large_frame is None or self.is_sending:
            return
        if len(self._slot) != LARGE_BYTES and all(len(slot) != LARGE_BYTES for slot, _ in self._used):
            frame, self._large_frame = self._large_frame, None
            self._lender.take_back(frame)
