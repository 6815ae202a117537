"""What sessions share: nobody is left with nothing, who ends gives all back, and a place that is kept is asked back."""

from __future__ import annotations

import math
import random
import resource
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.errors import ConnectionBroken, LocalBroken
from transport.relay.channel import Arriving, Channel
from transport.relay.channels import Channels
from transport.relay.content_digests import ContentDigests
from transport.relay.cores import Cores
from transport.relay.lane import carry_channel
from transport.relay.lane_memory import TURN_SECONDS, LaneMemory, Lease, Share, lane_memory_of
from transport.relay.limits import LimitsSection
from transport.wire.control import Role
from transport.wire.frames import MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, FrameType, LaneOpener, LaneSealer
from transport.wire.window import LARGE_BYTES, SMALL_BYTES, SendWindow

MIB = 1 << 20
SECRET = bytes(48)


def memory_of(places: int, further_lanes: int = 64) -> LaneMemory:
    return LaneMemory(places * LARGE_BYTES, further_lanes)


def filled(share: Share) -> int:
    """As much as it is lent for its windows."""
    while share.lend(1) is not None:
        pass
    return share.sending


def test_one_channel_alone_has_its_whole_window_with_what_is_in_the_configuration_by_default() -> None:
    memory = lane_memory_of(LimitsSection())
    share = memory.share(32)
    assert filled(share) >= 16 + 1, "16 MiB, and where they are sealed"
    assert memory.left > 0


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["lend", "give", "end"])), max_size=300))
@settings(deadline=None, max_examples=60)
def test_what_is_lent_for_windows_leaves_something_and_comes_back_whole(steps: list[tuple[int, str]]) -> None:
    places = 24
    memory = memory_of(places)
    shares, kept = [memory.share(16) for _ in range(6)], [list[memoryview]() for _ in range(6)]
    for at, what in steps:
        if what == "lend":
            had = shares[at].sending
            lent = shares[at].lend(1) or []
            kept[at] += lent
            free = memory.left - places // 4
            assert had == 0 or not lent or had + 1 <= 4 * free, "whoever comes next finds something"
        else:
            gives = kept[at][: 1 if what == "give" else None]
            kept[at] = kept[at][len(gives) :]
            shares[at].take_back(*gives)
        everything = [id(place) for each in kept for place in each]
        assert len(set(everything)) == len(everything) == memory.lent == sum(each.sending for each in shares)
        assert memory.left >= places // 4, "a quarter is for what arrives"
    for share, each in zip(shares, kept, strict=True):
        share.take_back(*each)
    assert memory.lent == 0


def test_of_sessions_that_keep_all_they_get_each_next_one_gets_less_and_the_first_no_more_than_four_fifths() -> None:
    memory = memory_of(48)
    assert [filled(memory.share(48)) for _ in range(4)] == [28, 6, 1, 0]


@pytest.mark.parametrize(("sessions", "largest_over_least"), [(4, 1.5), (8, 2), (12, 3), (16, 4)])
def test_honest_sessions_whose_windows_are_always_full_come_to_equal_parts(
    sessions: int, largest_over_least: float
) -> None:
    """Whoever came first would have most for ever, and the last ones 640 kB/s."""
    memory, order = memory_of(48), random.Random(1)
    windows = [SendWindow(16 * MIB, memory.share(32)) for _ in range(sessions)]
    sent = [0] * sessions
    for turn in range(40):
        for at in order.sample(range(sessions), sessions):
            window = windows[at]
            window.acknowledge(window.sent)
            while room := window.room():
                window.append(FrameType.DATA, len(room))
                window.note_sent()
                sent[at] += len(room) if turn >= 20 else 0
    assert max(sent) <= largest_over_least * min(sent), sent
    assert min(sent) >= 20 * MIB, "at least one of the largest frames, each time"
    for window in windows:
        window.give_all()
    assert (memory.lent, memory.sending_sessions) == (0, 0)


