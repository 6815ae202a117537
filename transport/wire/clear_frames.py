"""Frames of a lane that is TLS itself (`seal: tls`): the same header and order, no key and no tag of their own.

Confidentiality and integrity are TLS's; what is left to check is what a peer may send. The interface is that of
`frames`, so that a lane is carried alike. Specified in docs/wire-protocol.md section 5.
"""

from __future__ import annotations

from transport.errors import Misuse
from transport.wire.frames import HEADER_BYTES, FrameOrder, FrameType, payload_allowed, write_header


class ClearSealer:
    """Writes the frames of one direction of one channel. `next_seq` is the number of the next frame."""

    __slots__ = ("_closed", "next_seq")

    def __init__(self, first_seq: int = 0) -> None:
        self._closed = False
        self.next_seq = first_seq

    def seal_into(self, frame_type: FrameType, payload: memoryview | bytes, frame: memoryview) -> int:
        """Write the whole frame into `frame`; return its size in bytes."""
        size = len(payload)
        if self._closed or not payload_allowed(frame_type, size):
            raise Misuse("nothing follows fin or reset, and a payload has its type's size")
        write_header(frame, size, frame_type, self.next_seq)
        self.next_seq += 1
        self._closed = frame_type is not FrameType.DATA
        frame[HEADER_BYTES : HEADER_BYTES + size] = payload
        return HEADER_BYTES + size


class ClearOpener(FrameOrder):
    """Reads the frames of one direction of one channel, strictly in order; see `frames.LaneOpener`."""

    __slots__ = ()
    tag_bytes = 0

    def open_into(self, header: memoryview | bytes, body: memoryview, plaintext: memoryview) -> int:  # noqa: ARG002
        """Copy `body` into `plaintext`; return its size in bytes."""
        size = self.take(body)
        plaintext[:size] = body
        self.passed()
        return size
