"""Peers that are slow in every phase of a session, all at once: each is ended by a deadline, an honest migration
notices nothing of them, and the relay stays small."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from OpenSSL import SSL

from bench.harness import peak_rss_bytes
from certs.tls import client_context
from tests.transport.relay.conftest import Pair, host_with, until, with_limits
from tests.transport.relay.flood import client_hello
from tests.transport.relay.hostile import Conversation, Driver, Lane, Play, fake_destination
from tests.transport.relay.test_carriage import dial, listen
from tests.transport.relay.test_handover import RelayProcess, relay
from tests.transport.site import Site, write_toml
from transport.relay.config import split_address
from transport.relay.host import RelayHost, open_host
from transport.relay.news import News
from transport.wire.frames import MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, FrameType, LaneSealer
from transport.wire.keys import Direction
from transport.wire.messages import Answer, Cancel, Handover, Offer, Open, Outcome, Receipt, encode_message
from transport.wire.preface import make_preface

pytestmark = pytest.mark.whole
MIB = 1 << 20
MOST_BYTES = 150 * MIB
DRIP_SECONDS = 0.3
SESSION_SECONDS = 5.0
LIMITS = {
    "handshake_seconds": 3.0,
    "message_seconds": 3.0,
    "resume_seconds": 3.0,
    "drain_seconds": 1.0,
    "migration_deadline_seconds": SESSION_SECONDS,
}
PATIENCE_SECONDS = 30.0  # of the test, where others use the machine


@dataclass
class Scene:
    """A relay as a process, host `b`; whoever is slow to it is host `a`. `in_place`: who has begun to be slow."""

    site: Site
    relay: RelayProcess
    source: RelayHost
    listeners: list[trio.SocketListener] = field(default_factory=list)
    in_place: set[str] = field(default_factory=set)

    @property
    def where(self) -> tuple[str, int]:
        return split_address(self.relay.address, "relay")

    def vm(self) -> tuple[str, trio.SocketListener]:
        """A permit of a new VM, and where its hypervisor listens."""
        vm = str(uuid.uuid4())
        self.listeners.append(listen(self.site, vm))
        return self.site.permit(vm=vm), self.listeners[-1]

    @asynccontextmanager
    async def begun(self) -> AsyncIterator[tuple[Driver, trio.SocketListener]]:
        permit, listener = self.vm()
        async with Driver.connected(self.relay.address, self.source.credentials) as driver:
            assert isinstance(await driver.offer(permit), Answer)
            yield driver, listener


Slow = Callable[[Scene, Callable[[], None]], Awaitable[None]]


async def drip(stream: trio.SocketStream, data: bytes) -> None:
    """Byte by byte, until the relay has closed it. Each of these closes its own end, too."""
    with suppress(trio.BrokenResourceError):
        async with stream:
            for at in range(len(data)):
                await stream.send_all(data[at : at + 1])
                with trio.move_on_after(DRIP_SECONDS):
                    if not await stream.receive_some(1):
                        return
            raise AssertionError("the relay took all of it")


async def until_closed(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async with stream:
            while await stream.receive_some(65536):
                pass


async def pour(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        async with stream:
            while True:
                await stream.send_all(bytes(MIB))


async def sip(stream: trio.SocketStream, most: int) -> None:
    with suppress(trio.BrokenResourceError):
        async with stream:
            if not most:
                await trio.sleep_forever()
            while await stream.receive_some(most):
                if most < MIB:
                    await trio.sleep(DRIP_SECONDS)


async def drip_messages(driver: Driver, data: bytes) -> None:
    with suppress(trio.BrokenResourceError, SSL.Error):
        for at in range(len(data)):
            await driver.send_bytes(data[at : at + 1])
            await trio.sleep(DRIP_SECONDS)
        raise AssertionError("the relay took all of it")


async def says_nothing(scene: Scene, is_slow: Callable[[], None]) -> None:
    async with await trio.open_tcp_stream(*scene.where) as stream:
        is_slow()
        await until_closed(stream)


async def drips_hello(scene: Scene, is_slow: Callable[[], None]) -> None:
    async with await trio.open_tcp_stream(*scene.where) as stream:
        is_slow()
        await drip(stream, client_hello())


async def drips_certificate(scene: Scene, is_slow: Callable[[], None]) -> None:
    """The relay has answered the first flight; the second is dripped."""
    tls = SSL.Connection(client_context(scene.source.credentials), None)
    tls.set_connect_state()
    async with await trio.open_tcp_stream(*scene.where) as stream:
        while True:
            with suppress(SSL.WantReadError):
                tls.do_handshake()
                break
            await stream.send_all(tls.bio_read(MIB))
            tls.bio_write(await stream.receive_some(MIB))
        is_slow()
        await drip(stream, tls.bio_read(MIB))


async def drips_preface_of_nobody(scene: Scene, is_slow: Callable[[], None]) -> None:
    async with await trio.open_tcp_stream(*scene.where) as stream:
        is_slow()
        await drip(stream, b"SLN1" + bytes(52))


async def drips_offer(scene: Scene, is_slow: Callable[[], None]) -> None:
    permit, _ = scene.vm()
    async with Driver.connected(scene.relay.address, scene.source.credentials) as driver:
        is_slow()
        await drip_messages(driver, encode_message(Offer(1, "begin", (permit,), os.urandom(16).hex(), 0)))


async def drips_message(scene: Scene, is_slow: Callable[[], None]) -> None:
    async with scene.begun() as (driver, _):
        is_slow()
        await drip_messages(driver, encode_message(Cancel("a", "b" * 200)))


async def announces_and_opens_no_lane(scene: Scene, is_slow: Callable[[], None]) -> None:
    async with scene.begun() as (driver, _):
        await driver.send(Open(0, "memory"))
        is_slow()
        await driver.hear_all()


async def drips_preface(scene: Scene, is_slow: Callable[[], None]) -> None:
    async with scene.begun() as (driver, _):
        await driver.send(Open(0, "memory"))
        assert driver.keys is not None
        async with await trio.open_tcp_stream(*scene.where) as stream:
            is_slow()
            await drip(stream, make_preface(driver.keys, 0))


async def drips_frames(scene: Scene, is_slow: Callable[[], None]) -> None:
    """One has come whole, of the largest size; the end of the next is dripped."""
    async with scene.begun() as (driver, listener), trio.open_nursery() as nursery:
        assert driver.keys is not None
        await driver.send(Open(0, "memory"))
        lane = await driver.lane(0)
        sealer = LaneSealer(driver.keys.lane_secret(0, Direction.SOURCE_TO_DESTINATION))
        nursery.start_soon(until_closed, await listener.accept())
        frame = memoryview(bytearray(MAX_FRAME_BYTES))
        sealer.seal_into(FrameType.DATA, bytes(MAX_PAYLOAD_BYTES), frame)
        await lane.send_all(frame)
        sealer.seal_into(FrameType.DATA, bytes(MAX_PAYLOAD_BYTES), frame)
        await lane.send_all(frame[:-1000])
        nursery.start_soon(drip, lane, bytes(frame[-1000:]))
        is_slow()


async def takes_nothing(scene: Scene, is_slow: Callable[[], None]) -> None:
    await takes(scene, is_slow, 0, channels=1)


async def takes_one_byte(scene: Scene, is_slow: Callable[[], None]) -> None:
    await takes(scene, is_slow, 1, channels=1)


async def acknowledges_nothing(scene: Scene, is_slow: Callable[[], None]) -> None:
    await takes(scene, is_slow, MIB, channels=9)  # as many as multifd with 8


async def takes(scene: Scene, is_slow: Callable[[], None], most: int, *, channels: int) -> None:
    """The hypervisors there have much to say; the source takes so much of it at a time, and never acknowledges."""
    async with scene.begun() as (driver, listener), trio.open_nursery() as nursery:
        for channel in range(channels):
            await driver.send(Open(channel, "memory"))
            lane = await driver.lane(channel)
            nursery.start_soon(pour, await listener.accept())
            nursery.start_soon(sip, lane, most)
        is_slow()
        await driver.hear_all()
        nursery.cancel_scope.cancel()


async def sends_no_receipt(scene: Scene, is_slow: Callable[[], None]) -> None:
    async with scene.begun() as (driver, _):
        await driver.send(Handover())
        assert await driver.hear() == Outcome("discarded")
        is_slow()
        await driver.hear_all()


async def drips_receipt(scene: Scene, is_slow: Callable[[], None]) -> None:
    async with scene.begun() as (driver, _):
        await driver.send(Handover())
        assert await driver.hear() == Outcome("discarded")
        is_slow()
        await drip_messages(driver, encode_message(Receipt("{}" + " " * 500, "")))


async def resumes_and_opens_no_lane(scene: Scene, is_slow: Callable[[], None]) -> None:
    permit, listener = scene.vm()
    async with Driver.connected(scene.relay.address, scene.source.credentials) as driver:
        assert isinstance(await driver.offer(permit), Answer)
        await driver.send(Open(0, "memory"))
        lane = await driver.lane(0)
        scene_end = await listener.accept()
    await lane.aclose()
    async with Driver.connected(scene.relay.address, scene.source.credentials) as again:
        said = await again.offer(permit, session_id=driver.session_id, attempt=1, purpose="resume", following={"0": 0})
        assert isinstance(said, Answer)
        is_slow()
        await again.hear_all()
    await until_closed(scene_end)


async def settles_and_says_nothing(scene: Scene, is_slow: Callable[[], None]) -> None:
    permit, _ = scene.vm()
    async with Driver.connected(scene.relay.address, scene.source.credentials) as driver:
        assert isinstance(await driver.offer(permit), Answer)
    async with Driver.connected(scene.relay.address, scene.source.credentials) as again:
        said = await again.offer(permit, session_id=driver.session_id, attempt=1, purpose="settle")
        assert isinstance(said, Answer)
        is_slow()
        await again.hear_all()


SOURCES: tuple[Slow, ...] = (
    says_nothing,
    drips_hello,
    drips_certificate,
    drips_preface_of_nobody,
    drips_offer,
    drips_message,
    announces_and_opens_no_lane,
    drips_preface,
    drips_frames,
    takes_nothing,
    takes_one_byte,
    acknowledges_nothing,
    sends_no_receipt,
    drips_receipt,
    resumes_and_opens_no_lane,
    settles_and_says_nothing,
)


@asynccontextmanager
async def scene(site: Site) -> AsyncIterator[Scene]:
    config = with_limits(site.relay_config("b"), **LIMITS)
    async with relay(write_toml(config, site.folder / "b.toml")) as running:
        made = Scene(site, running, host_with(site, "a", {}))
        try:
            yield made
        finally:
            for listener in made.listeners:
                await listener.aclose()


async def test_sources_that_are_slow_in_every_phase_are_ended_and_disturb_nobody(site: Site) -> None:
    async with scene(site) as here:
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for slow in SOURCES:
                    nursery.start_soon(slow, here, lambda slow=slow: here.in_place.add(slow.__name__))
                await until(lambda: len(here.in_place) == len(SOURCES), PATIENCE_SECONDS)
                await require_carrying(here)
        assert (most := peak_rss_bytes(here.relay.process.pid)) < MOST_BYTES, most
        assert len(here.relay.output.read_text().splitlines()) < 4 * len(SOURCES)
        await require_carrying(here)


async def answers_nothing(_: Conversation, __: Offer) -> None:
    await trio.sleep_forever()


async def drips_answer(source: Conversation, _: Offer) -> None:
    for byte in encode_message(Answer({}, 1)):
        await source.send_bytes(bytes([byte]))
        await trio.sleep(DRIP_SECONDS)


async def answers(source: Conversation, _: Offer) -> None:
    await source.send(Answer({}, 1))
    await source.hear_all()


async def drips_back(stream: trio.SocketStream) -> None:
    """A frame that never comes to its end, while all that the source says is taken."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sip, stream, MIB)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for byte in (1000).to_bytes(4, "big") + bytes(1000):
                await stream.send_all(bytes([byte]))
                await trio.sleep(DRIP_SECONDS)


