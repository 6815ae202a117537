"""Relays that are authenticated and do as they like: a source driven by hand, and a destination that plays a script.

They speak by `certs.tls` and `transport.wire` alone, so that nothing of the relay under test keeps them in order.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

import trio
from OpenSSL import SSL

from certs.credentials import HostCredentials
from certs.tls import (
    ControlPeer,
    accept_peer,
    client_context,
    export_secret,
    local_leaf_sha256,
    server_context,
    step_handshake,
)
from transport.relay.config import split_address
from transport.relay.host import now
from transport.wire.keys import ConnectionKeys, exporter_context
from transport.wire.messages import Ack, Message, MessageReader, Offer, Purpose, encode_message
from transport.wire.preface import MAGIC, make_preface


class Conversation:
    """One control connection, either end, with nothing between the test and the wire."""

    def __init__(self, stream: trio.SocketStream, tls: SSL.Connection) -> None:
        self.stream = stream
        self.tls = tls
        self._reader = MessageReader()
        self._ready: list[Message] = []
        self._peer: ControlPeer | None = None

    @property
    def peer(self) -> ControlPeer:
        assert self._peer is not None
        return self._peer

    async def shake_hands(self, credentials: HostCredentials) -> None:
        with trio.fail_after(10):
            while not step_handshake(self.tls):
                await self.flush()
                self.tls.bio_write(await self.stream.receive_some(65536))
            await self.flush()
        self._peer = accept_peer(self.tls, credentials, now())

    async def flush(self) -> None:
        while True:
            try:
                data = self.tls.bio_read(65536)
            except SSL.WantReadError:
                return
            await self.stream.send_all(data)

    async def send(self, *messages: Message) -> None:
        await self.send_bytes(b"".join(encode_message(message) for message in messages))

    async def send_bytes(self, data: bytes) -> None:
        self.tls.sendall(data)
        await self.flush()

    async def hear(self) -> Message | None:
        """The next message but Ack; None when the connection has ended, however that happened."""
        with trio.fail_after(10):
            while True:
                while self._ready:
                    message = self._ready.pop(0)
                    if not isinstance(message, Ack):
                        return message
                data = await self._receive()
                if not data:
                    return None
                self._ready += self._reader.feed(data)

    async def hear_all(self) -> list[Message]:
        """All messages but Ack until the connection ends."""
        heard = []
        while (message := await self.hear()) is not None:
            heard.append(message)
        return heard

    async def _receive(self) -> bytes:
        while True:
            try:
                return self.tls.recv(65536)
            except SSL.WantReadError:
                try:
                    data = await self.stream.receive_some(65536)
                except trio.BrokenResourceError:
                    return b""
                if not data:
                    return b""
                self.tls.bio_write(data)
            except SSL.Error:
                return b""


@dataclass
class Driver:
    """A hostile source on one connection."""

    conversation: Conversation
    credentials: HostCredentials
    address: tuple[str, int]
    keys: ConnectionKeys | None = None
    session_id: str = field(default_factory=lambda: os.urandom(16).hex())

    @classmethod
    @asynccontextmanager
    async def connected(cls, address: str, credentials: HostCredentials) -> AsyncIterator[Self]:
        where = split_address(address, "relay")
        async with await trio.open_tcp_stream(*where) as stream:
            tls = SSL.Connection(client_context(credentials), None)
            tls.set_connect_state()
            conversation = Conversation(stream, tls)
            await conversation.shake_hands(credentials)
            yield cls(conversation, credentials, where)

    async def offer(
        self,
        permit: str,
        *,
        session_id: str | None = None,
        attempt: int = 0,
        purpose: Purpose = "begin",
        following: dict[str, int] | None = None,
    ) -> Message | None:
        """Offer `permit`, derive this connection's keys, and return what the relay says to it."""
        self.session_id = session_id or self.session_id
        conversation = self.conversation
        context = exporter_context(
            [permit],
            local_leaf_sha256(self.credentials),
            conversation.peer.leaf_sha256,
            bytes.fromhex(self.session_id),
            attempt,
        )
        self.keys = ConnectionKeys(export_secret(conversation.tls, context))
        await self.send(Offer(1, purpose, (permit,), self.session_id, attempt, following or {}))
        return await self.hear()

    async def lane(self, channel: int) -> trio.SocketStream:
        assert self.keys is not None
        stream = await trio.open_tcp_stream(*self.address)
        await stream.send_all(make_preface(self.keys, channel))
        return stream

    async def send(self, *messages: Message) -> None:
        await self.conversation.send(*messages)

    async def send_bytes(self, data: bytes) -> None:
        await self.conversation.send_bytes(data)

    async def hear(self) -> Message | None:
        return await self.conversation.hear()

    async def hear_all(self) -> list[Message]:
        return await self.conversation.hear_all()


Play = Callable[[Conversation, Offer], Awaitable[None]]
Lane = Callable[[trio.SocketStream], Awaitable[None]]


async def _hang_up(_: trio.SocketStream) -> None:
    pass


@dataclass
class FakeDestination:
    """A hostile destination: accepts connections as an honest host would, then plays what the test wrote. `lane` is
    given each lane, from its preface on."""

    credentials: HostCredentials
    play: Play
    lane: Lane = _hang_up
    address: str = ""
    offers: list[Offer] = field(default_factory=list)

    async def serve_one(self, stream: trio.SocketStream) -> None:
        if await stream.socket.recv(len(MAGIC), socket.MSG_PEEK) == MAGIC:
            await self._serve_lane(stream)
            return
        tls = SSL.Connection(server_context(self.credentials), None)
        tls.set_accept_state()
        conversation = Conversation(stream, tls)
        try:
            async with stream:
                await conversation.shake_hands(self.credentials)
                offer = await conversation.hear()
                assert isinstance(offer, Offer)
                self.offers.append(offer)
                await self.play(conversation, offer)
        except (trio.BrokenResourceError, trio.ClosedResourceError, SSL.Error):
            pass  # the source hung up on it

    async def _serve_lane(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await self.lane(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def fake_destination(
    credentials: HostCredentials, play: Play, lane: Lane = _hang_up
) -> AsyncIterator[FakeDestination]:
    fake = FakeDestination(credentials, play, lane)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, fake.serve_one, listeners)
        host, port = listeners[0].socket.getsockname()[:2]
        fake.address = f"{host}:{port}"
        yield fake
        nursery.cancel_scope.cancel()
