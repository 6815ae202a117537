"""A connection that is lost is replaced by another, and neither program at the ends notices more than time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio

from tests.transport.relay.conftest import Pair, host_with, serving, until
from tests.transport.relay.cutter import Network, network_to
from tests.transport.relay.test_carriage import VM, dial, listen
from tests.transport.site import Site
from tests.transport.wire.nonces import watch_nonces
from transport.relay.config import split_address
from transport.relay.news import News

pytestmark = pytest.mark.whole

LIMITS = {"resume_seconds": 20.0, "silence_seconds": 2.0}


@pytest.fixture
async def pair(site: Site) -> AsyncIterator[Pair]:
    async with serving(host_with(site, "b", LIMITS)) as (destination, address):
        yield Pair(site, host_with(site, "a", LIMITS), destination, address)


@pytest.fixture
async def impatient(site: Site) -> AsyncIterator[Pair]:
    """Relays that wait for acknowledgements for two seconds."""
    limits = LIMITS | {"unacknowledged_seconds": 2.0}
    async with serving(host_with(site, "b", limits)) as (destination, address):
        yield Pair(site, host_with(site, "a", limits), destination, address)


class Reached(Protocol):
    """Where the destination relay is reached."""

    address: str


@dataclass
class Talk:
    """What two programs have said to each other over one channel, and whether the source's relay calls it whole."""

    forth: bytes
    back: bytes
    arrived: dict[str, hashlib._Hash] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: {"forth": 0, "back": 0})
    state: str = ""


async def talk(
    pair: Pair, network: Reached, path: Path, talk: Talk, disturb: Callable[[Talk], Any], seconds: float = 90
) -> None:
    """Say `forth` and `back` at once, both to their ends, while `disturb` does what it likes with the network."""
    listener = listen(pair.site)
    pair.address = network.address

    async def one_end(stream: trio.SocketStream, data: bytes, name: str) -> None:
        digest = talk.arrived[name] = hashlib.sha256()

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for chunk in stream:
                digest.update(chunk)
                talk.sizes[name] += len(chunk)

    async def carry() -> None:
        talk.state = (await pair.carry(pair.site.permit(vm=VM), path)).state

    with trio.fail_after(seconds):
        async with listener, trio.open_nursery() as disturbing:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry)
                source = await dial(path)
                destination = await listener.accept()
                nursery.start_soon(one_end, source, talk.forth, "back")
                nursery.start_soon(one_end, destination, talk.back, "forth")
                disturbing.start_soon(disturb, talk)
            disturbing.cancel_scope.cancel()


def is_whole(talk: Talk) -> bool:
    return (
        talk.arrived["forth"].digest() == hashlib.sha256(talk.forth).digest()
        and talk.arrived["back"].digest() == hashlib.sha256(talk.back).digest()
    )


@pytest.mark.parametrize("what", ["silent", "moved"])
async def test_silence_is_noticed_and_another_address_of_the_source_is_taken(what: str) -> None:
    """In a namespace of its own: the network goes down for 8 s without a word, or S gets another address."""
    command = ["unshare", "-n", sys.executable, "-m", "tests.transport.relay.silence", what]
    with trio.fail_after(60):
        ran = await trio.run_process(command, capture_stdout=True)
    told = json.loads(ran.stdout.splitlines()[-1])
    assert (told["state"], told["is_whole"], told["resumptions"]) == ("completed", True, 1)


