"""`sealane relay pipe`: one program's standard input and output as the one channel of a session."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from functools import partial
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
_call = partial(trio.to_thread.run_sync, abandon_on_cancel=True)


class PipeSource(SocketSource):
    """A source that nobody dials: its one channel is there from the beginning."""

    def __init__(self, channel: socket.socket, port: str) -> None:
        super().__init__(frozenset(), port)
        self._channel = channel

    def inlets(self, socket_path: Path) -> list[Inlet]:  # noqa: ARG002 - nothing listens
        return []

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:  # noqa: ARG002
        await lanes.open(self._port, self._channel)


@dataclass(slots=True)
class Piped:
    """Standard input and output of one program. What breaks there gives the session up: `trouble` says what it was."""

    descriptors: tuple[int, int]
    cancelled: trio.Event  # whoever sets it gives the session up, too
    trouble: str = ""
    is_unread: bool = False  # nobody reads the output any more

    async def send(self, stream: trio.SocketStream) -> None:
        """In threads, because a regular file cannot be waited for. One that never ends is left behind."""
        try:
            while data := await _call(os.read, self.descriptors[0], _CHUNK_BYTES):
                await stream.send_all(data)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # the session broke, which its own end tells
        except OSError as error:
            # And no end of the stream: the program there would take what it has for the whole.
            self._give_up(f"standard input could not be read: {error.strerror}")

    async def receive(self, stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                view = memoryview(bytes(data))
                while view:
                    view = view[await _call(os.write, self.descriptors[1], view) :]
        except trio.BrokenResourceError:
            pass
        except BrokenPipeError:
            self.is_unread = True
            self._give_up("standard output was closed before all that came back was written")
        except OSError as error:
            self._give_up(f"standard output could not be written: {error.strerror}")

    def _give_up(self, trouble: str) -> None:
        self.trouble = trouble
        self.cancelled.set()


async def pipe(host: RelayHost, permit: str, address: str, piped: Piped) -> News:
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
            nursery.start_soon(piped.send, stream)
            nursery.start_soon(piped.receive, stream)
            order = MigrationOrder(permit, address)
            news = await carry_as_source(host, order, tell, piped.cancelled, end=end)
            if news.state != "completed":
                nursery.cancel_scope.cancel()
    return replace(news, state="failed", message=piped.trouble) if piped.trouble else news
