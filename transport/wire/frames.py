"""Frames of a lane: seal and open, without copies and without an object per frame.

      0       4    5        8               16                    16+n        32+n
     ┌───────┬────┬────────┬───────────────┬──────────────────────┬──────────┐
     │ n u32 │type│ zero 3 │ seq u64       │ n sealed bytes       │ tag[16]  │
     └───────┴────┴────────┴───────────────┴──────────────────────┴──────────┘
     └──────── additional authenticated data ─┘

The epoch of a frame follows from its number, so there is no rekey message to lose, forge or mishandle.
Specified in docs/wire-protocol.md section 5.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from transport.errors import Misuse, ProtocolViolation
from transport.wire.keys import FRAMES_PER_EPOCH, EpochKey, epoch_key, next_lane_secret

CIPHER = "AES-256-GCM"
HEADER_BYTES = 16
TAG_BYTES = 16
MAX_PAYLOAD_BYTES = 1 << 20
MAX_FRAME_BYTES = HEADER_BYTES + MAX_PAYLOAD_BYTES + TAG_BYTES
_HEADER = struct.Struct(">IB3xQ")  # pack writes the pad as zero; unpack skips it, so it is checked apart
_ZERO = b"\0\0\0"


class FrameType(IntEnum):
    DATA = 0
    FIN = 1  # the sender's local connection ended its sending side in order
    RESET = 2  # the sender's local connection broke


class ResetCode(IntEnum):
    """Payload of a reset frame, u16."""

    LOCAL_BROKEN = 1
    CANCELLED = 2


_DATA, _FIN, _RESET = int(FrameType.DATA), int(FrameType.FIN), int(FrameType.RESET)


class _Epochs:
    """The cipher of each frame number, moving forward only: an old epoch's secret is gone once it is left."""

    __slots__ = ("_cipher", "_left", "_next_secret", "iv")

    def __init__(self, lane_secret: bytes) -> None:
        self._next_secret = lane_secret
        self._left = 0
        self.iv = 0
        self._cipher = self._advance()

    def _advance(self) -> AESGCM:
        key: EpochKey = epoch_key(self._next_secret)
        self._next_secret = next_lane_secret(self._next_secret)
        self._left = FRAMES_PER_EPOCH
        self.iv = key.iv
        self._cipher = AESGCM(key.key)
        return self._cipher

    def take(self) -> AESGCM:
        """The cipher of the next frame; `iv` is its epoch's. Call once per frame, in order."""
        if self._left == 0:
            self._advance()
        self._left -= 1
        return self._cipher


class LaneSealer:
    """Seals the frames of one direction of one channel. `next_seq` is the number of the next frame."""

    __slots__ = ("_closed", "_epochs", "next_seq")

    def __init__(self, lane_secret: bytes, first_seq: int = 0) -> None:
        self._epochs = _Epochs(lane_secret)
        self._closed = False
        self.next_seq = first_seq

    def seal_into(self, frame_type: FrameType, payload: memoryview | bytes, frame: memoryview) -> int:
        """Write the whole frame into `frame` (at least 32 bytes longer than `payload`); return its size in bytes."""
        size = len(payload)
        if self._closed or not payload_allowed(frame_type, size):
            raise Misuse("nothing follows fin or reset, and a payload has its type's size")
        seq = self.next_seq
        self.next_seq = seq + 1
        self._closed = frame_type != _DATA
        epochs = self._epochs
        cipher = epochs.take()
        _HEADER.pack_into(frame, 0, size, frame_type, seq)
        end = HEADER_BYTES + size + TAG_BYTES
        nonce = (epochs.iv ^ seq).to_bytes(12, "big")
        cipher.encrypt_into(nonce, payload, frame[:HEADER_BYTES], frame[HEADER_BYTES:end])
        return end


class FrameOrder:
    """Whether a header is that of the frame which is due: the part of opening that knows no key.

    `closed_by` tells after a frame whether it was fin or reset.
    """

    __slots__ = ("_size", "_type", "closed_by", "next_seq")
    tag_bytes = TAG_BYTES

    def __init__(self, first_seq: int = 0) -> None:
        self._size = -1
        self._type = _DATA
        self.closed_by: FrameType | None = None
        self.next_seq = first_seq

    def header(self, header: memoryview | bytes) -> int:
        """Check the 16 header bytes; return the number of bytes that follow (payload and tag, if it has one)."""
        if self._size >= 0:
            raise Misuse("a header was taken and its body not opened")
        if self.closed_by is not None:
            raise ProtocolViolation("a frame after fin or reset")
        size, frame_type, seq = _HEADER.unpack_from(header)
        if header[5:8] != _ZERO:
            raise ProtocolViolation("non-zero reserved bytes in a frame header")
        if not payload_allowed(frame_type, size):
            raise ProtocolViolation("unknown frame type, or a length that its type does not have")
        if seq != self.next_seq:
            raise ProtocolViolation(f"frame {seq} where {self.next_seq} is due")
        self._size = size
        self._type = frame_type
        return int(size) + self.tag_bytes

    def take(self, body: memoryview) -> int:
        """The payload's size of the frame whose `body` this is."""
        size = self._size
        if size < 0 or len(body) != size + self.tag_bytes:
            raise Misuse("open_into takes the body that header() asked for")
        self._size = -1
        return size

    def passed(self) -> None:
        """The frame is authentic."""
        self.next_seq += 1
        if self._type != _DATA:
            self.closed_by = FrameType(self._type)


class LaneOpener(FrameOrder):
    """Opens the frames of one direction of one channel, strictly in order.

    First `header`, which checks everything that is not secret before a byte of the body is waited for, then
    `open_into`. Any `ProtocolViolation` ends the connection; nothing of the frame may be used.
    """

    __slots__ = ("_epochs",)

    def __init__(self, lane_secret: bytes, first_seq: int = 0) -> None:
        super().__init__(first_seq)
        self._epochs = _Epochs(lane_secret)

    def open_into(self, header: memoryview | bytes, body: memoryview, plaintext: memoryview) -> int:
        """Authenticate and decrypt `body` (payload and tag) into `plaintext`; return the payload's size in bytes.

        After it, `closed_by` tells whether the frame was fin or reset.
        """
        size = self.take(body)
        epochs = self._epochs
        cipher = epochs.take()
        nonce = (epochs.iv ^ self.next_seq).to_bytes(12, "big")
        try:
            cipher.decrypt_into(nonce, body, header, plaintext[:size])
        except InvalidTag:
            self.closed_by = FrameType.RESET  # nothing may be opened after a forgery
            raise ProtocolViolation("a frame that does not authenticate") from None
        self.passed()
        return size


def write_header(frame: memoryview, size: int, frame_type: FrameType, seq: int) -> None:
    """The 16 bytes before a payload of `size` bytes."""
    _HEADER.pack_into(frame, 0, size, frame_type, seq)


def payload_allowed(frame_type: int, size: int) -> bool:
    """Whether a frame of this type may have a payload of so many bytes."""
    if frame_type == _DATA:
        return 1 <= size <= MAX_PAYLOAD_BYTES
    return (frame_type == _FIN and size == 0) or (frame_type == _RESET and size == 2)
