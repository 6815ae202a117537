"""What comes over a control connection, beside whatever else the relay does."""

from __future__ import annotations

import select
import socket
from typing import cast

import trio
import trio.testing
from OpenSSL import SSL

from tests.transport.relay.hostile import Conversation
from tests.transport.relay.key_updates import KeyUpdater
from tests.transport.site import Site
from transport.relay.control import ControlLink, TlsStream
from transport.relay.host import open_host
from transport.wire.control import Role
from transport.wire.messages import Ack, Answer, Bye, Message, Offer, Open, encode_message

TALK = 500


class Breathless:
    """A peer that has always said more already: nothing here ever waits."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    async def receive(self) -> bytes:
        said, self._said = self._said[:16384], self._said[16384:]
        return said


async def test_a_peer_that_says_much_in_one_breath_gets_no_more_turns_than_others() -> None:
    """Else whoever has a permit could hold up every other session of the relay."""
    messages: list[Message] = [Open(0, "memory"), *[Ack({})] * TALK, Bye()]
    said = b"".join(map(encode_message, messages))
    link = ControlLink(cast(TlsStream, Breathless(said)), Role.DESTINATION, 10)
    link.order.received(Offer(1, "begin", ("permit",), "0" * 32, 0))
    link.order.sent(Answer({}, 1))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert await link.next() == Open(0, "memory")
        assert await link.next() == Bye()
        nursery.cancel_scope.cancel()
    assert turns >= TALK


async def test_nor_does_one_that_changes_its_keys_again_and_again(site: Site) -> None:
    a, b = (open_host(site.relay_config(name)) for name in "ab")
    ours, theirs = (trio.socket.from_stdlib_socket(each) for each in socket.socketpair())
    updater, accepting = KeyUpdater(a.credentials), SSL.Connection(b.identity.context, None)
    accepting.set_accept_state()
    control, peer = TlsStream(theirs, accepting), Conversation(trio.SocketStream(ours), updater.tls)
    turns = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.handshake)
        await peer.shake_hands(a.credentials)
    async with peer.stream, trio.open_nursery() as nursery:
        await peer.stream.send_all(updates := updater.updates(2000, records_said=0))
        nursery.start_soon(control.receive)
        while select.select([theirs], [], [], 0)[0]:
            turns += 1
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    await control.close()
    assert turns >= len(updates) // 4096
