"""The hot path: bytes between a hypervisor's socket and a lane, sealed one way and opened the other.

What makes it fast (measured, docs/performance.md): buffers allocated once per direction, non-blocking reads until the
frame is full or the socket empty and only then a wait, sealing into the send buffer out of the window that keeps the
plaintext, one send per frame, the next header taken together with a body. No `bytes` object is made on the way.

A lane may be lost at any moment, and another takes its place: a `Channel` holds what must outlive it.

A thread's work (`cores`) is not abandoned where its task is cancelled, so whatever fails afterwards is looked at only
by a task that is not: the lane or the hypervisor's connection may have been closed meanwhile, by us.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable

import trio

from transport.errors import ConnectionBroken, LocalBroken, ProtocolViolation
from transport.relay.channel import Channel
from transport.relay.tcp import is_broken, unsent_bytes
from transport.relay.tls_lane import Lane, TlsLane
from transport.wire.clear_frames import ClearOpener, ClearSealer
from transport.wire.frames import (
    HEADER_BYTES,
    TAG_BYTES,
    FrameType,
    LaneOpener,
    LaneSealer,
    ResetCode,
)

# A pump that never has to wait must still let others run and notice cancellation.
_FRAMES_PER_CHECKPOINT = 4
# Fuller frames cost less: live migrations ran 1.37 to 1.45 times as fast as through haproxy with this wait, and 1.21 to
# 1.33 times without it. Only where the last frame was large: a lone request on the way back is never kept waiting.
_BULK_BYTES = 64 * 1024
_MORE_SECONDS = 0.001
_WATCH_SECONDS = 1.0


Sealer = LaneSealer | ClearSealer
Opener = LaneOpener | ClearOpener


async def carry_channel(channel: Channel, lane: Lane, sealer: Sealer, opener: Opener) -> None:
    """Carry both directions over `lane`, which is closed in any case, until each has ended in order.

    Raises `LocalBroken` (a reset frame was sent, or received) and `ConnectionBroken`. Whatever raises, and when it is
    cancelled, `channel` is as it must be to go on over another lane.
    """
    with lane:
        channel.silence.begin()
        with channel.carried():
            async with trio.open_nursery() as watched:
                watched.start_soon(_watch, channel, lane)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_seal_direction, channel, lane, sealer)
                    nursery.start_soon(_open_in_turn, channel, lane, opener)
                watched.cancel_scope.cancel()
        await _until_held(channel, lane)
    channel.close()


async def _until_held(channel: Channel, lane: Lane) -> None:
    """Both directions have ended, but what was sent last may be lost on its way yet: nobody else would notice."""
    while not channel.window.is_held:
        with trio.move_on_after(_WATCH_SECONDS):
            await channel.wait_acknowledged()
            continue
        await _look(channel, lane, is_over=True)


async def _watch(channel: Channel, lane: Lane) -> None:
    """Notice a lane that is lost also while there is nothing to read from it and nothing to send, or no room for it."""
    while True:
        await trio.sleep(_WATCH_SECONDS)
        await _look(channel, lane, is_over=False)


async def _look(channel: Channel, lane: Lane, *, is_over: bool) -> None:
    """`ConnectionBroken` once the kernel has given the lane up, or has got rid of what went out on it while the peer
    says nothing of it: a peer whose end is half open, or that something in between answers for, never would.

    Where no other connection may be had, that is no reason before both directions are over."""
    await trio.lowlevel.checkpoint_if_cancelled()
    if is_broken(lane):
        raise ConnectionBroken("a lane was reset")
    window, silence = channel.window, channel.silence
    if not is_over and not silence.patience.may_ask():
        return
    is_there = window.base < window.sent and not window.is_sending and not unsent_bytes(lane)
    if silence.look(window.base, is_there, trio.current_time()):
        raise ConnectionBroken("the peer does not say that it has what was sent on a lane")


async def _seal_direction(channel: Channel, lane: Lane, sealer: Sealer) -> None:
    window, pace, cores = channel.window, channel.pace, channel.cores
    while True:
        due = window.unsent()
        if due is None:
            if window.closed_by is not None:
                break
            await _read_local(channel)
            continue
        payload = len(due[1])
        if pace is not None:
            await pace.take(HEADER_BYTES + payload + TAG_BYTES)
        try:
            if cores.are_shared(channel, payload) and not isinstance(lane, TlsLane):
                rest = await cores.work(_seal_and_send, channel, lane, sealer, due)
            else:
                rest = _seal_and_send(channel, lane, sealer, due)
        except OSError:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise ConnectionBroken("a lane was reset") from None
        await _send_all(lane, rest)
        window.note_whole()
        if sealer.next_seq % _FRAMES_PER_CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()
    if window.closed_by is FrameType.RESET:
        raise LocalBroken(f"the hypervisor's connection broke: {channel.broke}")
    _shut_down(lane)


def _seal_and_send(
    channel: Channel, lane: Lane, sealer: Sealer, due: tuple[FrameType, memoryview | bytes]
) -> memoryview:
    """Seal what is due and send what the lane takes now; return the rest. Perhaps in a thread. OSError."""
    counts, window = channel.counts, channel.window
    frame, window.is_sending = window.frame(len(due[1])), True
    size = sealer.seal_into(due[0], due[1], frame)
    # Counted before it is sent: the peer may acknowledge what we have not yet returned from sending.
    window.note_sent()
    counts.sent_frames = max(counts.sent_frames, window.sent)
    sent = 0
    try:
        while sent < size:
            sent += lane.send(frame[sent:size])
    except BlockingIOError:
        pass
    return frame[sent:size]


async def _read_local(channel: Channel) -> None:
    """Read one frame's payload into the window, or note the end there."""
    window = channel.window
    try:
        while (filled := await _fill(channel, room := await channel.room())) is None:
            window.rest()
            await _wait(trio.lowlevel.wait_readable, channel.local)
    except OSError as error:
        if not channel.counts.may_leave:
            channel.broke = str(error.strerror)
            window.close(FrameType.RESET, ResetCode.LOCAL_BROKEN.to_bytes(2, "big"))
            return
        filled = 0
    if filled == 0:
        window.close(FrameType.FIN)
        return
    channel.last_filled = filled
    window.append(FrameType.DATA, filled)
    channel.counts.sent_bytes += filled
    if channel.counts.digests is not None:
        channel.counts.digests.sent.update(room[:filled])


