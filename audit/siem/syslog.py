"""Syslog over TLS: RFC 5424 messages, counted in octets (RFC 5425).

The protocol has no acknowledgement: what the receiver's kernel took and its program never read is lost when that dies.
Two things narrow the gap, and nothing closes it. A batch counts as delivered once the receiver's TCP has acknowledged
all of it; and what was sent last is sent again: after a connection broke (`resend_bytes`), and after a restart of ours
(`resend_entries`), which forgets what the connection was. Each message has its id and sequence: a gap can be seen, a
message that came twice recognised. RELP has no such gap.
"""

from __future__ import annotations

import array
import fcntl
import termios
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from audit.siem.document import Document
from audit.siem.formats import Line
from audit.siem.formats.syslog import framed, header
from audit.siem.peer import CONNECTION_ERRORS, Peer, Stream, cause_of, is_established
from audit.siem.sink import Refusal, SinkAway
from audit.siem.turns import made

_LOOK_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True)
class Resend:
    """What is sent again: of the last batches on a connection that broke, and of the entries before our last stop."""

    size_bytes: int = 8 * 1024 * 1024  # more than the receive buffer of a socket (tcp_rmem: 6 MiB) can hold unread
    entries: int = 2_000


class SyslogSink:
    """One connection, kept open. `hostname` (a `syslog_name`) stands in each message as its sender."""

    def __init__(
        self,
        name: str,
        peer: Peer,
        line: Line,
        hostname: str,
        max_message_bytes: int,
        resend: Resend = Resend(),
    ) -> None:
        self._name = name
        self._peer = peer
        self._line = line
        self._hostname = hostname
        self._max_message_bytes = max_message_bytes
        self._resend = resend
        self._recent = _Recent(resend.size_bytes)
        self._stream: Stream | None = None
        self._one_at_a_time = trio.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def unconfirmed_entries(self) -> int:
        """See `Unconfirmed`."""
        return self._resend.entries

    async def deliver(self, batch: Sequence[Document]) -> Sequence[Refusal]:
        """See `Sink.deliver`. What it counts as delivered may be lost: see above."""
        frames = b"".join(await made(self._frame, batch))
        async with self._one_at_a_time:
            try:
                await self._send(frames)
            except CONNECTION_ERRORS as error:
                await self._drop()
                raise SinkAway(f"{self._peer}: {cause_of(error)}") from None
            except BaseException:
                # Cancelled in the middle of a frame: nothing more can be said on this connection.
                await self._drop()
                raise
        return []

    async def close(self) -> None:
        """Says goodbye if the receiver listens; who calls sets the deadline."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    def _frame(self, document: Document) -> bytes:
        return framed(syslog_message(document, self._line, self._hostname, self._max_message_bytes))

    async def _send(self, frames: bytes) -> None:
        stream = self._stream
        if stream is None or not is_established(stream):
            await self._drop()
            stream = self._stream = await self._peer.connect()
            for earlier in self._recent.parts():
                if earlier != frames:
                    await stream.send_all(earlier)
        self._recent.add(frames)
        await stream.send_all(frames)
        while _unacknowledged(stream):
            if not is_established(stream):
                break
            await trio.sleep(_LOOK_SECONDS)
        if not is_established(stream):
            raise ConnectionResetError("the receiver has closed the connection")

    async def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)


def syslog_message(document: Document, line: Line, hostname: str, max_bytes: int) -> bytes:
    """The RFC 5424 message of a document, within `max_bytes`."""
    head = header(document, hostname)
    return head + line(document, max_bytes - len(head))


class _Recent:
    """The last batches that were sent, as many as fit, oldest first: none where the last one alone does not."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parts: deque[bytes] = deque()
        self._bytes = 0

    def parts(self) -> Sequence[bytes]:
        return tuple(self._parts)

    def add(self, part: bytes) -> None:
        if self._parts and self._parts[-1] == part:
            return  # the same batch, tried again
        self._parts.append(part)
        self._bytes += len(part)
        while self._bytes > self._limit_bytes:
            self._bytes -= len(self._parts.popleft())


def _unacknowledged(stream: Stream) -> int:
    """Bytes in the send queue that the receiver's TCP has not acknowledged (tcp(7), SIOCOUTQ)."""
    count = array.array("i", [0])
    fcntl.ioctl(stream.transport_stream.socket.fileno(), termios.TIOCOUTQ, count)
    return count[0]
