"""`sealane relay pipe`: one program's standard input and output as the one channel of a session."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from policy.permit import VerifiedPermit
from transport.relay.ends import Milestones, Report
from transport.relay.host import RelayHost
from transport.relay.inlets import Inlet, SourceLanes
from transport.relay.news import News
from transport.relay.socket_ends import SocketSource
from transport.relay.source import MigrationOrder, carry_as_source
from transport.relay.standard_streams import StandardStreams, break_off


@dataclass(frozen=True, slots=True)
class Piped:
    """How it ended, and whether it was because nobody read the output any more."""

    news: News
    is_unread: bool


class PipeSource(SocketSource):
    """A source that nobody dials: its one channel is there from the beginning."""

    def __init__(self, channel: socket.socket, port: str) -> None:
        super().__init__(frozenset(), port)
        self._channel = channel

    def inlets(self, socket_path: Path) -> list[Inlet]:  # noqa: ARG002 - nothing listens
        return []

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:  # noqa: ARG002
        await lanes.open(self._port, self._channel)


async def pipe(host: RelayHost, permit: str, address: str, piped: tuple[int, int], cancelled: trio.Event) -> Piped:
    """Carry what comes from the first descriptor, and write what comes back to the second, until both have ended.

    What breaks there gives the session up, as whoever sets `cancelled` does. Errors: those of `carry_as_source`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    token = trio.lowlevel.current_trio_token()

    def give_up() -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(cancelled.set)

    streams = StandardStreams(*piped, give_up)

    async def tell(news: News) -> None:
        pass

    def end(verified: VerifiedPermit) -> PipeSource:
        return PipeSource(theirs, verified.claims.named_port or "memory")

    streams.carry(ours)
    with ours:
        try:
            with theirs:
                news = await carry_as_source(host, MigrationOrder(permit, address), tell, cancelled, end=end)
            if news.state == "completed":
                await trio.to_thread.run_sync(streams.finish, abandon_on_cancel=True)
        finally:
            break_off(ours)  # which lets go whoever still waits in it
    if streams.trouble:
        news = replace(news, state="failed", message=streams.trouble)
    return Piped(news, streams.is_unread)