async def _open_in_turn(channel: Channel, lane: Lane, opener: Opener) -> None:
    """Open, until others that need its memory have waited for a whole turn."""
    with trio.CancelScope() as turn:
        await _open_direction(channel, lane, opener, turn)
    if turn.cancelled_caught:
        raise ConnectionBroken("a lane brought no frame whole, or its hypervisor took none, while others were waiting")


async def _open_direction(channel: Channel, lane: Lane, opener: Opener, turn: trio.CancelScope) -> None:
    arriving, cores = channel.arriving, channel.cores
    header = memoryview(bytearray(HEADER_BYTES))
    in_header = 0
    while arriving.closed_by is None:
        rest = None if in_header else arriving.rest
        in_header += await _receive(lane, header[in_header:], HEADER_BYTES - in_header, rest)
        try:
            due = opener.header(header)
            place = await arriving.place(due, turn.cancel)
            filled = await _receive(lane, place[: due + HEADER_BYTES], due)
            if cores.are_shared(channel, due):
                await cores.work(_open_and_write, channel, opener, header, place[:due])
            else:
                _open_and_write(channel, opener, header, place[:due])
        except ProtocolViolation as violation:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise ConnectionBroken(f"a lane was tampered with: {violation.rule}") from None
        in_header = filled - due
        header[:in_header] = place[due:filled]
        if arriving.closed_by is FrameType.RESET:
            raise LocalBroken("the hypervisor's connection broke at the peer")
        if arriving.closed_by is FrameType.FIN:
            channel.counts.received_frames = arriving.next_seq
            channel.wrote(0, True)
            _shut_down(channel.local)
        else:
            await _write_held(channel)
        if opener.next_seq % _FRAMES_PER_CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()
    arriving.rest()  # nothing more arrives, so nobody could ask it back
    if in_header:
        raise ConnectionBroken("a lane was tampered with: bytes after fin")


