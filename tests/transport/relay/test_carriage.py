"""A stream between two real relays: what goes in comes out, in both directions, and its end is an end."""

from __future__ import annotations

import hashlib
import json
import random
import socket
from pathlib import Path

import pytest
import trio

from tests.transport.relay.conftest import Pair, until
from tests.transport.site import Site

pytestmark = pytest.mark.whole

VM = "11111111-2222-4333-8444-555555555555"


def listen(site: Site, vm: str = VM) -> trio.SocketListener:
    path = site.folder / "vm" / vm / "memory.sock"
    path.parent.mkdir(parents=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen()
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def dial(path: Path) -> trio.SocketStream:
    await until(path.is_socket)
    with trio.fail_after(5):
        return await trio.open_unix_socket(str(path))


@pytest.mark.parametrize("size", [0, 1, 65536, (1 << 20) + 1, 9_000_000])
async def test_both_directions_arrive_whole_and_end_in_order(pair: Pair, short_path: Path, size: int) -> None:
    forth, back = random.Random(1).randbytes(size), random.Random(2).randbytes(size // 2)
    received: dict[str, bytes] = {}

    async def talk(stream: trio.SocketStream, name: str, data: bytes) -> None:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            received[name] = b"".join([chunk async for chunk in stream])
        await stream.aclose()

    listener = listen(pair.site)
    path = short_path / "in.sock"
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.carry, pair.site.permit(vm=VM), path)
            source = await dial(path)
            destination = await listener.accept()
            nursery.start_soon(talk, source, "at source", forth)
            nursery.start_soon(talk, destination, "at destination", back)
    await listener.aclose()
    assert hashlib.sha256(received["at destination"]).digest() == hashlib.sha256(forth).digest()
    assert hashlib.sha256(received["at source"]).digest() == hashlib.sha256(back).digest()
    assert pair.news[-1].state == "completed"


async def test_both_receipts_are_kept_signed_and_refer_to_each_other(pair: Pair, short_path: Path) -> None:
    listener = listen(pair.site)
    path = short_path / "in.sock"
    permit = pair.site.permit(vm=VM)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.carry, permit, path)
            source = await dial(path)
            destination = await listener.accept()
            await source.send_all(b"x" * 100)
            await source.send_eof()
            assert await destination.receive_some(200) == b"x" * 100
            await destination.aclose()
            await source.aclose()
    await listener.aclose()
    (theirs,) = pair.destination.spool.receipts()
    (ours,) = pair.source.spool.receipts()
    source_receipt, destination_receipt = (json.loads(p.read_bytes())["receipt"] for p in (ours, theirs))
    source_body, destination_body = json.loads(source_receipt["body"]), json.loads(destination_receipt["body"])
    assert source_body["tls"] == {"version": "TLSv1.3", "group": "X25519MLKEM768", "cipher": "TLS_AES_256_GCM_SHA384"}
    assert source_body["channels"][0]["sent_bytes"] == destination_body["channels"][0]["received_bytes"] == 100
    assert source_body["outcome"] == destination_body["outcome"] == "completed"
    assert source_body["vm_binding"] == "none"
    assert source_body["source_fingerprint"] == destination_body["source_fingerprint"]
    assert destination_body["peer_receipt_sha256"]
    assert source_body["peer_receipt_sha256"] == hashlib.sha256(destination_receipt["body"].encode()).hexdigest()


async def test_several_channels_are_dialled_in_the_order_in_which_they_came(pair: Pair, short_path: Path) -> None:
    listener = listen(pair.site)
    path = short_path / "in.sock"
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.carry, pair.site.permit(vm=VM), path)
            sources = [await dial(path) for _ in range(6)]
            for n, source in reversed(list(enumerate(sources))):
                await source.send_all(bytes([n]))
            for n in range(6):
                destination = await listener.accept()
                assert await destination.receive_some(1) == bytes([n])
                await destination.aclose()
            for source in sources:
                await source.aclose()
    await listener.aclose()
    assert pair.news[-1].state == "completed"


async def test_more_channels_than_the_permit_allows_end_the_session(pair: Pair, short_path: Path) -> None:
    listener = listen(pair.site)
    path = short_path / "in.sock"
    limits = pair.site.claims().limits
    permit = pair.site.permit(vm=VM, limits=type(limits)(max_channels=1, bandwidth_bytes_per_second=0))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.carry, permit, path)
            first, second = await dial(path), await dial(path)
    await first.aclose()
    await second.aclose()
    await listener.aclose()
    assert pair.news[-1].state == "failed"
    assert "more channels than are allowed: 1" in pair.news[-1].message
