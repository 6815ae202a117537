"""What strangers can do to the one listening port: nothing that lasts, and nothing to others."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.transport.relay.conftest import Pair, until
from tests.transport.relay.test_carriage import VM, dial, listen
from transport.errors import ProtocolViolation
from transport.relay.config import split_address
from transport.relay.listener import LaneDesk
from transport.wire.keys import ConnectionKeys

pytestmark = pytest.mark.whole


async def is_closed_without_answer(stream: trio.SocketStream) -> bool:
    with trio.fail_after(10):
        try:
            return await stream.receive_some(100) == b""
        except trio.BrokenResourceError:
            return True


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
        pytest.param(b"\x00" * 64, id="zeros"),
        pytest.param(b"SLN2" + b"\0" * 60, id="another magic"),
        pytest.param(b"SLN1" + b"\0" * 52, id="preface of no connection"),
        pytest.param(b"SLN1" + b"\xff" * 52, id="preface with a channel out of range"),
        pytest.param(b"\x16\x03\x01\x00\x05hello", id="TLS record of nonsense"),
        pytest.param(b"\x16\x03", id="silence after two bytes"),
        pytest.param(b"", id="silence"),
    ],
)
async def test_a_stranger_is_closed_without_an_answer(pair: Pair, first: bytes) -> None:
    async with await trio.open_tcp_stream(*split_address(pair.address, "relay")) as stream:
        await stream.send_all(first)
        assert await is_closed_without_answer(stream)


async def test_strangers_cannot_keep_a_migration_from_starting(pair: Pair, short_path: Path) -> None:
    where = split_address(pair.address, "relay")
    listener = listen(pair.site)
    async with trio.open_nursery() as nursery:
        strangers = [await trio.open_tcp_stream(*where) for _ in range(200)]
        for n, stranger in enumerate(strangers):
            await stranger.send_all(b"\x16\x03\x01\x02" if n % 2 else b"SLN1")
        nursery.start_soon(pair.carry, pair.site.permit(vm=VM), short_path / "in.sock")
        with trio.fail_after(5):
            source = await dial(short_path / "in.sock")
            destination = await listener.accept()
            await source.send_all(b"guest")
            assert await destination.receive_some(10) == b"guest"
        await source.aclose()
        await destination.aclose()
        await until(lambda: bool(pair.news) and pair.news[-1].state == "completed")
        for stranger in strangers:
            await stranger.aclose()
    await listener.aclose()


async def test_a_channel_takes_one_lane_and_only_within_the_limit() -> None:
    desk = LaneDesk(ConnectionKeys(bytes(48)), 2)
    one, two = socket.socketpair()
    with one, two:
        desk.deliver(0, one)
        for channel in (0, 2):
            with pytest.raises(ProtocolViolation):
                desk.deliver(channel, two)
        assert await desk.take(0) is one
        with pytest.raises(ProtocolViolation):
            desk.deliver(0, two)
