"""As many sessions as a relay takes, whose peers are authenticated and hold what they can: it stays small, and an
honest session goes on among them. A destination as a process of its own, and a source."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from bench.harness import peak_rss_bytes
from tests.transport.relay.conftest import host_with, until, with_limits
from tests.transport.relay.hostile import Conversation, Driver, fake_destination
from tests.transport.relay.test_handover import START_SECONDS, RelayProcess, relay
from tests.transport.relay.test_slow_peers import MIB, MOST_BYTES, Scene, pour, require_carrying, sip
from tests.transport.site import Site, write_toml
from transport.relay.host import open_host
from transport.relay.limits import LimitsSection
from transport.wire.frames import MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, FrameType, LaneSealer
from transport.wire.keys import Direction
from transport.wire.messages import Answer, Offer, Open

pytestmark = pytest.mark.whole
LIMITS = LimitsSection()
SESSIONS = LIMITS.max_sessions - 1  # and an honest one
LANES = 1 + LIMITS.max_further_lanes // LIMITS.max_sessions


def frames_of(driver: Driver, channel: int) -> tuple[bytes, bytes]:
    """One of the largest size, and another that never ends."""
    assert driver.keys is not None
    sealer = LaneSealer(driver.keys.lane_secret(channel, Direction.SOURCE_TO_DESTINATION))
    frame = memoryview(bytearray(MAX_FRAME_BYTES))
    sealer.seal_into(FrameType.DATA, bytes(MAX_PAYLOAD_BYTES), frame)
    whole = bytes(frame)
    sealer.seal_into(FrameType.DATA, bytes(MAX_PAYLOAD_BYTES), frame)
    return whole, bytes(frame[:-1000])


async def until_lost(work: Callable[[], Awaitable[None]]) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await work()


async def keeps_all(here: Scene, driver: Driver, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
    """The hypervisor says much on each lane, all of which is taken and none acknowledged; a frame is begun on each."""

    async def begins(lane: trio.SocketStream, frames: tuple[bytes, bytes]) -> None:
        for frame in frames:
            await lane.send_all(frame)

    for channel in range(LANES):
        await driver.send(Open(channel, "memory"))
        lane, hypervisor = await driver.lane(channel), await listener.accept()
        for work in (partial(pour, hypervisor), partial(sip, hypervisor, MIB), partial(sip, lane, MIB)):
            nursery.start_soon(until_lost, work)
        nursery.start_soon(until_lost, partial(begins, lane, frames_of(driver, channel)))


@asynccontextmanager
async def beset_as_destination(here: Scene) -> AsyncIterator[None]:
    """Each session but one is hostile."""
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for _ in range(SESSIONS):
            permit, listener = here.vm()
            connected = Driver.connected(here.relay.address, here.source.credentials)
            driver = await stack.enter_async_context(connected)
            assert isinstance(await driver.offer(permit), Answer)
            await keeps_all(here, driver, listener, nursery)
        yield
        nursery.cancel_scope.cancel()


async def test_a_destination_whose_every_session_is_hostile_stays_small_and_carries_an_honest_one(site: Site) -> None:
    async with relay(write_toml(site.relay_config("b"), site.folder / "b.toml")) as running:
        here = Scene(site, running, host_with(site, "a", {}))
        try:
            async with beset_as_destination(here):
                await require_carrying(here)
        finally:
            for listener in here.listeners:
                await listener.aclose()
        most = peak_rss_bytes(running.process.pid)
    print(f"{most / MIB:.0f} MiB")
    assert most < MOST_BYTES, most / MIB


async def connected(path: Path) -> trio.SocketStream | None:
    with suppress(OSError):
        return await trio.open_unix_socket(str(path))
    return None


@pytest.mark.parametrize("is_both", [False, True], ids=["source", "source and destination"])
async def test_a_source_whose_every_destination_is_hostile_stays_small(site: Site, *, is_both: bool) -> None:
    """Each takes all, acknowledges nothing, and begins a frame on each lane; no key is needed for its beginning.

    `is_both`: as many sessions arrive at the same relay as may, which are hostile alike.
    """
    moves, further = LIMITS.max_moves, LIMITS.max_further_lanes // LIMITS.max_moves
    name, other, lanes = ("b", "a", 1) if is_both else ("a", "b", 1 + further)  # those who arrive have all further ones
    patience = dict.fromkeys(("handshake_seconds", "message_seconds", "dial_seconds"), 60.0)
    patient = with_limits(site.relay_config(name), **patience)
    config = write_toml(patient, site.folder / f"{name}.toml")
    parties = {"aud": site.spiffe(other), "source": site.spiffe(name), "destination": site.spiffe(other)}
    permits = "\n".join(site.permit(**parties) for _ in range(moves))
    begun: list[trio.SocketStream] = []

    async def takes_all_and_begins(lane: trio.SocketStream) -> None:
        begun.append(lane)
        await lane.send_all(MAX_PAYLOAD_BYTES.to_bytes(4, "big") + bytes(MAX_PAYLOAD_BYTES - 1000))
        await sip(lane, MIB)

    async def answers(source: Conversation, _: Offer) -> None:
        await source.send(Answer({}, lanes))
        await trio.sleep_forever()

    async def says_much(path: Path) -> None:
        """A source that has no answer yet does not listen, and it is made anew where it was not answered in time."""
        for _ in range(lanes):
            with trio.fail_after(60):
                while (stream := await connected(path)) is None:
                    await trio.sleep(0.05)
            nursery.start_soon(pour, stream)

    destination = open_host(site.relay_config(other)).credentials
    async with fake_destination(destination, answers, takes_all_and_begins) as fake, AsyncExitStack() as stack:
        command = [sys.executable, "-m", "tests.transport.relay.many_sources", str(config), fake.address]
        with (output := site.folder / "sources.log").open("wb") as said:
            source = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        here = Scene(site, RelayProcess(source, output), host_with(site, "a", {}))
        try:
            await until(lambda: bool(here.relay.lines("ready")) or source.poll() is not None, START_SECONDS)
            if is_both:
                await stack.enter_async_context(beset_as_destination(here))
            assert source.stdin is not None
            source.stdin.write(permits.encode())
            source.stdin.close()
            async with trio.open_nursery() as nursery:
                for number in range(moves):
                    nursery.start_soon(says_much, site.folder / f"{number}.sock")
                nearly_all = lanes * moves - 4  # a session has no more further lanes than are left to others
                await until(lambda: len(begun) >= nearly_all or source.poll() is not None, 60)
                most = peak_rss_bytes(source.pid)
                nursery.cancel_scope.cancel()
            assert source.poll() is None, output.read_text()[-2000:]
        finally:
            source.kill()
            source.wait()
            for listener in here.listeners:
                await listener.aclose()
    print(f"{most / MIB:.0f} MiB")
    assert most < MOST_BYTES, most / MIB
