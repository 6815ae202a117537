"""The relay's own control socket, for operators on its host: status, cancel, drain, metrics.

A unix socket of mode 0600: root and the relay's own user. One line of JSON asks, one answers. Nobody else's word
reaches it, so it may say which VM goes where.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, assert_never

import msgspec
import structlog
import trio
from msgspec import Meta

from transport.errors import UNDECODABLE, ConfigurationError, LocalBroken, TransportError
from transport.relay.board import Board
from transport.relay.evacuating import EvacuationDesk
from transport.relay.inlets import listen_unix, peer_uid

log = structlog.get_logger("sealane.relay")
MAX_REQUEST_BYTES: Final = 4096
_SECONDS: Final = 10.0
_MAX_CALLERS: Final = 16


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="ask"):
    pass


class AskStatus(_Request, frozen=True, tag="status"):
    pass


class AskCancel(_Request, frozen=True, tag="cancel"):
    migration_id: Annotated[str, Meta(min_length=1, max_length=64)]


class AskDrain(_Request, frozen=True, tag="drain"):
    pass


class AskMetrics(_Request, frozen=True, tag="metrics"):
    pass


class AskEvacuate(_Request, frozen=True, tag="evacuate"):
    """Move a VM by a permit that was prepared for it. `to`: host name or SPIFFE id; None: the first destination."""

    vm: Annotated[str, Meta(min_length=1, max_length=1024)]
    to: Annotated[str, Meta(min_length=1, max_length=255)] | None = None


class AskEvacuated(_Request, frozen=True, tag="evacuated"):
    migration_id: Annotated[str, Meta(min_length=1, max_length=64)]


class AskEvacuations(_Request, frozen=True, tag="evacuations"):
    pass


decode_question = msgspec.json.Decoder(
    AskStatus | AskCancel | AskDrain | AskMetrics | AskEvacuate | AskEvacuated | AskEvacuations
).decode


class Operators:
    """Answers on the control socket. `drain`: begin to end with the last session. `metrics`: their text."""

    def __init__(
        self, board: Board, drain: Callable[[], None], evacuating: EvacuationDesk, metrics: Callable[[], str]
    ) -> None:
        self._board = board
        self._metrics = metrics
        self._drain = drain
        self._evacuating = evacuating
        self._callers = trio.CapacityLimiter(_MAX_CALLERS)

    async def serve(self, listening: trio.socket.SocketType) -> None:
        """Take callers until cancelled; each connection is one question."""
        with listening:
            async with trio.open_nursery() as nursery:
                while True:
                    try:
                        accepted, _ = await listening.accept()
                    except OSError:
                        await trio.sleep(0.05)  # out of descriptors: others go on
                        continue
                    nursery.start_soon(self._take, accepted)

    async def _take(self, accepted: trio.socket.SocketType) -> None:
        with accepted, trio.move_on_after(_SECONDS):
            async with self._callers:
                try:
                    if peer_uid(accepted) not in {0, os.geteuid()}:
                        return
                    answer = await self._answer(await _read_line(accepted))
                    await _send_all(accepted, msgspec.json.encode(answer) + b"\n")
                except OSError:
                    pass  # whoever asked has left
                except Exception:
                    # The edge: a bug in a question must not end the sessions.
                    log.exception("bug: an operator's question was not answered")

    async def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = decode_question(line)
        except UNDECODABLE:
            return {"error": "this is no question of this version"}
        match request:
            case AskStatus():
                return self._board.document()
            case AskCancel(migration_id=migration_id):
                log.warning("an operator asks for the end of a migration", migration=migration_id)
                return {"cancelled": self._board.cancel(migration_id)}
            case AskDrain():
                self._drain()
                return {"draining": True}
            case AskMetrics():
                return {"text": self._metrics()}
            case AskEvacuate(vm=vm, to=to):
                try:
                    return await self._evacuating.begin(vm, to)
                except TransportError as error:
                    return {"refused": str(error)}
            case AskEvacuated(migration_id=migration_id):
                return self._evacuating.outcome(migration_id) or {
                    "refused": "this relay knows of no such move since its start"
                }
            case AskEvacuations():
                return {"evacuations": await self._evacuating.shown()}
            case _:
                assert_never(request)


def listen_for_operators(path: Path) -> trio.socket.SocketType:
    """`ConfigurationError` if the socket cannot be had. What is there was left by a relay that is gone."""
    try:
        path.unlink(missing_ok=True)
        return listen_unix(path, 0o600)
    except (OSError, LocalBroken) as error:
        raise ConfigurationError(f"control socket: {error}") from None


async def _read_line(accepted: trio.socket.SocketType) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) <= MAX_REQUEST_BYTES:
        more = await accepted.recv(MAX_REQUEST_BYTES)
        if not more:
            break
        data += more
    return data


async def _send_all(accepted: trio.socket.SocketType, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[await accepted.send(view) :]
