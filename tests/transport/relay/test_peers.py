"""Peers whose certificate or TLS is not what it must be, over real TCP: nothing is said to them, no session is made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from OpenSSL import SSL

from tests.certs import chains
from tests.certs.bad_peers import BAD_PEERS
from tests.certs.chains import Host, loose_connection, loose_context, make_host, make_site
from tests.transport.relay.conftest import host_with, serving
from tests.transport.relay.hostile import Driver
from tests.transport.site import Site
from transport.errors import RefusalCode
from transport.relay.config import split_address
from transport.relay.host import RelayHost
from transport.relay.identity import Identity
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source
from transport.wire.messages import Offer, Refusal, encode_message

pytestmark = pytest.mark.whole

SOURCE, DESTINATION = chains.uri_of("host-a"), chains.uri_of("host-b")
PARTIES = {"source": SOURCE, "destination": DESTINATION, "aud": DESTINATION}


@dataclass
class LoosePeer:
    """One TLS end on real TCP that verifies nothing. `heard`: application bytes that reached it."""

    stream: trio.SocketStream
    tls: SSL.Connection
    heard: bytes = b""
    ended_by: str = ""

    async def converse(self, say: bytes) -> None:
        """Shake hands, say `say` as soon as TLS lets us, and hear until the end."""
        said = False
        while True:
            try:
                self.tls.do_handshake()
                if not said:
                    self.tls.sendall(say)
                    said = True
                while data := self.tls.recv(65536):
                    self.heard += data
            except SSL.WantReadError:
                pass
            except SSL.ZeroReturnError:
                self.ended_by = "close_notify"
                return
            except SSL.Error as error:
                self.ended_by = f"TLS: {error}"
                await self._flush()
                return
            await self._flush()
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                self.ended_by = "end of TCP"
                return
            self.tls.bio_write(data)

    async def _flush(self) -> None:
        try:
            while data := self.tls.bio_read(65536):
                await self.stream.send_all(data)
        except (SSL.WantReadError, trio.BrokenResourceError):
            return


def with_credentials(site: Site, name: str, judge: chains.Site, host: str) -> RelayHost:
    """The relay host `name` of the transport's site under another PKI, whose bad certificates we have."""
    made = host_with(site, name, {"message_seconds": 1.0})
    identity = Identity(made.config.identity, judge.credentials(host), marks=made.identity.marks)
    permits = replace(made.permits, trust_domain=identity.credentials.spiffe_id.trust_domain)
    return replace(made, identity=identity, permits=permits)


@asynccontextmanager
async def destination(site: Site, judge: chains.Site) -> AsyncIterator[tuple[RelayHost, str]]:
    async with serving(with_credentials(site, "b", judge, "host-b")) as running:
        yield running


async def visit(address: str, context: SSL.Context, say: bytes) -> LoosePeer:
    async with await trio.open_tcp_stream(*split_address(address, "relay")) as stream:
        peer = LoosePeer(stream, loose_connection(context, is_client=True))
        with trio.fail_after(10):
            await peer.converse(say)
        return peer


async def require_unmoved(site: Site, host: RelayHost, address: str, judge: chains.Site, peer: LoosePeer) -> None:
    """Nothing was said, no session was made, and an honest source is served."""
    assert peer.heard == b""
    assert peer.ended_by == "end of TCP", "closed without an alert"
    assert list((host.spool.run_dir.parent / "journals").iterdir()) == []
    async with Driver.connected(address, judge.credentials("host-a")) as honest:
        said = await honest.offer(site.permit(**PARTIES))
        assert isinstance(said, Refusal), "no hypervisor waits here, but the offer was heard"
        assert said.code is RefusalCode.HYPERVISOR


def an_offer(site: Site) -> bytes:
    return encode_message(Offer(1, "begin", (site.permit(**PARTIES),), "0" * 32, 0))


@pytest.fixture(scope="module")
def pki() -> chains.Site:
    return make_site()


@pytest.mark.parametrize("name", BAD_PEERS)
async def test_a_source_with_a_bad_certificate_hears_nothing(site: Site, pki: chains.Site, name: str) -> None:
    bad, judge = BAD_PEERS[name].make(pki)
    async with destination(site, judge) as (host, address):
        peer = await visit(address, loose_context(bad), an_offer(site))
        await require_unmoved(site, host, address, judge, peer)


