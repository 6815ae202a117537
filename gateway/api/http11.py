"""One connection of Hypercorn's, which speaks HTTP/1.1 and nothing that a request could turn it into.

Hypercorn would switch to HTTP/2 where a client begins so, or asks to upgrade, and to WebSocket: other parsers and other
bounds than those that are tried here. Beside that, requests are refused in which two readers could find different
things, as a proxy before the gateway would be one.
"""

from __future__ import annotations

from typing import Any, Final, cast

import h11
from hypercorn.events import Closed, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

_ONCE: Final = frozenset({b"authorization", b"content-type", b"host"})


class NotSpoken(Exception):
    """The request was answered with 400, and nothing that follows it on this connection is read."""


def is_refused(request: h11.Request) -> bool:
    """Another protocol, a length that may be read in two ways (RFC 9112, 6.1), or a header that counts twice."""
    names = [name for name, _ in request.headers]
    return (
        request.http_version not in {b"1.0", b"1.1"}
        or request.method in {b"CONNECT", b"PRI"}
        or b"upgrade" in names
        or (b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"))
        or any(names.count(name) > 1 for name in _ONCE)
    )


class Http11(H11Protocol):
    async def _check_protocol(self, event: h11.Request) -> None:
        if is_refused(event):
            await self._send_error_response(400)
            await self.send(Closed())
            raise NotSpoken


class Connection(TCPServer):
    """After the handshake. Hypercorn keeps a connection for its idle time after the peer has left; ours gives its
    place free at once.
    """

    _peer_left = False

    async def run(self) -> None:
        socket = self.stream.transport_stream.socket
        try:
            client = parse_socket_addr(socket.family, socket.getpeername())
            server = parse_socket_addr(socket.family, socket.getsockname())
            async with TaskGroup() as task_group:
                self._task_group = task_group
                state = ConnectionState(self.state)
                self.protocol = cast(
                    Any,
                    Http11(
                        self.app, self.config, self.context, task_group, state, True, client, server, self.protocol_send
                    ),
                )
                await self.idle_task.restart(task_group, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass  # the peer left
        finally:
            await self._close()

    async def _read_data(self) -> None:
        try:
            await super()._read_data()
        except NotSpoken:
            pass
        self._peer_left = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Any) -> None:
        if not (self._peer_left and isinstance(event, Updated)):
            await super().protocol_send(event)
