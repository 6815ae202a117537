"""What one direction of a channel has sent and may have to send again: its plaintext, until it is acknowledged.

Frames are numbered from 0. `base` ≤ `sent` ≤ `next_seq`: frames below `base` are the peer's for good and their place
is free; those below `sent` went out on the connection that lives now; those from `sent` on are still to go out. A lost
connection sets `sent` back (`rewind`), and what goes out again is sealed anew, by another key: no ciphertext is kept,
so none can be sent twice.

The place of a frame is in a slot of the largest payload's size, so that a hypervisor's bytes are read into it and
sealed from it: nothing is copied. The slot that was freed last is filled next: only as much memory is ever touched as
was under way at once, and that little stays in the processor's caches. Two slots are a window's own, so that it can
always go on; the others it shares with the windows of its session, or a peer that acknowledges nothing could make a
relay keep a whole window for each of many channels.
"""

from __future__ import annotations

import mmap
from collections import deque

from transport.errors import Misuse, ProtocolViolation
from transport.wire.frames import MAX_PAYLOAD_BYTES, FrameType

# A peer acknowledges after so much at the latest, so that it need not wait for its timer while a window fills.
ACK_BYTES = 4 << 20
ACK_FRAMES = 1024
MAX_FRAMES = 4 * ACK_FRAMES  # small frames need more memory for their places than for their bytes
MIN_WINDOW_BYTES = 2 * ACK_BYTES
_SLOT_BYTES = MAX_PAYLOAD_BYTES
_OWN_SLOTS = 2
_WORTH_FILLING = _SLOT_BYTES // 2  # what is left of a slot, where another is free
_LEAST_ROOM = _SLOT_BYTES // 4  # and where none is


def lazy_buffer(size_bytes: int) -> memoryview:
    """Zeros, for which memory is taken from the system as they are written."""
    return memoryview(mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


class Slots:
    """Places for payloads that several windows share, `capacity_bytes` in all."""

    __slots__ = ("_free",)

    def __init__(self, capacity_bytes: int) -> None:
        buffer = lazy_buffer(capacity_bytes)
        ends = range(_SLOT_BYTES, capacity_bytes + 1, _SLOT_BYTES)
        self._free = [buffer[end - _SLOT_BYTES : end] for end in reversed(ends)]

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    def take(self) -> memoryview:
        return self._free.pop()

    def give(self, slot: memoryview) -> None:
        self._free.append(slot)


_Slot = tuple[memoryview, Slots]  # and whose it is


class SendWindow:
    """Up to `capacity_bytes`, in whole slots; frames that do not fill theirs have less, and so has a window whose
    `shared` slots others use. Without `shared` all of its slots are its own."""

    __slots__ = (
        "_frames",
        "_head",
        "_most_slots",
        "_own",
        "_room",
        "_shared",
        "_slot",
        "_used",
        "acked",
        "base",
        "closed_by",
        "pending",
        "sent",
    )

    def __init__(self, capacity_bytes: int, shared: Slots | None = None) -> None:
        if capacity_bytes < MIN_WINDOW_BYTES:
            raise Misuse("a window that a peer's acknowledgements could not keep open")
        self._own = Slots(_OWN_SLOTS * _SLOT_BYTES)
        self._shared = shared or Slots(capacity_bytes - _OWN_SLOTS * _SLOT_BYTES)
        self._most_slots = capacity_bytes // _SLOT_BYTES
        self._used: deque[tuple[_Slot, int]] = deque()  # and the frame after its last: of those before the open one
        self._frames: deque[tuple[FrameType, memoryview | bytes]] = deque()  # from `base` on
        self._slot: _Slot = self._own.take(), self._own
        self._head = 0  # in the open slot
        self._room = 0
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
        if not self.pending:
            if not self._frames:
                self._give(self._slot)  # which may be a shared one
                self._open((self._own.take(), self._own))
            elif _SLOT_BYTES - self._head < _WORTH_FILLING and (slot := self._take()) is not None:
                self._used.append((self._slot, self.next_seq))
                self._open(slot)
            left = _SLOT_BYTES - self._head
            self._room = left if left >= _LEAST_ROOM and len(self._frames) < MAX_FRAMES else 0
        return self._slot[0][self._head : self._head + self._room]

    def append(self, frame_type: FrameType, size: int) -> None:
        """The first `size` bytes of `room` are the next frame's payload."""
        if self.closed_by is not None:
            raise Misuse("nothing follows fin or reset")
        self._frames.append((frame_type, self._slot[0][self._head : self._head + size]))
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

    def _open(self, slot: _Slot) -> None:
        self._slot, self._head = slot, 0

    def _take(self) -> _Slot | None:
        """One more, of its own if one is free; None where it has as many as it may, or the others have the rest."""
        if len(self._used) < self._most_slots - 1:
            for slots in (self._own, self._shared):
                if slots.has_free:
                    return slots.take(), slots
        return None

    @staticmethod
    def _give(slot: _Slot) -> None:
        place, slots = slot
        slots.give(place)