LOOSE_TLS: dict[str, dict[str, Any]] = {
    "TLS 1.2": {"max_version": SSL.TLS1_2_VERSION},
    "no ALPN": {"alpn": None},
    "another ALPN": {"alpn": b"h2"},
    "X25519 alone": {"groups": b"X25519"},
    "P-256 alone": {"groups": b"P-256"},
    "AES-128 alone": {"cipher": b"TLS_AES_128_GCM_SHA256"},
}


@pytest.mark.parametrize("name", [*LOOSE_TLS, "no certificate"])
async def test_a_source_with_another_tls_hears_nothing(site: Site, pki: chains.Site, name: str) -> None:
    host_certificate = None if name == "no certificate" else make_host(pki.ca, "host-a")
    async with destination(site, pki) as (host, address):
        peer = await visit(address, loose_context(host_certificate, **LOOSE_TLS.get(name, {})), an_offer(site))
        await require_unmoved(site, host, address, pki, peer)


@dataclass
class LooseServer:
    """Poses as the destination relay; keeps what each client said to it."""

    context: SSL.Context
    clients: list[LoosePeer] = field(default_factory=list)

    async def serve_one(self, stream: trio.SocketStream) -> None:
        async with stream:
            peer = LoosePeer(stream, loose_connection(self.context, is_client=False))
            self.clients.append(peer)
            await peer.converse(b"")


async def refusal_by_source(site: Site, judge: chains.Site, context: SSL.Context) -> tuple[News, LooseServer]:
    """What a source says of the server that it met, once both are done."""
    server = LooseServer(context)
    source = with_credentials(site, "a", judge, "host-a")

    async def tell(_: News) -> None:
        pass

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, server.serve_one, listeners)
            host, port = listeners[0].socket.getsockname()[:2]
            order = MigrationOrder(site.permit(**PARTIES), f"{host}:{port}")
            news = await carry_as_source(source, order, tell, trio.Event())
            while not all(client.ended_by for client in server.clients):
                await trio.sleep(0.005)
            nursery.cancel_scope.cancel()
    return news, server


def require_refused(news: News, server: LooseServer) -> None:
    assert news.state == "failed"
    assert RefusalCode.PERMIT_PARTIES.value in news.message
    assert news.message.isascii()
    assert news.message.isprintable()
    assert len(server.clients) == 1
    assert server.clients[0].heard == b"", "the permit goes to nobody but the host that it names"


@pytest.mark.parametrize("name", BAD_PEERS)
async def test_a_destination_with_a_bad_certificate_is_sent_nothing(site: Site, pki: chains.Site, name: str) -> None:
    bad, judge = BAD_PEERS[name].make(pki)
    require_refused(*await refusal_by_source(site, judge, loose_context(bad)))


@pytest.mark.parametrize("name", LOOSE_TLS)
async def test_a_destination_with_another_tls_is_sent_nothing(site: Site, pki: chains.Site, name: str) -> None:
    context = loose_context(make_host(pki.ca, "host-b"), **LOOSE_TLS[name])
    require_refused(*await refusal_by_source(site, pki, context))


@pytest.mark.parametrize("name", ["host-a", "host-c", "host-bb"])
async def test_a_good_host_that_is_not_the_permits_destination_is_sent_nothing(
    site: Site, pki: chains.Site, name: str
) -> None:
    other: Host = make_host(pki.ca, name)
    news, server = await refusal_by_source(site, pki, loose_context(other))
    require_refused(news, server)
    assert chains.uri_of(name) in news.message


async def test_the_right_destination_is_sent_the_offer(site: Site, pki: chains.Site) -> None:
    """Else the tests above would pass for a source that never says anything to anybody."""
    context = loose_context(make_host(pki.ca, "host-b"), groups=b"X25519MLKEM768")
    news, server = await refusal_by_source(site, pki, context)
    assert "did not answer in time" in news.message
    assert b'"type":"offer"' in server.clients[0].heard
