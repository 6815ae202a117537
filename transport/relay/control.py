"""The control connection in trio: TLS 1.3 by pyOpenSSL over memory BIOs, and the order of messages on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio
from OpenSSL import SSL

from certs.tls import step_handshake
from transport.errors import ConnectionBroken, PeerCancelled, ProtocolViolation
from transport.wire.control import ControlOrder, Role
from transport.wire.messages import Ack, Cancel, Message, MessageReader, encode_message

_CHUNK_BYTES = 64 * 1024
# Of what a peer sends, and of its messages, to work on at once: a hundred short ones, or changes of its keys, take some
# milliseconds.
_TAKEN_BYTES = 4 * 1024
M = TypeVar("M", bound=Message)


class TlsStream:
    """Bytes over a pyOpenSSL connection. One task may receive while others send."""

    def __init__(self, sock: trio.socket.SocketType, tls: SSL.Connection, received: bytes = b"") -> None:
        self._socket = sock
        self.tls = tls
        self._send_lock = trio.Lock()
        self._in_use = False  # since the first application byte, which an accepted peer alone is worth
        if received:
            tls.bio_write(received)

    async def handshake(self) -> None:
        """Finish the TLS handshake. `PeerRefused` leaves the peer without an alert; `ConnectionBroken`."""
        while not step_handshake(self.tls):
            await self._flush()
            await self._read_more()
        await self._flush()

    async def send(self, data: bytes) -> None:
        self._in_use = True
        async with self._send_lock:
            try:
                self.tls.sendall(data)
            except SSL.Error:
                raise ConnectionBroken("the TLS connection is broken") from None
            await self._flush_locked()

    async def receive(self) -> bytes:
        """Some bytes; b"" only after the peer's close_notify. `ConnectionBroken` at an end without one."""
        self._in_use = True
        while True:
            try:
                return self.tls.recv(_TAKEN_BYTES)
            except SSL.ZeroReturnError:
                return b""
            except SSL.WantReadError:
                await self._flush()
                await self._read_more()
            except SSL.Error:
                raise ConnectionBroken("the TLS connection is broken") from None

    async def close(self) -> None:
        """Say close_notify if that is possible at once, and close; nothing is said to a refused peer."""
        try:
            if self._in_use:
                self.tls.shutdown()
                with trio.move_on_after(0.5, shield=True):
                    await self._flush_alert()
        except SSL.Error:
            pass
        finally:
            self._socket.close()

    async def _read_more(self) -> None:
        try:
            data = await self._socket.recv(_TAKEN_BYTES)
        except OSError:
            raise ConnectionBroken("the control connection was reset") from None
        if not data:
            raise ConnectionBroken("the control connection ended without notice")
        self.tls.bio_write(data)

    async def _flush(self) -> None:
        async with self._send_lock:
            await self._flush_locked()

    async def _flush_alert(self) -> None:
        try:
            await self._flush()
        except ConnectionBroken:
            pass

    async def _flush_locked(self) -> None:
        while True:
            try:
                data = self.tls.bio_read(_CHUNK_BYTES)
            except SSL.WantReadError:
                return
            try:
                view = memoryview(data)
                while view:
                    view = view[await self._socket.send(view) :]
            except OSError:
                raise ConnectionBroken("the control connection was reset") from None


class ControlLink:
    """Messages over a `TlsStream`, each checked against `ControlOrder` before it is sent or believed."""

    def __init__(self, stream: TlsStream, role: Role, message_seconds: float) -> None:
        self._stream = stream
        self._reader = MessageReader()
        self._ready: list[Message] = []
        self._message_seconds = message_seconds
        self.order = ControlOrder(role)
        self.sent_frames: Callable[[], dict[str, int]] = dict
        self.acknowledged: Callable[[dict[str, int]], None] = lambda _: None

    async def send(self, message: Message) -> None:
        self.order.sent(message)
        with trio.move_on_after(self._message_seconds) as scope:
            await self._stream.send(encode_message(message))
        if scope.cancelled_caught:
            raise ConnectionBroken("the peer does not take control messages")

    async def receive(self) -> Message | None:
        """The next message but Ack; None at an end in order (close_notify after Bye)."""
        while True:
            while self._ready:
                # One for each turn of the loop: a peer that says much in one breath holds up no other session.
                await trio.lowlevel.checkpoint()
                message = self._ready.pop(0)
                self.order.received(message, self.sent_frames())
                if not isinstance(message, Ack):
                    return message
                self.acknowledged(message.written)
            data = await self._stream.receive()
            if not data:
                if self._reader.is_between_messages:
                    return None
                raise ProtocolViolation("the control connection ended within a message")
            self._ready += self._reader.feed(data)

    async def expect(self, *kinds: type[M]) -> M:
        """The next message, which must be of one of `kinds`, within the message deadline. Cancel raises."""
        with trio.move_on_after(self._message_seconds):
            while True:
                message = await self.receive()
                if isinstance(message, kinds):
                    return message
                if isinstance(message, Cancel):
                    raise PeerCancelled(message.code, message.reason)
                if message is None:
                    raise ConnectionBroken("the peer ended the control connection early")
                raise ProtocolViolation(f"{type(message).__name__} where it was not due")
        raise ConnectionBroken("the peer did not answer in time")

    async def next(self) -> Message:
        """The next message but Ack, without a deadline; the end without Bye is `ConnectionBroken`."""
        message = await self.receive()
        if message is None:
            raise ConnectionBroken("the peer ended the control connection without Bye")
        return message

    async def close(self) -> None:
        await self._stream.close()
