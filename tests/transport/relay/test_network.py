"""Whoever controls the network can stop a stream, and nothing else: no changed byte arrives, no break is an end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.transport.relay.conftest import Pair
from tests.transport.relay.meddler import Frames, Meddler, meddling
from tests.transport.relay.test_carriage import VM, dial, listen
from transport.relay.config import split_address

pytestmark = pytest.mark.whole

CHUNKS = [bytes([65 + n]) * (100 + n) for n in range(4)]


class Stream:
    """What one attempt to carry the chunks came to."""

    def __init__(self) -> None:
        self.arrived = b""
        self.was_whole = False


async def carry_chunks(pair: Pair, meddler: Meddler, path: Path) -> Stream:
    """Send the chunks one by one, each in a frame of its own, through the meddler."""
    stream, is_over = Stream(), False
    listener = listen(pair.site)
    pair.address = meddler.address

    async def receive() -> None:
        destination = await listener.accept()
        async with destination:
            async for data in destination:
                stream.arrived += data

    async def send() -> None:
        try:
            async with await dial(path) as source:
                for n, chunk in enumerate(CHUNKS):
                    await source.send_all(chunk)
                    while len(meddler.frames) <= n and not is_over:
                        await trio.sleep(0.002)
                await source.send_eof()
                await source.receive_some(1)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError):
            pass

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            nursery.start_soon(send)
            news = await pair.carry(pair.site.permit(vm=VM), path)
            is_over, stream.was_whole = True, news.state == "completed"
            while stream.was_whole and len(stream.arrived) < len(b"".join(CHUNKS)):
                await trio.sleep(0.002)
            nursery.cancel_scope.cancel()
    await listener.aclose()
    return stream


def flip(frame: bytes, at: int) -> bytes:
    changed = bytearray(frame)
    changed[at] ^= 1
    return bytes(changed)


kept: Frames = []


def swap(n: int, frame: bytes) -> Frames:
    if n == 1:
        kept[:] = [frame]
        return []
    return [frame, *kept] if n == 2 else [frame]


MEDDLING: dict[str, Callable[[int, bytes], Frames]] = {
    "a bit of the payload flipped": lambda n, f: [flip(f, 20)] if n == 2 else [f],
    "a bit of the tag flipped": lambda n, f: [flip(f, -1)] if n == 2 else [f],
    "a bit of the length flipped": lambda n, f: [flip(f, 3)] if n == 2 else [f],
    "the type turned into fin": lambda n, f: [flip(f, 4)] if n == 2 else [f],
    "the number changed": lambda n, f: [flip(f, 15)] if n == 2 else [f],
    "a frame lost": lambda n, f: [] if n == 2 else [f],
    "a frame repeated": lambda n, f: [f, f] if n == 2 else [f],
    "two frames swapped": swap,
    "a frame cut short": lambda n, f: [f[:-5]] if n == 2 else [f],
    "an oversized length": lambda n, f: [b"\x00\x10\x00\x01" + f[4:]] if n == 2 else [f],
    "the fin lost": lambda n, f: [] if n == 4 else [f],
    "bytes after the fin": lambda n, f: [f, f] if n == 4 else [f],
}


@pytest.mark.parametrize("what", MEDDLING)
async def test_no_changed_byte_arrives_and_the_session_does_not_end_in_order(
    pair: Pair, short_path: Path, what: str
) -> None:
    async with meddling(Meddler(split_address(pair.address, "relay"), MEDDLING[what])) as meddler:
        stream = await carry_chunks(pair, meddler, short_path / "in.sock")
    assert b"".join(CHUNKS).startswith(stream.arrived), "what arrived is not what was sent"
    if n_delivered := {"the fin lost": 4, "bytes after the fin": 4, "two frames swapped": 1}.get(what):
        assert len(stream.arrived) <= len(b"".join(CHUNKS[:n_delivered]))
    elif what != "a frame repeated":
        assert stream.arrived == b"".join(CHUNKS[:2])
    assert not stream.was_whole or what == "bytes after the fin"


async def test_frames_of_another_session_are_refused(pair: Pair, short_path: Path) -> None:
    real = pair.address
    async with meddling(Meddler(split_address(real, "relay"))) as first:
        assert (await carry_chunks(pair, first, short_path / "1.sock")).was_whole
    (pair.site.folder / "vm" / VM / "memory.sock").unlink()
    (pair.site.folder / "vm" / VM).rmdir()
    splice = Meddler(split_address(real, "relay"), lambda n, _: [first.frames[n]])
    async with meddling(splice) as second:
        stream = await carry_chunks(pair, second, short_path / "2.sock")
    assert (stream.arrived, stream.was_whole) == (b"", False)


async def test_an_observer_who_replays_or_corrupts_prefaces_ends_nobodys_session(pair: Pair, short_path: Path) -> None:
    real = split_address(pair.address, "relay")
    async with meddling(Meddler(real)) as meddler:
        seen: list[bool] = []

        async def observe() -> None:
            while not meddler.prefaces or len(meddler.frames) < 2:
                await trio.sleep(0.002)
            preface = meddler.prefaces[0]
            for attempt in (preface, flip(preface, -1), flip(preface, 5), flip(preface, 10), preface[:30], b"SLN1"):
                async with await trio.open_tcp_stream(*real) as stream:
                    await stream.send_all(attempt)
                    await stream.send_eof()
                    seen.append(await stream.receive_some(1) == b"")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(observe)
            stream = await carry_chunks(pair, meddler, short_path / "in.sock")
    assert stream.was_whole
    assert stream.arrived == b"".join(CHUNKS)
    assert seen == [True] * 6


async def test_a_preface_corrupted_on_the_way_ends_the_session_as_a_break(pair: Pair, short_path: Path) -> None:
    meddler = Meddler(split_address(pair.address, "relay"), on_preface=lambda preface: flip(preface, 40))
    async with meddling(meddler):
        stream = await carry_chunks(pair, meddler, short_path / "in.sock")
    assert (stream.arrived, stream.was_whole) == (b"", False)


CUTS = [
    *(("control", "forth", n) for n in (0, 3, 1000, 2500, 3000, 5000)),
    *(("control", "back", n) for n in (0, 3, 1000, 2500, 2800, 3200)),
    *(("lane", "forth", n) for n in (0, 30, 56, 60, 150, 300, 560)),
    *(("lane", "back", n) for n in (0, 16, 31)),
]


@pytest.mark.parametrize("cut", CUTS, ids=lambda cut: f"{cut[0]}-{cut[1]}-{cut[2]}")
async def test_a_connection_closed_at_any_point_is_a_break_or_came_too_late(
    pair: Pair, short_path: Path, cut: tuple[str, str, int]
) -> None:
    meddler = Meddler(split_address(pair.address, "relay"), cut_after=cut)
    async with meddling(meddler):
        try:
            stream = await carry_chunks(pair, meddler, short_path / "in.sock")
        finally:
            was_cut = meddler.cut_after is None
    whole = b"".join(CHUNKS)
    assert whole.startswith(stream.arrived)
    assert not stream.was_whole or stream.arrived == whole
    assert was_cut
    receipts = pair.source.spool.receipts()
    assert len(receipts) == 1, "the source has certified what it saw"
