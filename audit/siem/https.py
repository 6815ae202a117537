"""One HTTPS receiver: a request at a time over one connection that is kept, by h11 over `peer.py`'s TLS. Redirects,
proxies and compression are not followed, taken or asked for; an answer is read up to a limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import h11
import trio

from audit.siem.peer import CONNECTION_ERRORS, Peer, Stream, Trust, cause_of, is_established
from audit.siem.sink import SinkAway
from audit.siem.status import one_line

MAX_ANSWER_BYTES: Final = 256 * 1024
_READ_BYTES: Final = 64 * 1024
_MAX_RETRY_AFTER: Final = 3600
_RETRY: Final = frozenset({429, 503})


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver answered; `body` is whole."""

    status: int
    body: bytes
    retry_after_seconds: float | None = None

    def shown(self) -> str:
        """For an operator: status and the beginning of what was said, in one line."""
        return one_line(f"HTTP {self.status} {self.body[:300].decode(errors='replace')}".strip())


@dataclass(slots=True)
class _Connection:
    stream: Stream
    http: h11.Connection


class HttpsPeer:
    """The receiver at `url`. ValueError for what is not https, or has a secret in it: URLs are shown and logged."""

    def __init__(self, url: str, trust: Trust) -> None:
        parts = urlsplit(url)
        is_plain = url.isascii() and url.isprintable() and " " not in url
        if parts.scheme != "https" or not parts.hostname or not is_plain:
            raise ValueError(f"{url!r} is not an https URL")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise ValueError("a URL of a receiver must hold neither user, password nor fragment")
        self._peer = Peer(host=parts.hostname, port=parts.port or 443, trust=trust)
        self._host = parts.netloc
        self._target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        self._connection: _Connection | None = None

    async def post(self, headers: Mapping[str, str], body: bytes, path: str = "") -> Answer:
        """To the URL, `path` behind it. Raises SinkAway where there is no answer: what arrived is unknown then."""
        request = h11.Request(
            method="POST",
            target=(self._target.rstrip("/") + path) if path else self._target,
            headers=[
                ("Host", self._host),
                ("User-Agent", "sealane"),
                ("Accept-Encoding", "identity"),
                ("Content-Length", str(len(body))),
                *headers.items(),
            ],
        )
        try:
            connection = await self._connected()
            answer = await _exchange(connection, request, body)
            if connection.http.our_state is h11.DONE and connection.http.their_state is h11.DONE:
                connection.http.start_next_cycle()
            else:
                await self._drop()
        except (*CONNECTION_ERRORS, h11.RemoteProtocolError) as error:
            await self._drop()
            cause = "it does not speak HTTP/1.1" if isinstance(error, h11.RemoteProtocolError) else cause_of(error)
            raise SinkAway(f"{self._peer}: {cause}") from None
        except BaseException:
            # Cancelled or over the limit in the middle of an answer: nothing more can be asked on this connection.
            await self._drop()
            raise
        return answer

    async def close(self) -> None:
        """Who calls sets the deadline."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.stream.aclose()

    async def _connected(self) -> _Connection:
        if self._connection is None or not is_established(self._connection.stream):
            await self._drop()
            self._connection = _Connection(await self._peer.connect(), h11.Connection(h11.CLIENT))
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(connection.stream)


async def _exchange(connection: _Connection, request: h11.Request, body: bytes) -> Answer:
    http, stream = connection.http, connection.stream
    head = http.send(request) or b""
    await stream.send_all(head + (http.send(h11.Data(data=body)) or b""))
    http.send(h11.EndOfMessage())
    response: h11.Response | None = None
    received = bytearray()
    has_ended = False
    while True:
        match _next_event(http, has_ended=has_ended):
            case h11.NEED_DATA:
                data = bytes(await stream.receive_some(_READ_BYTES))
                has_ended = not data
                http.receive_data(data)
            case h11.Response() as response:
                pass
            case h11.Data(data=part):
                received += part
                if len(received) > MAX_ANSWER_BYTES:
                    raise SinkAway("its answer is over the limit")
            case h11.EndOfMessage():
                assert response is not None
                return Answer(response.status_code, bytes(received), _retry_after(response))
            case h11.ConnectionClosed() | h11.PAUSED:
                raise ConnectionResetError("the receiver has closed the connection")
            case _:
                pass  # 1xx: the answer is still to come


def _next_event(http: h11.Connection, *, has_ended: bool) -> object:
    """As h11's, but an end in the middle of an answer is the connection's, not a fault of what was said."""
    try:
        return http.next_event()
    except h11.RemoteProtocolError:
        if has_ended:
            raise ConnectionResetError("the receiver has closed the connection") from None
        raise


def away(answer: Answer) -> SinkAway:
    """For an answer that says neither yes nor that one entry is at fault."""
    wait = answer.retry_after_seconds if answer.status in _RETRY else None
    return SinkAway(answer.shown(), wait)


def _retry_after(response: h11.Response) -> float | None:
    """Seconds, where the receiver named them; the other form, a date, needs clocks that agree."""
    for name, value in response.headers:
        if name == b"retry-after" and value.isdigit() and len(value) <= 9:
            return float(min(int(value), _MAX_RETRY_AFTER))
    return None
