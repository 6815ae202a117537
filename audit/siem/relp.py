"""RELP over TLS: syslog messages that the receiver acknowledges one by one. The protocol is in `relp_session.py`.

An acknowledgement says that the receiver has taken the message, not that its disk has: what rsyslog keeps in an
in-memory queue dies with it. A direct queue makes `acknowledged` mean `kept` (docs/siem-receivers.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from audit.siem.document import Document
from audit.siem.formats import Line
from audit.siem.peer import CONNECTION_ERRORS, Peer, Stream, cause_of
from audit.siem.relp_session import OK, Answer, RelpError, RelpSession, State
from audit.siem.sink import Refusal, SinkAway
from audit.siem.status import one_line
from audit.siem.syslog import syslog_message
from audit.siem.turns import made

WINDOW: Final = 1000  # unanswered messages; their answers must fit into socket buffers, or both ends wait to write
_READ_BYTES: Final = 4 * 1024  # some 250 answers: what is read at once is understood at once, and others wait for it
_TRIES: Final = 3
"""So often a message is refused before it is believed to be the message's fault: the code for both is the same."""


@dataclass(slots=True)
class _Connection:
    stream: Stream
    session: RelpSession


class RelpSink:
    """One session, kept open. `hostname` (a `syslog_name`) stands in each message as its sender."""

    def __init__(
        self, name: str, peer: Peer, line: Line, hostname: str, max_message_bytes: int, window: int = WINDOW
    ) -> None:
        self._name = name
        self._peer = peer
        self._line = line
        self._hostname = hostname
        self._max_message_bytes = max_message_bytes
        self._window = window
        self._connection: _Connection | None = None
        self._one_at_a_time = trio.Lock()
        self._refused: dict[str, int] = {}

    @property
    def name(self) -> str:
        return self._name

    async def deliver(self, batch: Sequence[Document]) -> Sequence[Refusal]:
        """See `Sink.deliver`."""
        messages = await made(self._message, batch)
        async with self._one_at_a_time:
            try:
                connection = await self._connected()
                refused = await self._exchange(connection, messages)
            except (*CONNECTION_ERRORS, RelpError) as error:
                await self._drop()
                cause = one_line(str(error)) if isinstance(error, RelpError) else cause_of(error)
                raise SinkAway(f"{self._peer}: {cause}") from None
            except BaseException:
                # Cancelled in the middle of a frame: nothing more can be said on this connection.
                await self._drop()
                raise
            return self._refusals(batch, refused)

    async def close(self) -> None:
        """Ends the session if the receiver listens; who calls sets the deadline."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            await connection.stream.send_all(connection.session.close())
            await connection.stream.aclose()
        except CONNECTION_ERRORS:
            pass  # it is gone already
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(connection.stream)

    def _message(self, document: Document) -> bytes:
        return syslog_message(document, self._line, self._hostname, self._max_message_bytes)

    async def _connected(self) -> _Connection:
        if self._connection is None:
            self._connection = connection = _Connection(await self._peer.connect(), RelpSession())
            await connection.stream.send_all(connection.session.open())
            while connection.session.state is State.OPENING:
                await _receive(connection)
        return self._connection

    async def _exchange(self, connection: _Connection, messages: Sequence[bytes]) -> dict[int, Answer]:
        """Send all and wait for all answers; those that are not 200, by position."""
        session, positions, refused = connection.session, dict[int, int](), dict[int, Answer]()
        sent = 0
        while sent < len(messages) or session.outstanding:
            frames = []
            while sent < len(messages) and session.outstanding < self._window:
                txnr, frame = session.message(messages[sent])
                positions[txnr] = sent
                frames.append(frame)
                sent += 1
            if frames:
                await connection.stream.send_all(b"".join(frames))
            for answer in await _receive(connection):
                position = positions.pop(answer.txnr)
                if answer.code != OK:
                    refused[position] = answer
        return refused

    def _refusals(self, batch: Sequence[Document], refused: dict[int, Answer]) -> Sequence[Refusal]:
        """Those refused for the last time. Raises SinkAway while others deserve another try."""
        counts = {batch[position].id: self._refused.get(batch[position].id, 0) + 1 for position in refused}
        for position, answer in refused.items():
            if counts[batch[position].id] < _TRIES:
                self._refused = counts
                index = batch[position].index
                raise SinkAway(f"{self._peer}: refuses entry {index} with {_said(answer)}")
        self._refused = {}
        return [Refusal(batch[position].index, _said(answer)) for position, answer in refused.items()]

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(connection.stream)


async def _receive(connection: _Connection) -> list[Answer]:
    data = await connection.stream.receive_some(_READ_BYTES)
    if not data:
        raise RelpError("the receiver has closed the connection")
    return connection.session.receive(bytes(data))


def _said(answer: Answer) -> str:
    return one_line(f"code {answer.code} {answer.text.decode(errors='replace')}".strip())
