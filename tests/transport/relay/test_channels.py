"""A session that ends while a lane waits for its hypervisor: the lane ends, and nobody else is met."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
import trio
import trio.testing

from transport.errors import ConnectionBroken
from transport.relay.channels import Channels
from transport.relay.cores import Cores
from transport.relay.lane import carry_channel
from transport.relay.lane_memory import lane_memory_of
from transport.relay.limits import LimitsSection
from transport.wire.control import Role
from transport.wire.frames import MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, FrameType, LaneOpener, LaneSealer

SECRET = bytes(48)


def ends() -> tuple[socket.socket, socket.socket]:
    both = socket.socketpair()
    for each in both:
        each.setblocking(False)
    return both


async def fill(lane: trio.SocketStream) -> None:
    """More than the hypervisor takes."""
    sealer, frame = LaneSealer(SECRET), memoryview(bytearray(MAX_FRAME_BYTES))
    sealer.seal_into(FrameType.DATA, bytes(MAX_PAYLOAD_BYTES), frame)
    await lane.send_all(frame)


@pytest.mark.parametrize(("waits_to", "wait"), [("read", "wait_readable"), ("write", "wait_writable")])
async def test_whose_descriptor_is_the_next_ones_meets_no_task_of_a_session_that_has_ended(
    waits_to: str, wait: str
) -> None:
    """`BusyResourceError` in the listener, of all tasks, would have ended the relay with all sessions."""
    channels = Channels(Role.DESTINATION, LimitsSection(), Cores(0), lane_memory_of(LimitsSection()))
    local, hypervisor = ends()
    lane, peer = ends()
    wait_for: Callable[[socket.socket], object] = getattr(trio.lowlevel, wait)
    number = local.fileno()
    channel = channels.add("memory", local)
    with pytest.raises(ExceptionGroup) as ended, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry_channel, channel, lane, LaneSealer(SECRET), LaneOpener(SECRET))
            if waits_to == "write":
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(peer))
                nursery.start_soon(fill, stream)
            await trio.testing.wait_all_tasks_blocked(0.05)
            channels.close()
            others = ends()
            (other,) = (each for each in others if each.fileno() == number)
            with trio.move_on_after(0.2):
                await wait_for(other)  # type: ignore[misc]
    ours, others_errors = ended.value.split(ConnectionBroken)
    assert ours is not None
    assert others_errors is None
    for each in (hypervisor, peer, *others):
        each.close()


@pytest.mark.parametrize("more", [b"", b"x", bytes(16)])
async def test_what_comes_with_the_last_frame_and_behind_it_is_a_lane_that_was_tampered_with(more: bytes) -> None:
    channels = Channels(Role.DESTINATION, LimitsSection(), Cores(0), lane_memory_of(LimitsSection()))
    local, hypervisor = ends()
    lane, peer = ends()
    frame = memoryview(bytearray(100))
    size = LaneSealer(SECRET).seal_into(FrameType.FIN, b"", frame)
    peer.send(bytes(frame[:size]) + more)
    channel = channels.add("memory", local)
    with trio.move_on_after(0.2) as patience:
        try:
            await carry_channel(channel, lane, LaneSealer(SECRET), LaneOpener(SECRET))
        except* ConnectionBroken as broken:
            assert "bytes after fin" in str(broken.exceptions)  # noqa: PT017 - of a group
    assert patience.cancelled_caught == (not more)
    channels.close()
    for each in (hypervisor, peer):
        each.close()
