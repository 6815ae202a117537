"""Several channels at once are worked on by several threads, one alone by none, and nothing of it changes a byte."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import pytest
import trio
import trio.testing

from tests.transport.relay.conftest import Pair, host_with, serving, until
from tests.transport.relay.test_carriage import VM, dial, listen
from tests.transport.site import Site
from transport.relay import cores as module
from transport.relay.channels import Channels
from transport.relay.cores import WORTH_BYTES, Cores, threads_for_this_host
from transport.relay.host import RelayHost
from transport.relay.lane import carry_channel
from transport.relay.lane_memory import LaneMemory
from transport.relay.limits import LimitsSection
from transport.wire.control import Role
from transport.wire.frames import FrameType, LaneOpener, LaneSealer

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
SECRET = bytes(48)
MIB = 1 << 20
EACH = 24 * MIB


@pytest.mark.parametrize(("cores", "threads"), [(1, 0), (2, 0), (3, 0), (4, 3), (128, 8)])
def test_a_host_of_few_cores_has_no_threads(monkeypatch: pytest.MonkeyPatch, cores: int, threads: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert threads_for_this_host() == threads


async def test_cores_are_shared_while_channels_take_turns(autojump_clock: trio.testing.MockClock) -> None:
    cores, one, other = Cores(2), object(), object()
    assert not any(cores.are_shared(one, MIB) for _ in range(100))
    assert cores.are_shared(other, MIB)
    assert cores.are_shared(one, MIB)
    await trio.sleep(1)
    assert not cores.are_shared(one, MIB)  # the other has ended


async def test_small_frames_and_hosts_without_threads_keep_to_the_one(autojump_clock: trio.testing.MockClock) -> None:
    one, other = object(), object()
    for cores, size in ((Cores(2), WORTH_BYTES - 1), (Cores(0), MIB)):
        assert not any(cores.are_shared(each, size) for each in (one, other, one))


class Counting(Cores):
    """Where its work was done. What comes first waits for a second, so that two are in threads at once."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.done: list[tuple[str, int]] = []
        self._begun = 0
        self._second = threading.Event()

    async def work(self, step: Callable[[*Ts], T], *arguments: *Ts) -> T:
        number = self._begun = self._begun + 1

        def counted() -> T:
            self.done.append((step.__name__, threading.get_ident()))
            if number == 1:
                assert self._second.wait(30)
            else:
                self._second.set()
            return step(*arguments)

        return await super().work(counted)


async def carried(source: RelayHost, destination: RelayHost, site: Site, folder: Path, channels: int) -> None:
    """Random bytes over so many channels at once, both ways, and each as it was."""
    contents = [random.Random(number).randbytes(EACH) for number in range(channels)]
    listener, path = listen(site), folder / "in.sock"

    async def send(stream: trio.SocketStream, data: bytes) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def take(stream: trio.SocketStream, found: list[bytes]) -> None:
        received = hashlib.sha256()
        async for chunk in stream:
            received.update(chunk)
        found.append(received.digest())

    ahead: list[bytes] = []
    back: list[bytes] = []
    async with serving(destination) as (_, address):
        pair = Pair(site, source, destination, address)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.carry, site.permit(vm=VM), path)
                ends = [(await dial(path), await listener.accept()) for _ in range(channels)]
                for (here, there), data in zip(ends, contents, strict=True):
                    nursery.start_soon(send, here, data)
                    nursery.start_soon(send, there, data[::-1])
                    nursery.start_soon(take, there, ahead)
                    nursery.start_soon(take, here, back)
                await until(lambda: len(ahead) + len(back) == 2 * channels, 60)
                for end in ends:
                    for stream in end:
                        await stream.aclose()
        assert pair.news[-1].state == "completed"
    await listener.aclose()
    assert sorted(ahead) == sorted(hashlib.sha256(data).digest() for data in contents)
    assert sorted(back) == sorted(hashlib.sha256(data[::-1]).digest() for data in contents)


