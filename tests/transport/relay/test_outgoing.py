"""How a relay's connections leave: addresses tried in order, source address, device and mark; IPv4 and IPv6."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import msgspec
import pytest
import trio

from tests.transport.relay.conftest import serving
from tests.transport.site import Site
from transport.errors import ConnectionBroken
from transport.relay.address_book import AddressBook
from transport.relay.config_sections import NetworkSection
from transport.relay.host import open_host
from transport.relay.news import News
from transport.relay.outgoing import Leaving, connect, connect_first, leaving_of, routes
from transport.relay.source import MigrationOrder, carry_as_source
from transport.relay.tcp import tune_tcp

NOBODY = ("127.0.0.1", 1)


def book_of(site_name: str, *addresses: dict[str, object]) -> AddressBook:
    entry = {"spiffe_id": site_name, "name": "b", "libvirt_name": "b", "addresses": list(addresses)}
    return AddressBook.decode(json.dumps({"version": "0" * 64, "hosts": [entry]}).encode(), fetched=1)


@pytest.fixture
def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


async def test_it_leaves_by_the_configured_address_with_the_configured_mark(listener: socket.socket) -> None:
    with listener:
        address = listener.getsockname()[:2]
        sock = await connect(address, Leaving(bind_ipv4="127.7.7.7", dscp=10), 5)
        accepted, peer = listener.accept()
        assert peer[0] == "127.7.7.7"
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 10 << 2
        sock.close()
        accepted.close()


async def test_ipv6_has_an_address_and_a_mark_of_its_own() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        sock = await connect(listening.getsockname()[:2], Leaving(bind_ipv4="192.0.2.1", bind_ipv6="::1", dscp=46), 5)
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 46 << 2
        sock.close()


async def test_it_leaves_by_the_configured_device(listener: socket.socket) -> None:
    with listener:
        sock = await connect(listener.getsockname()[:2], Leaving(device="lo"), 5)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
        sock.close()


@pytest.mark.parametrize("leaving", [Leaving(bind_ipv4="192.0.2.1"), Leaving(device="nosuchdevice0")])
async def test_what_is_not_this_hosts_is_named_to_the_operator(listener: socket.socket, leaving: Leaving) -> None:
    with listener, pytest.raises(ConnectionBroken, match=r"cannot leave by .*see \[network\]"):
        await connect(listener.getsockname()[:2], leaving, 5)


async def test_the_next_address_is_tried_when_one_does_not_answer(listener: socket.socket) -> None:
    with listener:
        there = listener.getsockname()[:2]
        sock, where = await connect_first([NOBODY, there], Leaving(), 5)
        assert where == there
        sock.close()
    with pytest.raises(ConnectionBroken, match=r"127\.0\.0\.1:1; nobody answers"):
        await connect_first([NOBODY, NOBODY], Leaving(), 5)


def test_the_order_comes_first_then_the_book() -> None:
    book = book_of("spiffe://x/host/b", {"address": "[fd00::1]:7443"}, {"address": "10.0.0.2:7443"})
    assert routes("10.0.0.2:7443", "spiffe://x/host/b", book) == (("10.0.0.2", 7443), ("fd00::1", 7443))
    assert routes("10.0.0.2:7443", "spiffe://x/host/other", book) == (("10.0.0.2", 7443),)


def test_the_configuration_wins_over_the_book() -> None:
    own = book_of("spiffe://x/host/b", {"address": "10.0.0.2:7443", "device": "bond1", "dscp": 10}).hosts[0]
    assert leaving_of(NetworkSection(), own) == Leaving(device="bond1", dscp=10)
    assert leaving_of(NetworkSection(bind_device="eth9", dscp=0), own) == Leaving(device="eth9", dscp=0)
    assert leaving_of(NetworkSection(), None) == Leaving()


async def test_a_session_over_ipv6_reached_by_the_book_alone(site: Site) -> None:
    config = site.relay_config("b")
    listen = msgspec.structs.replace(config.relay, listen="[::1]:0")
    vm = site.claims().vm
    async with serving(open_host(msgspec.structs.replace(config, relay=listen))) as (_, address):
        assert address.startswith("[::1]:")
        source = open_host(site.relay_config("a"))
        source.addresses.keep(book_of(site.spiffe("b"), {"address": address}))
        folder = site.folder / "vm" / vm
        folder.mkdir(parents=True)
        received = bytearray()

        async def take(stream: trio.SocketStream) -> None:
            async for chunk in stream:
                received.extend(chunk)
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            sock = trio.socket.socket(socket.AF_UNIX)
            await sock.bind(str(folder / "memory.sock"))
            sock.listen()
            nursery.start_soon(trio.serve_listeners, take, [trio.SocketListener(sock)])
            path = site.folder / "in.sock"
            ready = trio.Event()

            async def tell(news: News) -> None:
                if news.state == "running":
                    ready.set()

            async def send() -> None:
                await ready.wait()
                async with await trio.open_unix_socket(path) as stream:
                    await stream.send_all(b"x" * 100_000)

            nursery.start_soon(send)
            # Nobody listens where the order says: the book knows better.
            order = MigrationOrder(site.permit(vm=vm), "127.0.0.1:1")
            with trio.fail_after(20):
                news = await carry_as_source(source, order, tell, trio.Event(), path)
            nursery.cancel_scope.cancel()
        assert news.state == "completed"
        assert len(received) == 100_000


def test_the_kept_copy_is_used_by_the_next_process(site: Site) -> None:
    host = open_host(site.relay_config("a"))
    host.addresses.keep(book_of(site.spiffe("b"), {"address": "[::1]:7443"}))
    again = open_host(site.relay_config("a"))
    entry = again.addresses.book.host("b")
    assert entry is not None
    assert Path(again.config.relay.state_dir, "address-book.json").exists()


def test_a_lane_to_a_near_host_holds_little_in_the_kernel_and_a_control_socket_notices_a_dead_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        as_found = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        tune_tcp(near)
        bounded = near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        sending = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    # The kernel doubles what it is told, and grows it no more: tcp(7).
    assert as_found < bounded == 2 * (1 << 20)
    assert sending == 2 * (1 << 19)
