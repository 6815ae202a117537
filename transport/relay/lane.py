"""The hot path: bytes between a hypervisor's socket and a lane, sealed one way and opened the other.

What makes it fast (measured, docs/performance.md): buffers allocated once per direction, non-blocking reads until the
frame is full or the socket empty and only then a wait, sealing into the send buffer, one send per frame, the next
header taken together with a body. No `bytes` object is made on the way.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

import trio

from transport.errors import ConnectionBroken, LocalBroken, ProtocolViolation
from transport.relay.bandwidth import Pace
from transport.wire.frames import (
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    FrameType,
    LaneOpener,
    LaneSealer,
    ResetCode,
)

# A pump that never has to wait must still let others run and notice cancellation.
_FRAMES_PER_CHECKPOINT = 16
# Fuller frames cost less: live migrations ran 1.37 to 1.45 times as fast as through haproxy with this wait, and 1.21 to
# 1.33 times without it. Only where the last frame was large: a lone request on the way back is never kept waiting.
_BULK_BYTES = 64 * 1024
_MORE_SECONDS = 0.001


@dataclass(slots=True)
class ChannelCounts:
    """What one channel has carried, for acknowledgements and receipts. Frames include fin and reset.

    `may_leave`: that the hypervisor leaves with something unread is an end. QEMU closes multifd's channels when the
    guest is whole, while their last packets are on the way; whether it is, it is asked itself.
    """

    channel: int
    port: str
    may_leave: bool = False
    sent_bytes: int = 0
    received_bytes: int = 0
    sent_frames: int = 0
    received_frames: int = 0


async def carry_channel(
    local: socket.socket,
    lane: socket.socket,
    sealer: LaneSealer,
    opener: LaneOpener,
    counts: ChannelCounts,
    pace: Pace | None = None,
) -> None:
    """Carry both directions until each has ended in order; closes both sockets in any case.

    Raises `LocalBroken` (a reset frame was sent, or received), `ConnectionBroken`, `ProtocolViolation`.
    """
    with local, lane:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_seal_direction, local, lane, sealer, counts, pace)
            nursery.start_soon(_open_direction, lane, local, opener, counts)


async def _seal_direction(
    local: socket.socket, lane: socket.socket, sealer: LaneSealer, counts: ChannelCounts, pace: Pace | None
) -> None:
    payload = memoryview(bytearray(MAX_PAYLOAD_BYTES))
    frame = memoryview(bytearray(MAX_FRAME_BYTES))
    if pace is not None:
        payload = payload[: pace.frame_bytes]
    filled = 0
    while True:
        try:
            filled = await _fill(local, payload, filled >= _BULK_BYTES)
        except OSError as error:
            if not counts.may_leave:
                await _send_all(lane, frame[: _reset(sealer, frame)])
                raise LocalBroken(f"the hypervisor's connection broke: {error.strerror}") from None
            filled = 0
        if filled == 0:
            await _send_all(lane, frame[: sealer.seal_into(FrameType.FIN, b"", frame)])
            counts.sent_frames = sealer.next_seq
            _shut_down(lane)
            return
        size = sealer.seal_into(FrameType.DATA, payload[:filled], frame)
        # Counted before it is sent: the peer may acknowledge what we have not yet returned from sending.
        counts.sent_frames = sealer.next_seq
        counts.sent_bytes += filled
        if pace is not None:
            await pace.take(size)
        await _send_all(lane, frame[:size])
        if sealer.next_seq % _FRAMES_PER_CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()


async def _open_direction(lane: socket.socket, local: socket.socket, opener: LaneOpener, counts: ChannelCounts) -> None:
    header = memoryview(bytearray(HEADER_BYTES))
    body = memoryview(bytearray(MAX_FRAME_BYTES))
    plaintext = memoryview(bytearray(MAX_PAYLOAD_BYTES))
    in_header = 0
    while opener.closed_by is None:
        in_header += await _receive(lane, header[in_header:], HEADER_BYTES - in_header)
        due = opener.header(header)
        filled = await _receive(lane, body[: due + HEADER_BYTES], due)
        size = opener.open_into(header, body[:due], plaintext)
        in_header = filled - due
        header[:in_header] = body[due:filled]
        if opener.closed_by is FrameType.RESET:
            raise LocalBroken("the hypervisor's connection broke at the peer")
        if opener.closed_by is None:
            await _deliver(local, plaintext[:size], may_leave=counts.may_leave)
        counts.received_frames = opener.next_seq
        counts.received_bytes += size
        if opener.next_seq % _FRAMES_PER_CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()
    if in_header:
        raise ProtocolViolation("bytes after fin")
    _shut_down(local)


def _reset(sealer: LaneSealer, frame: memoryview) -> int:
    return sealer.seal_into(FrameType.RESET, ResetCode.LOCAL_BROKEN.to_bytes(2, "big"), frame)


async def _fill(local: socket.socket, buffer: memoryview, is_bulk: bool) -> int:
    """Read until `buffer` is full or there is nothing more at the moment; 0 is the end of the stream.

    `is_bulk`: the frame before was large, so a moment's wait for the rest of this one is worth it.
    """
    filled = 0
    room = len(buffer)
    while filled < room:
        try:
            received = local.recv_into(buffer[filled:])
        except BlockingIOError:
            if filled and not (is_bulk and filled < room // 2 and await _more_comes(local)):
                break
            if not filled:
                await trio.lowlevel.wait_readable(local)
            continue
        if received == 0:
            break  # what came before the end goes first; the end is met again at the next call
        filled += received
    return filled


async def _more_comes(local: socket.socket) -> bool:
    """Wait a moment for more. A QEMU that is still writing fills its socket again within it."""
    with trio.move_on_after(_MORE_SECONDS):
        await trio.lowlevel.wait_readable(local)
        return True
    return False


async def _receive(lane: socket.socket, buffer: memoryview, minimum: int) -> int:
    """Read at least `minimum` bytes, and what else is there and fits; return how many."""
    filled = 0
    while filled < minimum:
        try:
            received = lane.recv_into(buffer[filled:])
        except BlockingIOError:
            await trio.lowlevel.wait_readable(lane)
            continue
        except OSError:
            raise ConnectionBroken("a lane was reset") from None
        if received == 0:
            raise ConnectionBroken("a lane ended without fin")
        filled += received
    return filled


async def _send_all(lane: socket.socket, data: memoryview) -> None:
    sent = 0
    while sent < len(data):
        try:
            sent += lane.send(data[sent:])
        except BlockingIOError:
            await trio.lowlevel.wait_writable(lane)
        except OSError:
            raise ConnectionBroken("a lane was reset") from None


async def _deliver(local: socket.socket, data: memoryview, *, may_leave: bool) -> None:
    sent = 0
    while sent < len(data):
        try:
            sent += local.send(data[sent:])
        except BlockingIOError:
            await trio.lowlevel.wait_writable(local)
        except OSError as error:
            if may_leave:
                return
            raise LocalBroken(f"the hypervisor's connection broke: {error.strerror}") from None


def _shut_down(sock: socket.socket) -> None:
    """Half-close: the other direction goes on."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side has gone already, and said so in its own direction