async def carried_counting(threads: int, channels: int, site: Site, folder: Path) -> tuple[Counting, Counting]:
    counts = Counting(threads), Counting(threads)
    source, destination = (
        dataclasses.replace(host_with(site, name, {}), cores=each) for name, each in zip("ab", counts, strict=True)
    )
    await carried(source, destination, site, folder, channels)
    return counts


@pytest.mark.whole
async def test_several_channels_use_several_threads_and_arrive_whole(
    site: Site, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SHARED_SECONDS", 60.0)  # on a busy machine channels do not take turns in 50 ms
    for each in await carried_counting(2, 3, site, short_path):
        assert {name for name, _ in each.done} == {"_seal_and_send", "_open_and_write"}
        assert len({thread for _, thread in each.done} - {threading.get_ident()}) >= 2


@pytest.mark.whole
async def test_a_host_without_threads_uses_none(site: Site, short_path: Path) -> None:
    assert [each.done for each in await carried_counting(0, 2, site, short_path)] == [[], []]


async def test_a_connection_is_not_closed_within_a_threads_write() -> None:
    """Whatever gets its descriptor next would be written to."""
    ours, theirs = socket.socketpair()
    channel = Channels(Role.DESTINATION, LimitsSection(), Cores(1), LaneMemory(48 * MIB, 8)).add("memory", ours)
    writes, closing, closes = threading.Event(), threading.Event(), threading.Event()

    class Slow:
        """A socket whose write takes until it was tried to close it."""

        closed = False

        def send(self, data: memoryview) -> int:
            writes.set()
            assert closing.wait(10)
            assert not closes.wait(0.3)
            assert not self.closed
            return len(data)

        def fileno(self) -> int:
            return -1

        def close(self) -> None:
            self.closed = True
            closes.set()

    channel.local = slow = Slow()  # type: ignore[assignment]
    channel.arriving.hold(1000, memoryview(bytes(1000)))
    thread = threading.Thread(target=channel.write_held)
    thread.start()
    assert writes.wait(10)
    closing.set()
    channel.close()
    thread.join()
    assert slow.closed
    assert channel.arriving.written == 1000
    ours.close()
    theirs.close()


class Ending(Cores):
    """While its thread works, everything is given up."""

    def __init__(self, scope: trio.CancelScope, close: Callable[[], None]) -> None:
        super().__init__(1)
        self._scope, self._close = scope, close

    def are_shared(self, by: object, size_bytes: int) -> bool:  # noqa: ARG002
        return True

    async def work(self, step: Callable[[*Ts], T], *arguments: *Ts) -> T:
        await trio.testing.wait_all_tasks_blocked()  # the other direction waits by then, as it would for a thread
        self._scope.cancel()
        self._close()
        return step(*arguments)


@pytest.mark.parametrize("direction", ["sealing", "opening"])
@pytest.mark.parametrize("may_leave", [False, True])
async def test_what_a_thread_meets_in_a_task_that_was_given_up_is_nobodys_failure(
    direction: str, may_leave: bool
) -> None:
    lane, peer = socket.socketpair()
    local, hypervisor = socket.socketpair()
    for each in (lane, local):
        each.setblocking(False)
    with trio.CancelScope() as scope, peer, hypervisor:

        def close() -> None:
            channel.close()
            if direction == "sealing":
                peer.close()

        channel = Channels(Role.DESTINATION, LimitsSection(), Ending(scope, close), LaneMemory(48 * MIB, 8)).add(
            "memory", local, may_leave=may_leave
        )
        if direction == "sealing":
            hypervisor.sendall(b"x" * 1000)
        else:
            frame = memoryview(bytearray(2000))
            peer.sendall(frame[: LaneSealer(SECRET).seal_into(FrameType.DATA, bytes(1000), frame)])
        with trio.fail_after(10):
            await carry_channel(channel, lane, LaneSealer(SECRET), LaneOpener(SECRET))
    assert scope.cancelled_caught
    assert channel.counts.received_bytes == 0
