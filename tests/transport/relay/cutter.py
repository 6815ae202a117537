"""A network between two relays that is cut, at both ends or at one, and comes back, as often as a test likes."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import trio

from transport.wire.preface import MAGIC

Kind = Literal["control", "lane"]
_CHUNK = 256 * 1024
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Wire:
    """One TCP connection through the network."""

    kind: Kind
    near: trio.SocketStream
    far: trio.SocketStream
    scope: trio.CancelScope
    is_silent: bool = False


@dataclass
class Network:
    """Forwards to `target`. `is_down`: no connection is let through; `is_hole`: nor refused, it waits as a SYN does."""

    target: tuple[str, int]
    address: str = ""
    wires: list[Wire] = field(default_factory=list)
    forwarded: int = 0
    seen: int = 0  # connections that were let through so far
    controls: int = 0
    is_down: bool = False
    is_hole: bool = False
    _changed: trio.Event = field(default_factory=trio.Event)

    def open_hole(self) -> int:
        """Drop what every connection carries from now on, without a word to either end; returns how many."""
        self.is_hole = True
        chosen = [wire for wire in self.wires if not wire.is_silent]
        for wire in chosen:
            wire.is_silent = True
        return len(chosen)

    def close_hole(self) -> None:
        """Packets get through again. What was dropped is not sent again: to its ends each connection stays silent."""
        self.is_hole = False
        self._changed.set()
        self._changed = trio.Event()

    def cut(self, *kinds: Kind) -> int:
        """Reset every connection of these kinds at both ends; returns how many."""
        chosen = [wire for wire in self.wires if wire.kind in kinds and not wire.is_silent]
        for wire in chosen:
            wire.is_silent = True
            for stream in (wire.near, wire.far):
                with contextlib.suppress(OSError):
                    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            wire.scope.cancel()
        return len(chosen)

    def cut_near(self, *kinds: Kind) -> int:
        """Reset them at the source's end alone: the destination's stays half open and hears nothing."""
        chosen = [wire for wire in self.wires if wire.kind in kinds and not wire.is_silent]
        for wire in chosen:
            wire.is_silent = True
            with contextlib.suppress(OSError):
                wire.near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            wire.near.socket.close()
        return len(chosen)

    async def serve_one(self, near: trio.SocketStream) -> None:
        if self.is_down:
            near.socket.close()
            return
        while self.is_hole:
            await self._changed.wait()
        try:
            far = await trio.open_tcp_stream(*self.target)
            first = b""
            while len(first) < 4 and (more := await near.receive_some(4 - len(first))):
                first += more
            self.seen += 1
            kind: Kind = "lane" if first == MAGIC else "control"
            self.controls += kind == "control"
            with trio.CancelScope() as scope:
                wire = Wire(kind, near, far, scope)
                self.wires.append(wire)
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._copy, wire, near, far, first)
                        nursery.start_soon(self._copy, wire, far, near, b"")
                finally:
                    self.wires.remove(wire)
                    near.socket.close()
                    far.socket.close()
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, BaseExceptionGroup):
            pass

    async def _copy(self, wire: Wire, source: trio.SocketStream, to: trio.SocketStream, first: bytes) -> None:
        try:
            if first:
                await to.send_all(first)
            while data := await source.receive_some(_CHUNK):
                if wire.is_silent:
                    break
                await to.send_all(data)
                self.forwarded += len(data)
            if not wire.is_silent:
                await to.send_eof()
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            if not wire.is_silent:
                wire.scope.cancel()
                return
        await trio.sleep_forever()


@asynccontextmanager
async def network_to(address: tuple[str, int]) -> AsyncIterator[Network]:
    network = Network(address)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, network.serve_one, listeners)
        host, port = listeners[0].socket.getsockname()[:2]
        network.address = f"{host}:{port}"
        yield network
        nursery.cancel_scope.cancel()