WAYS: dict[str, Callable[[Network], int]] = {
    "the lane reset": lambda network: network.cut("lane"),
    "the control connection reset": lambda network: network.cut("control"),
    "both reset": lambda network: network.cut("lane", "control"),
    "the lane reset at the source alone": lambda network: network.cut_near("lane"),
    "all reset at the source alone": lambda network: network.cut_near("lane", "control"),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_goes_on_where_it_was_after_each_kind_of_cut(pair: Pair, short_path: Path, way: str) -> None:
    said = Talk(random.Random(1).randbytes(24_000_000), random.Random(2).randbytes(3_000_000))
    cuts = 0

    async def disturb(said: Talk) -> None:
        nonlocal cuts
        for share in (0.2, 0.6):
            await until(lambda share=share: said.sizes["forth"] > share * len(said.forth), 80)  # type: ignore[misc]
            cuts += bool(WAYS[way](network))

    async with network_to(split_address(pair.address, "relay")) as network:
        await talk(pair, network, short_path / "in.sock", said, disturb)
        assert network.controls >= 1 + cuts, "each cut was followed by another connection"
    assert said.state == "completed"
    assert is_whole(said)
    assert cuts == 2


@dataclass
class Apart:
    """Two programs at the ends of one channel, what is between the relays, and what the source's relay said last."""

    network: Network
    source: trio.SocketStream
    destination: trio.SocketStream
    news: list[News]


@asynccontextmanager
async def apart(pair: Pair, path: Path) -> AsyncIterator[Apart]:
    """The session must have completed at the end."""
    news: list[News] = []

    async def carry() -> None:
        news.append(await pair.carry(pair.site.permit(vm=VM), path))

    with trio.fail_after(60):
        async with network_to(split_address(pair.address, "relay")) as network, listen(pair.site) as listener:
            pair.address = network.address
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry)
                async with await dial(path) as source, await listener.accept() as destination:
                    yield Apart(network, source, destination, news)
    assert news[0].state == "completed"


async def whole(stream: trio.SocketStream, size_bytes: int) -> bytes:
    arrived = b""
    while len(arrived) < size_bytes and (more := await stream.receive_some()):
        arrived += more
    return arrived


async def test_what_was_sent_last_and_lost_on_its_way_is_sent_again(impatient: Pair, short_path: Path) -> None:
    """The source has sent all and heard all; what is still under way goes, and the destination hears of nothing."""
    data = random.Random(3).randbytes(3_000_000)

    async def send(stream: trio.SocketStream, ended: trio.Event) -> None:
        await stream.send_all(data)
        await stream.send_eof()
        assert await stream.receive_some(1) == b""  # the other direction has ended before
        ended.set()

    async with apart(impatient, short_path / "in.sock") as here, trio.open_nursery() as nursery:
        await here.destination.send_eof()
        ended = trio.Event()
        nursery.start_soon(send, here.source, ended)
        await ended.wait()
        assert here.network.cut_near("lane") == 1
        assert b"".join([chunk async for chunk in here.destination]) == data
        assert here.network.controls >= 2


async def test_what_is_swallowed_on_its_way_is_sent_again_while_both_ends_wait_for_more(
    impatient: Pair, short_path: Path
) -> None:
    """Something in between takes it, answers both kernels, and forgets it. Nothing comes that would fill the lane: so
    it was with a guest that stood still already, whose source waited for the destination's word."""
    data = random.Random(4).randbytes(100_000)
    async with apart(impatient, short_path / "in.sock") as here:
        await here.source.send_all(b"first")
        assert await here.destination.receive_some(5) == b"first"
        assert here.network.open_hole() == 2
        await here.source.send_all(data)
        await trio.sleep(1)
        here.network.close_hole()
        assert await whole(here.destination, len(data)) == data
        assert here.network.controls == 2
        await here.source.send_eof()
        await here.destination.send_eof()


async def test_what_the_destination_says_and_is_swallowed_comes_once_the_source_says_something(
    impatient: Pair, short_path: Path
) -> None:
    """The destination closes its end and waits. Nobody tells the source, which has nothing under way to miss."""
    async with apart(impatient, short_path / "in.sock") as here:
        await here.source.send_all(b"first")
        assert await here.destination.receive_some(5) == b"first"
        await trio.sleep(0.3)  # it is acknowledged
        assert here.network.open_hole() == 2
        await here.destination.send_all(b"reply")
        await trio.sleep(0.5)
        here.network.close_hole()
        await trio.sleep(4)
        assert here.network.controls == 1
        await here.source.send_all(b"well?")
        assert await here.destination.receive_some(5) == b"well?"
        assert await here.source.receive_some(5) == b"reply"
        assert here.network.controls == 2
        await here.source.send_eof()
        await here.destination.send_eof()


