"""`sealane relay pipe`: one program's standard input and output as the one channel of a session."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import trio

from policy.permit import VerifiedPermit
from transport.relay.ends import Milestones, Report
from transport.relay.host import RelayHost
from transport.relay.inlets import Inlet, SourceLanes
from transport.relay.news import News
from transport.relay.socket_ends import SocketSource
from transport.relay.source import MigrationOrder, carry_as_source

_CHUNK_BYTES = 256 * 1024


class PipeSource(SocketSource):
    """A source that nobody dials: its one channel is there from the beginning."""

    def __init__(self, channel: socket.socket, port: str) -> None:
        super().__init__(frozenset(), port)
        self._channel = channel

    def inlets(self, socket_path: Path) -> list[Inlet]:  # noqa: ARG002 - nothing listens
        return []

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:  # noqa: ARG002
        await lanes.open(self._port, self._channel)


async def pipe(host: RelayHost, permit: str, address: str, descriptors: tuple[int, int]) -> News:
    """Carry what comes from the first descriptor, and write what comes back to the second, until both have ended.

    Errors: those of `carry_as_source`, in a group.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def tell(news: News) -> None:
        pass

    def end(verified: VerifiedPermit) -> PipeSource:
        return PipeSource(theirs, verified.claims.named_port or "memory")

    with theirs:
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(_send, descriptors[0], stream)
            nursery.start_soon(_receive, stream, descriptors[1])
            order = MigrationOrder(permit, address)
            news = await carry_as_source(host, order, tell, trio.Event(), end=end)
            if news.state != "completed":
                nursery.cancel_scope.cancel()
    return news


async def _send(descriptor: int, stream: trio.SocketStream) -> None:
    """In threads, because a regular file cannot be waited for. One that never ends is left behind."""
    try:
        while data := await trio.to_thread.run_sync(os.read, descriptor, _CHUNK_BYTES, abandon_on_cancel=True):
            await stream.send_all(data)
        await stream.send_eof()
    except trio.BrokenResourceError:
        pass  # the session broke, which its own end tells


async def _receive(stream: trio.SocketStream, descriptor: int) -> None:
    try:
        async for data in stream:
            view = memoryview(bytes(data))
            while view:
                view = view[await trio.to_thread.run_sync(os.write, descriptor, view, abandon_on_cancel=True) :]
    except trio.BrokenResourceError:
        pass