def test_each_session_has_one_lane_in_any_case_and_further_ones_are_counted_over_all() -> None:
    memory = memory_of(8, further_lanes=2)
    first, second, third = memory.share(1), memory.share(1), memory.share(1)
    for session in (first, second):
        session.enter_lane()
        session.enter_lane()
    third.enter_lane()
    for session in (first, third):
        with pytest.raises(LocalBroken, match="max_further_lanes"):
            session.enter_lane()
    first.leave_lane()
    third.enter_lane()
    for session, lanes in ((first, 1), (second, 2), (third, 2)):
        for _ in range(lanes):
            session.leave_lane()
    assert [session.lanes for session in (first, second, third)] == [0, 0, 0]
    assert memory.further_lanes == 0


def test_memory_goes_back_to_the_system_with_the_last_session_that_had_a_lane_not_with_the_lane() -> None:
    """A guest stands still between the end of its lanes and its start elsewhere, and giving memory back takes time."""
    memory = memory_of(8)
    first, second, idle = memory.share(8), memory.share(8), memory.share(8)
    places = [write_into(share) for share in (first, second)]
    first.leave_lane()
    first.take_back(places[0])
    assert memory.take() is places[0]
    memory.give(places[0])
    second.leave_lane()
    second.end()
    second.take_back(places[1])
    assert memory.take() is places[1], "the first has not ended"
    memory.give(places[1])
    first.end()
    first.end()
    first.enter_lane()
    first.leave_lane()
    idle.end()
    assert memory.take() == bytes(LARGE_BYTES), "nothing of a guest stays"
    assert memory.lent == 1


def write_into(share: Share) -> memoryview:
    share.enter_lane()
    (place,) = share.lend(1) or []
    place[:5] = b"guest"
    return place


def test_sessions_that_take_all_the_lanes_they_get_leave_further_ones_for_those_who_come_next() -> None:
    """One permit's channels took all of them: multifd failed for all others of the host."""
    memory = memory_of(8, further_lanes=64)
    assert [lanes_of(memory.share(1)) for _ in range(4)] == [33, 17, 9, 5]
    modest = [memory.share(1) for _ in range(4)]
    for session in modest:
        session.enter_lane()
        session.enter_lane()


def lanes_of(share: Share) -> int:
    """As many as it gets."""
    with suppress(LocalBroken):
        while True:
            share.enter_lane()
    return share.lanes


async def keeps(share: Share) -> None:
    """Whatever it gets, until it is asked back; then it comes again, as a hostile peer does."""
    while True:
        with trio.CancelScope() as scope:
            lease: Lease | None = None
            try:
                lease = await share.lease(scope.cancel)
                await trio.sleep_forever()
            finally:
                if lease is not None:
                    lease.give_back()


@pytest.mark.parametrize(("sessions", "lanes", "places"), [(3, 1, 4), (7, 9, 4), (31, 2, 12)])
async def test_an_honest_lane_carries_its_share_of_the_time_whatever_the_others_keep(
    autojump_clock: trio.testing.MockClock, sessions: int, lanes: int, places: int
) -> None:
    """Frames of 50 ms; it gives its place back between two frames when it is due."""
    memory, carried, frame_seconds, lost = memory_of(places), 0, 0.05, trio.CancelScope()

    async with trio.open_nursery() as nursery:
        for _ in range(sessions):
            share = memory.share(1)
            for _ in range(lanes):
                nursery.start_soon(keeps, share)
        await trio.testing.wait_all_tasks_blocked()
        began, own = trio.current_time(), memory.share(1)
        with lost:
            lease = await own.lease(lost.cancel)
            longest = trio.current_time() - began
            while trio.current_time() - began < 150:
                await trio.sleep(frame_seconds)
                carried += 1
                if lease.is_due:
                    lease.give_back()
                    asked = trio.current_time()
                    lease = await own.lease(lost.cancel)
                    longest = max(longest, trio.current_time() - asked)
        nursery.cancel_scope.cancel()
    assert not lost.cancelled_caught, "whoever gives it back by itself loses no connection"
    rounds = math.ceil((sessions + 1) / places)
    assert longest <= rounds * (TURN_SECONDS + 1) + 1
    assert carried * frame_seconds / 150 >= 0.7 / rounds


