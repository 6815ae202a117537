"""Someone on the network between two relays: sees all connections, and may change, keep, repeat or cut them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from transport.wire.frames import HEADER_BYTES, TAG_BYTES
from transport.wire.preface import MAGIC, PREFACE_BYTES

Frames = list[bytes]


@dataclass
class Meddler:
    """Forwards to `target`. Frames of a lane from S to D pass through `on_frame`, a preface through `on_preface`.

    `cut_after`: (kind, way, bytes) after which both ends of that connection are closed; kind `control` or `lane`, way
    `forth` (from S) or `back`.
    """

    target: tuple[str, int]
    on_frame: Callable[[int, bytes], Frames] = lambda _, frame: [frame]
    on_preface: Callable[[bytes], bytes] = lambda preface: preface
    cut_after: tuple[str, str, int] | None = None
    prefaces: list[bytes] = field(default_factory=list)
    frames: Frames = field(default_factory=list)
    passed: dict[tuple[str, str], int] = field(default_factory=dict)
    address: str = ""

    async def serve_one(self, near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream(*self.target)
            first = b""
            while len(first) < 4 and (more := await near.receive_some(4 - len(first))):
                first += more
            kind = "lane" if first == MAGIC else "control"
            async with near, far, trio.open_nursery() as nursery:
                forth = self._lane_forth if kind == "lane" else self._copy_forth
                nursery.start_soon(forth, near, far, first, nursery)
                nursery.start_soon(self._copy, far, near, (kind, "back"), nursery)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, BaseExceptionGroup):
            pass

    async def _copy_forth(
        self, near: trio.SocketStream, far: trio.SocketStream, first: bytes, nursery: trio.Nursery
    ) -> None:
        await self._send(far, first, ("control", "forth"), nursery)
        await self._copy(near, far, ("control", "forth"), nursery)

    async def _copy(
        self, source: trio.SocketStream, to: trio.SocketStream, what: tuple[str, str], nursery: trio.Nursery
    ) -> None:
        async for data in source:
            await self._send(to, bytes(data), what, nursery)
        await to.send_eof()

    async def _send(self, to: trio.SocketStream, data: bytes, what: tuple[str, str], nursery: trio.Nursery) -> None:
        passed = self.passed.get(what, 0)
        if self.cut_after is not None and what == self.cut_after[:2] and passed + len(data) > self.cut_after[2]:
            await to.send_all(data[: self.cut_after[2] - passed])
            self.cut_after = None  # once: what comes back is let through
            nursery.cancel_scope.cancel()
            return
        self.passed[what] = passed + len(data)
        await to.send_all(data)

    async def _lane_forth(
        self, near: trio.SocketStream, far: trio.SocketStream, first: bytes, nursery: trio.Nursery
    ) -> None:
        what = ("lane", "forth")
        preface = first + await _exactly(near, PREFACE_BYTES - len(first))
        self.prefaces.append(preface)
        await self._send(far, self.on_preface(preface), what, nursery)
        number = 0
        while header := await _exactly(near, HEADER_BYTES):
            size = int.from_bytes(header[:4], "big")
            frame = header + await _exactly(near, size + TAG_BYTES)
            self.frames.append(frame)
            for changed in self.on_frame(number, frame):
                await self._send(far, changed, what, nursery)
            number += 1
        await far.send_eof()


async def _exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            return b""
        data += more
    return data


@asynccontextmanager
async def meddling(meddler: Meddler) -> AsyncIterator[Meddler]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, meddler.serve_one, listeners)
        host, port = listeners[0].socket.getsockname()[:2]
        meddler.address = f"{host}:{port}"
        yield meddler
        nursery.cancel_scope.cancel()