async def test_a_destination_whose_source_says_nothing_more_gives_up_when_its_patience_ends(
    site: Site, short_path: Path
) -> None:
    """The source, which has heard of nothing, reads so as soon as it says something."""
    limits, path = LIMITS | {"unacknowledged_seconds": 2.0}, short_path / "in.sock"
    with trio.fail_after(60):
        async with serving(host_with(site, "b", limits | {"resume_seconds": 3.0})) as (destination, address):
            pair = Pair(site, host_with(site, "a", limits), destination, address)
            async with network_to(split_address(address, "relay")) as network, listen(site) as listener:
                pair.address = network.address
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(pair.carry, site.permit(vm=VM), path)
                    async with await dial(path) as source, await listener.accept() as there:
                        await source.send_all(b"first")
                        assert await there.receive_some(5) == b"first"
                        await trio.sleep(0.3)  # it is acknowledged
                        assert network.open_hole() == 2
                        await there.send_all(b"reply")
                        await trio.sleep(0.5)
                        network.close_hole()
                        await until(lambda: not destination.board.entries, 20)
                        assert await there.receive_some(1) == b""
                        assert pair.news[-1].state == "running"
                        await source.send_all(b"well?")
                        await until(lambda: pair.news[-1].state == "failed", 20)
    assert "session_unknown" in pair.news[-1].message


async def test_a_hypervisor_that_takes_nothing_is_asked_after_less_and_less_and_loses_nothing(
    impatient: Pair, short_path: Path
) -> None:
    """Its relay is as silent as one that has got nothing."""
    data = random.Random(5).randbytes(1_500_000)
    async with apart(impatient, short_path / "in.sock") as here:
        await here.source.send_all(data)
        await here.source.send_eof()
        await until(lambda: here.network.controls == 3, 30)  # after 2 seconds, and after 4
        await trio.sleep(4)  # the next time is after 8
        assert here.network.controls == 3
        assert await whole(here.destination, len(data)) == data
        await here.destination.send_eof()


async def test_random_cuts_under_load_lose_nothing_and_repeat_no_nonce(
    pair: Pair, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = watch_nonces(monkeypatch)
    chance = random.Random(7)
    said = Talk(chance.randbytes(40_000_000), chance.randbytes(8_000_000))
    cuts = 0

    async def disturb(_: Talk) -> None:
        nonlocal cuts
        while cuts < 30:
            until_bytes = network.forwarded + chance.randrange(1, 1_200_000)
            await until(lambda until_bytes=until_bytes: network.forwarded >= until_bytes, 30)  # type: ignore[misc]
            cuts += bool(chance.choice([network.cut, network.cut_near])(*chance.choice(KINDS)))

    async with network_to(split_address(pair.address, "relay")) as network:
        await talk(pair, network, short_path / "in.sock", said, disturb)
    assert said.state == "completed"
    assert is_whole(said)
    assert cuts >= 20, "few cuts met a connection"
    assert used, "the nonces of sealed frames were seen"


KINDS: list[tuple[Any, ...]] = [("lane",), ("control",), ("lane", "control")]


async def test_a_network_that_is_away_for_a_while_ends_nothing(pair: Pair, short_path: Path) -> None:
    said = Talk(random.Random(1).randbytes(20_000_000), b"x")

    async def disturb(said: Talk) -> None:
        await until(lambda: said.sizes["forth"] > 4_000_000, 30)
        network.is_down = True
        network.cut("lane", "control")
        await trio.sleep(4)  # is what is tested: nothing comes that could be waited for
        network.is_down = False

    async with network_to(split_address(pair.address, "relay")) as network:
        await talk(pair, network, short_path / "in.sock", said, disturb)
    assert said.state == "completed"
    assert is_whole(said)


async def test_a_network_that_does_not_come_back_ends_the_session_when_the_patience_ends(
    site: Site, short_path: Path
) -> None:
    limits = {"resume_seconds": 1.5, "silence_seconds": 2.0}
    said = Talk(random.Random(1).randbytes(40_000_000), b"x")

    async with serving(host_with(site, "b", limits)) as (destination, address):
        pair = Pair(site, host_with(site, "a", limits), destination, address)
        async with network_to(split_address(address, "relay")) as network:

            async def disturb(said: Talk) -> None:
                await until(lambda: said.sizes["forth"] > 4_000_000, 30)
                network.is_down = True
                network.cut("lane", "control")

            with contextlib.suppress(BaseExceptionGroup):  # the programs' sockets break
                await talk(pair, network, short_path / "in.sock", said, disturb)
            await until(lambda: pair.news[-1].state == "failed", 20)
            await until(lambda: not destination.board.entries, 10)
    assert said.sizes["forth"] < len(said.forth)
    assert said.state != "completed"