@pytest.mark.parametrize("frame_seconds", [0.9, 2.2, 4.2, 4.9])
async def test_a_lane_that_brings_each_frame_in_less_than_a_turn_is_never_cut(
    autojump_clock: trio.testing.MockClock, frame_seconds: float
) -> None:
    """1.7 Mb/s and more, among others that keep whatever they get; also one that has had its place for long."""
    memory, lost, carried = memory_of(4), trio.CancelScope(), 0
    arriving = Arriving(memory.share(1))
    async with trio.open_nursery() as nursery:
        with lost:
            while trio.current_time() < 200:
                await arriving.place(MAX_PAYLOAD_BYTES, lost.cancel)
                await trio.sleep(frame_seconds)
                carried += 1
                if carried == 3:
                    for _ in range(5):
                        nursery.start_soon(keeps, memory.share(1))
        nursery.cancel_scope.cancel()
    assert not lost.cancelled_caught
    assert carried * frame_seconds > 200 / 4
    arriving.rest()
    assert memory.lent == 0


async def test_who_is_left_waiting_by_places_that_went_to_others_asks_those(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """They were all asked back at once, and went to sessions that keep them without ever coming again."""
    memory = memory_of(4)

    async def keeps_once(share: Share) -> None:
        with trio.CancelScope() as scope:
            lease = await share.lease(scope.cancel)
            try:
                await trio.sleep_forever()
            finally:
                lease.give_back()

    own = memory.share(1)
    (await own.lease(lambda: None)).give_back()  # so that all others come before it
    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(keeps_once, memory.share(1))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(3 * (TURN_SECONDS + 2)):
            (await own.lease(lambda: None)).give_back()
        nursery.cancel_scope.cancel()
    assert memory.lent == 0


async def test_who_waits_for_one_that_takes_its_time_to_go_does_nothing_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else the clock of this test, which moves when nobody has anything to do, would never move."""
    memory, asked = memory_of(4), list[int]()
    leases = [await memory.share(1).lease(lambda: asked.append(1)) for _ in range(4)]
    await trio.sleep(2 * TURN_SECONDS)
    with trio.move_on_after(3 * TURN_SECONDS):
        await memory.share(1).lease(lambda: None)
    assert asked == [1], "one is enough for one"
    for lease in leases:
        lease.give_back()


async def test_a_place_is_asked_back_only_while_others_wait(autojump_clock: trio.testing.MockClock) -> None:
    memory, scope = memory_of(4), trio.CancelScope()
    leases = [await memory.share(1).lease(scope.cancel) for _ in range(4)]
    with scope:
        await trio.sleep(10 * TURN_SECONDS)
        assert not leases[0].is_due
        with trio.move_on_after(0.5):  # who gives up waiting has asked nobody, and keeps nothing
            await memory.share(1).lease(scope.cancel)
        await trio.sleep(10 * TURN_SECONDS)
    assert not scope.cancelled_caught
    for lease in leases:
        lease.give_back()
    assert memory.lent == 0


async def test_who_is_given_up_while_it_is_served_keeps_nothing() -> None:
    memory = memory_of(4)
    leases = [await memory.share(1).lease(lambda: None) for _ in range(4)]

    async def asks() -> None:
        leases.append(await memory.share(1).lease(lambda: None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asks)
        await trio.testing.wait_all_tasks_blocked()
        leases.pop().give_back()  # it is granted, and its task has not run yet
        nursery.cancel_scope.cancel()
    for lease in leases:
        lease.give_back()
    assert memory.lent == 0


def opened(memory: LaneMemory) -> tuple[Channels, Channel, socket.socket]:
    """A destination's channel, and its hypervisor's end."""
    local, hypervisor = socket.socketpair()
    for each in (local, hypervisor):
        each.setblocking(False)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    channels = Channels(Role.DESTINATION, LimitsSection(), Cores(0), memory)
    return channels, channels.add("memory", local), hypervisor


async def sent(lane: socket.socket, data: bytes | memoryview) -> None:
    async with trio.SocketStream(trio.socket.from_stdlib_socket(lane.dup())) as stream:
        await stream.send_all(data)


async def over_a_lane(channel: Channel, play: Callable[[socket.socket], Awaitable[None]]) -> None:
    lane, peer = socket.socketpair()
    for each in (lane, peer):
        each.setblocking(False)
    with peer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(play, peer)
            sealer = LaneSealer(SECRET, channel.window.sent)
            await carry_channel(channel, lane, sealer, LaneOpener(SECRET, channel.arriving.next_seq))


async def test_a_lane_whose_hypervisor_takes_nothing_makes_room_and_the_stream_goes_on_whole(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is sent again in other pieces, over a second lane: what the hypervisor has of it comes once."""
    memory = memory_of(4)
    channels, channel, hypervisor = opened(memory)
    channel.counts.digests = ContentDigests.new()
    data = random.Random(1).randbytes(3 * MIB)
    again = bytes([data[0] ^ 1]) + data[1:]  # the peer lies about what was written already
    frame = memoryview(bytearray(MAX_FRAME_BYTES))

    async def whole(peer: socket.socket) -> None:
        size = LaneSealer(SECRET).seal_into(FrameType.DATA, data[:MAX_PAYLOAD_BYTES], frame)
        await sent(peer, frame[:size])

    async def others() -> None:
        while not channel.arriving.written:
            await trio.sleep(0.001)
        leases = [await memory.share(1).lease(lambda: None) for _ in range(4)]  # one of them is the lane's
        for lease in leases:
            lease.give_back()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        with pytest.raises(BaseExceptionGroup) as caught:
            await over_a_lane(channel, whole)
    assert caught.group_contains(ConnectionBroken, match="while others were waiting")
    assert memory.lent == 0, "a session that waits to be resumed has nothing of what arrives"
    assert channels.next() == {"0": 0}, "the peer is not told that the frame is held"
    taken = bytearray()

    async def takes() -> None:
        own = trio.socket.from_stdlib_socket(hypervisor)
        while part := await own.recv(65536):
            taken.extend(part)

    async def in_pieces(peer: socket.socket) -> None:
        sealer, at = LaneSealer(SECRET), 0
        for size in (10, 1000, 200_000, 500_000, MAX_PAYLOAD_BYTES, 3 * MIB - MAX_PAYLOAD_BYTES - 701_010):
            for part in range(at, at + size, MAX_PAYLOAD_BYTES):
                piece = again[part : min(part + MAX_PAYLOAD_BYTES, at + size)]
                await sent(peer, frame[: sealer.seal_into(FrameType.DATA, piece, frame)])
            at += size
        await sent(peer, frame[: sealer.seal_into(FrameType.FIN, b"", frame)])

    with trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(takes)
            nursery.start_soon(over_a_lane, channel, in_pieces)
            while channel.arriving.closed_by is None or len(taken) < len(data):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert bytes(taken) == data
    honest = ContentDigests.new().received
    honest.update(memoryview(data))
    assert channel.counts.digests.received.hexdigest() == honest.hexdigest(), "of what the hypervisor has"
    assert channel.counts.received_bytes == len(data)
    channels.close()
    hypervisor.close()
    assert (memory.lent, memory.further_lanes) == (0, 0)


async def test_a_direction_that_has_ended_keeps_no_place_though_the_other_goes_on() -> None:
    """Nothing arrives any more, so nobody could ask for it back."""
    memory = memory_of(4)
    channels, channel, hypervisor = opened(memory)
    frame = memoryview(bytearray(MAX_FRAME_BYTES))

    async def ends(peer: socket.socket) -> None:
        sealer = LaneSealer(SECRET)
        data = bytes(frame[: sealer.seal_into(FrameType.DATA, bytes(100_000), frame)])
        await sent(peer, data + bytes(frame[: sealer.seal_into(FrameType.FIN, b"", frame)]))
        own = trio.socket.from_stdlib_socket(hypervisor)
        with trio.fail_after(20):
            while await own.recv(65536):
                pass
        assert memory.lent == 0
        lanes.cancel_scope.cancel()

    async with trio.open_nursery() as lanes:
        await over_a_lane(channel, ends)
    assert channel.arriving.closed_by is FrameType.FIN
    channels.close()
    hypervisor.close()


async def test_what_a_peer_says_of_its_reset_is_not_written_to_the_hypervisor() -> None:
    channels, channel, hypervisor = opened(memory_of(4))
    frame = memoryview(bytearray(100))

    async def resets(peer: socket.socket) -> None:
        await sent(peer, frame[: LaneSealer(SECRET).seal_into(FrameType.RESET, b"\x00\x01", frame)])

    with pytest.raises(BaseExceptionGroup) as caught:
        await over_a_lane(channel, resets)
    assert caught.group_contains(LocalBroken, match="at the peer")
    channels.close()
    with hypervisor:
        assert hypervisor.recv(100) == b""


async def test_a_lane_of_a_session_that_has_ended_meanwhile_ends_too() -> None:
    """It was dialled until now, and waits for no room that nobody will make."""
    channels, _, hypervisor = opened(memory_of(4))
    channels.close()
    local, other = socket.socketpair()
    channel = channels.add("memory", local)

    async def waits(_: socket.socket) -> None:
        await trio.sleep_forever()

    with hypervisor, other, trio.fail_after(5), pytest.raises(BaseExceptionGroup) as caught:
        await over_a_lane(channel, waits)
    assert caught.group_contains(LocalBroken)


async def test_lanes_that_have_ended_keep_no_memory_while_their_session_goes_on() -> None:
    """A peer may open one after the other, each of which is counted only while it is there."""
    memory, channels_of_it, count = memory_of(4), list[Channels](), 150
    frame = memoryview(bytearray(MAX_FRAME_BYTES))
    part = b"x" * SMALL_BYTES

    async def plays(hypervisor: socket.socket, peer: socket.socket) -> None:
        sealer = LaneSealer(SECRET)
        for frame_type, payload in ((FrameType.DATA, part), (FrameType.FIN, b"")):
            await sent(peer, frame[: sealer.seal_into(frame_type, payload, frame)])
        await sent(hypervisor, part * 2)
        with hypervisor:
            own = trio.socket.from_stdlib_socket(hypervisor.dup())
            while await own.recv(65536):
                pass
            own.shutdown(socket.SHUT_WR)
            own.close()
        own = trio.socket.from_stdlib_socket(peer.dup())
        with own:
            received = 0
            while received < 2 * SMALL_BYTES + 3 * 32:
                received += len(await own.recv(65536))
        channels_of_it[-1].all[-1].acknowledge(channels_of_it[-1].all[-1].window.sent)

    async def one() -> None:
        channels, channel, hypervisor = opened(memory)
        channels_of_it.append(channels)
        with trio.fail_after(20):
            await over_a_lane(channel, partial(plays, hypervisor))

    await one()
    before = resident_bytes()
    for _ in range(count):
        await one()
    grown = resident_bytes() - before
    assert grown < count * SMALL_BYTES, grown / count


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("how", ["cancelled", "lost"])
async def test_a_session_that_ends_gives_all_back_whatever_it_was_doing(how: str) -> None:
    """Its peer has taken and acknowledged nothing, and has begun a frame."""
    memory = memory_of(48)
    channels, channel, hypervisor = opened(memory)

    async def begins(peer: socket.socket) -> None:
        frame = memoryview(bytearray(MAX_FRAME_BYTES))
        LaneSealer(SECRET).seal_into(FrameType.DATA, bytes(MAX_PAYLOAD_BYTES), frame)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sent, peer, frame[:-1000])
            with trio.fail_after(20):
                while memory.lent < 3:  # a slot, where it is sealed, and where the frame arrives
                    await trio.sleep(0.001)
        if how == "lost":
            peer.shutdown(socket.SHUT_RDWR)
            return
        lanes.cancel_scope.cancel()

    with suppress(BaseExceptionGroup):
        async with trio.open_nursery() as lanes:
            lanes.start_soon(sent, hypervisor, b"secret" * (6 * MIB))
            await over_a_lane(channel, begins)
    assert memory.lent > 0, "what was sent is kept, for another lane"
    channels.close()
    hypervisor.close()
    assert (memory.lent, memory.further_lanes) == (0, 0)
    assert all(memory.take() == bytes(LARGE_BYTES) for _ in range(3)), "nothing of a guest stays without sessions"