DESTINATIONS: dict[str, tuple[Play, Lane]] = {
    "answers nothing": (answers_nothing, until_closed),
    "drips its answer": (drips_answer, until_closed),
    "takes nothing of a lane": (answers, partial(sip, most=0)),
    "takes a byte of a lane now and then": (answers, partial(sip, most=1)),
    "takes all and acknowledges nothing": (answers, until_closed),
    "drips a frame": (answers, drips_back),
}


async def drips_its_hello(stream: trio.SocketStream) -> None:
    await stream.receive_some(MIB)
    await drip(stream, b"\x16\x03\x03\x00\x7a" + bytes(122))


async def test_destinations_that_are_slow_in_every_phase_are_given_up_and_disturb_nobody(site: Site) -> None:
    source = host_with(site, "a", LIMITS)
    told: dict[str, News] = {}

    async def carry(what: str, address: str) -> None:
        path = site.folder / f"{uuid.uuid4().hex[:8]}.sock"

        async def program() -> None:
            await until(path.is_socket, PATIENCE_SECONDS)
            await pour(await trio.open_unix_socket(str(path)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(program)
            told[what] = await Pair(site, source, source, address).carry(site.permit(), path)
            nursery.cancel_scope.cancel()

    async with scene(site) as here, trio.open_nursery() as serving, AsyncExitStack() as stack:
        here.source = source
        addresses: dict[str, str] = {}
        for what, script in DESTINATIONS.items():
            fake = fake_destination(open_host(site.relay_config("b")).credentials, *script)
            addresses[what] = (await stack.enter_async_context(fake)).address
        for slow in (until_closed, drips_its_hello):
            (listener,) = await serving.start(partial(trio.serve_tcp, slow, 0, host="127.0.0.1"))
            addresses[slow.__name__] = "{}:{}".format(*listener.socket.getsockname())
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for what, address in addresses.items():
                    nursery.start_soon(carry, what, address)
                await require_carrying(here)
        serving.cancel_scope.cancel()
    assert {what: news.state for what, news in told.items()} == dict.fromkeys(addresses, "failed")


async def require_carrying(here: Scene) -> None:
    """An honest migration begins, carries something, and ends in order."""
    permit, listener = here.vm()
    path = here.site.folder / f"{uuid.uuid4().hex[:8]}.sock"
    pair = Pair(here.site, here.source, here.source, here.relay.address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.carry, permit, path)
        source, destination = await dial(path), await listener.accept()
        await source.send_all(b"guest")
        assert await destination.receive_some(10) == b"guest"
        await source.aclose()
        await destination.aclose()
    assert pair.news[-1].state == "completed"