def _open_and_write(channel: Channel, opener: Opener, header: memoryview, body: memoryview) -> None:
    """Open the frame where it is, and write of it what the hypervisor takes now. Perhaps in a thread.
    `ProtocolViolation`."""
    arriving = channel.arriving
    size = opener.open_into(header, body, body)
    # From here to the next wait nothing may come in between: the frame is held.
    arriving.next_seq = opener.next_seq
    arriving.closed_by = opener.closed_by
    if arriving.closed_by is not None:
        return  # what a reset says is not the hypervisor's
    arriving.hold(size, body)
    try:
        channel.write_held()
    except OSError:
        pass  # no room for more, or broken: `_write_held` meets it again, and judges it


async def _write_held(channel: Channel) -> None:
    """Write what is left of the frame that is held to the hypervisor."""
    arriving, counts = channel.arriving, channel.counts
    if not arriving.held:
        return
    while arriving.written < arriving.held:
        try:
            channel.write_held()
        except BlockingIOError:
            await _wait(trio.lowlevel.wait_writable, channel.local)
        except OSError as error:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not counts.may_leave or error.errno == errno.EBADF:  # which is our own closing, not its leaving
                raise LocalBroken(f"the hypervisor's connection broke: {error.strerror}") from None
            arriving.written = arriving.held
    counts.received_frames = arriving.next_seq
    counts.received_bytes += arriving.held
    channel.digest_written()
    size, arriving.held = arriving.held, 0
    channel.wrote(size, False)


async def _fill(channel: Channel, buffer: memoryview) -> int | None:
    """Read until `buffer` is full or there is nothing more at the moment; 0 is the end of the stream, None is nothing.

    If the frame before was large, a moment's wait for the rest of this one is worth it. What was read before a wait is
    noted as pending, where a cancellation cannot lose it.
    """
    local, window = channel.local, channel.window
    filled = window.pending
    is_bulk = channel.last_filled >= _BULK_BYTES
    room = len(buffer)
    while filled < room:
        try:
            received = local.recv_into(buffer[filled:])
        except BlockingIOError:
            window.pending = filled
            if not filled:
                return None
            if not (is_bulk and filled < room // 2 and await _more_comes(local)):
                break
            continue
        if received == 0:
            break  # what came before the end goes first; the end is met again at the next call
        filled += received
    return filled


async def _more_comes(local: socket.socket) -> bool:
    """Wait a moment for more. A QEMU that is still writing fills its socket again within it."""
    with trio.move_on_after(_MORE_SECONDS):
        await _wait(trio.lowlevel.wait_readable, local)
        return True
    return False


async def _wait(until: Callable[[socket.socket], Awaitable[None]], local: socket.socket) -> None:
    """`ConnectionBroken` where the session ends meanwhile; why, who ended it says."""
    try:
        await until(local)
    except trio.ClosedResourceError:
        raise ConnectionBroken("the session has ended here") from None


async def _receive(lane: Lane, buffer: memoryview, minimum: int, rest: Callable[[], None] | None = None) -> int:
    """Read at least `minimum` bytes, and what else is there and fits; return how many. `rest` is called where there
    are none yet."""
    filled = 0
    while filled < minimum:
        try:
            received = lane.recv_into(buffer[filled:])
        except BlockingIOError:
            if rest is not None and not filled:
                rest()
            await trio.lowlevel.wait_readable(lane)
            continue
        except OSError:
            raise ConnectionBroken("a lane was reset") from None
        if received == 0:
            raise ConnectionBroken("a lane ended without fin")
        filled += received
    return filled


async def _send_all(lane: Lane, data: memoryview) -> None:
    sent = 0
    while sent < len(data):
        try:
            sent += lane.send(data[sent:])
        except BlockingIOError:
            await trio.lowlevel.wait_writable(lane)
        except OSError:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise ConnectionBroken("a lane was reset") from None


def _shut_down(sock: Lane) -> None:
    """Half-close: the other direction goes on."""
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side has gone already, and said so in its own direction
