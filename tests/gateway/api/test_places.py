"""Places for connections: bounded, and when all are taken, no crowd keeps out whoever has fewer."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import trio

from gateway.api.https import Bounds, HttpsServer, TlsFiles, make_context
from gateway.api.places import Place, Places
from gateway.crowds import crowd_of
from gateway.people import People
from gateway.starter import Site
from tests.gateway.api.test_https import configured, connected
from tests.gateway.conftest import running_gateway


def take(places: Places, address: str) -> Place | None:
    return places.take(address, lambda: None)


def taken(places: Places, *addresses: str) -> list[Place]:
    found = [take(places, address) for address in addresses]
    assert None not in found
    return [place for place in found if place is not None]


def test_an_address_has_so_many_and_all_have_so_many() -> None:
    places = Places(4, 2)
    first = taken(places, "192.0.2.1", "192.0.2.1")
    assert take(places, "192.0.2.1") is None
    places.leave(first[0])
    places.leave(first[0])
    taken(places, "192.0.2.1", "192.0.2.2", "192.0.2.3")
    assert len(places) == 4


async def test_when_all_are_taken_the_oldest_of_the_largest_crowd_makes_room() -> None:
    places = Places(4, 4)
    crowd = taken(places, *["192.0.2.1"] * 3)
    (other,) = taken(places, "192.0.2.2")
    (newcomer,) = taken(places, "192.0.2.3")
    assert [place.scope.cancel_called for place in (*crowd, other, newcomer)] == [True, False, False, False, False]
    assert len(places) == 4
    places.leave(crowd[0])
    assert len(places) == 4, "its connection ends after its place was given away"


async def test_nobody_makes_room_for_an_equal_but_the_oldest_for_their_own() -> None:
    places = Places(4, 4)
    one, other = taken(places, "192.0.2.1", "192.0.2.1"), taken(places, "192.0.2.2", "192.0.2.2")
    taken(places, "192.0.2.2")
    assert [place.scope.cancel_called for place in (*one, *other)] == [False, False, True, False]
    equals = Places(2, 2)
    taken(equals, "192.0.2.1", "192.0.2.2")
    assert take(equals, "192.0.2.3") is None


async def test_whoever_fills_a_network_keeps_no_relay_of_it_out() -> None:
    places = Places(3, 3)
    strangers = taken(places, *(f"2001:db8::{number}" for number in range(3)))
    (relay,) = taken(places, "2001:db8::a")
    relay.is_stranger = False
    taken(places, *(f"2001:db8::b{number}" for number in range(9)))
    assert all(place.scope.cancel_called for place in strangers)
    assert not relay.scope.cancel_called


async def test_whoever_has_shown_a_certificate_keeps_their_place() -> None:
    places = Places(3, 3)
    relays = taken(places, *["192.0.2.1"] * 3)
    for place in relays:
        place.is_stranger = False
    assert take(places, "192.0.2.2") is None
    assert not any(place.scope.cancel_called for place in relays)


async def test_calls_of_people_keep_half_of_all_places_at_most() -> None:
    places = Places(4, 4)
    persons = taken(places, *["192.0.2.1"] * 4)
    for place in persons:
        place.keep()
    (relay,) = taken(places, "192.0.2.2")
    assert [place.scope.cancel_called for place in (*persons, relay)] == [False, False, True, False, False]
    persons[0].let_go()
    taken(places, "192.0.2.3")
    assert persons[0].scope.cancel_called, "its call has ended"
    assert not persons[1].scope.cancel_called


async def test_a_network_of_ipv6_is_one_crowd() -> None:
    places = Places(3, 1)
    crowd = taken(places, "2001:db8::1", "2001:db8::2", "2001:db8::3")
    taken(places, "2001:db8:0:1::1")
    assert crowd[0].scope.cancel_called
    assert crowd_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert crowd_of("fe80::1%eth0") == "fe80::/64"
    assert crowd_of("?") == "?"


@pytest.mark.whole
async def test_strangers_who_have_all_places_keep_no_other_address_out(site: Site) -> None:
    async with running_gateway(configured(site, "connections = 8")) as running, trio.open_nursery() as nursery:
        relay = running.client("a")
        assert (await relay.post("/v1/relay/poll", json={"wait_seconds": 0})).status_code == 200
        lost = trio.Event()

        async def stranger(*, task_status: trio.TaskStatus[None]) -> None:
            async with connected(running) as stream:
                await stream.do_handshake()
                task_status.started()
                try:
                    await stream.receive_some()
                except trio.BrokenResourceError:
                    pass
                lost.set()

        for _ in range(7):
            await nursery.start(stranger)
        host, _, port = running.gateway.listen.rpartition(":")
        with trio.socket.socket() as other:
            await other.bind(("127.0.0.77", 0))
            await other.connect((host, int(port)))
            with trio.fail_after(10):
                await lost.wait()
            assert (await relay.post("/v1/relay/poll", json={"wait_seconds": 0})).status_code == 200
            nursery.cancel_scope.cancel()


@pytest.mark.whole
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/whoami", 200), ("POST", "/v1/migrations", 503), ("POST", "/v1/decisions", 200)],
)
async def test_no_call_of_a_person_is_ended_to_make_room(
    site: Site, monkeypatch: pytest.MonkeyPatch, method: str, path: str, status: int
) -> None:
    wish = {"vm": "web", "destination": "b"} if method == "POST" else None
    is_known, go_on = trio.Event(), trio.Event()
    resolve_groups = People.resolve_groups

    async def slowly(*args: Any, **options: Any) -> Any:
        is_known.set()
        await go_on.wait()
        return await resolve_groups(*args, **options)

    monkeypatch.setattr(People, "resolve_groups", slowly)
    async with running_gateway(configured(site, "connections = 4")) as running, trio.open_nursery() as nursery:
        codes: list[int] = []

        async def ask() -> None:
            codes.append((await running.person("alice").request(method, path, json=wish)).status_code)
            nursery.cancel_scope.cancel()

        nursery.start_soon(ask)
        with trio.fail_after(10):
            await is_known.wait()
            async with AsyncExitStack() as stack:
                host, _, port = running.gateway.listen.rpartition(":")
                strangers = [
                    await stack.enter_async_context(await trio.open_tcp_stream(host, int(port))) for _ in range(4)
                ]
                assert await strangers[0].receive_some() == b"", "it made room for the last"
        go_on.set()
        with trio.fail_after(10):
            await trio.sleep_forever()
    assert codes == [status]


async def test_whoever_does_not_read_an_answer_makes_room_as_fast(site: Site) -> None:
    is_sending, ended = trio.Event(), trio.Event()

    async def long_answer(_scope: Any, _receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            is_sending.set()
            while True:
                await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        finally:
            ended.set()

    certs = site.certs
    files = TlsFiles(certs / "gateway/tls.pem", certs / "gateway/tls.key", (site.ca,), (certs / "crl.pem",))
    server = HttpsServer(long_answer, make_context(files), Bounds(2, 2, 5.0))
    context = ssl.create_default_context(cafile=str(site.ca))
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(server.serve, "127.0.0.1", 0))
        port = listener.socket.getsockname()[1]
        silent = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context)
        await silent.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with trio.fail_after(10):
            await is_sending.wait()
        async with await trio.open_tcp_stream("127.0.0.1", port):
            with trio.socket.socket() as newcomer:
                await newcomer.bind(("127.0.0.77", 0))
                await newcomer.connect(("127.0.0.1", port))
                with trio.fail_after(10):
                    await ended.wait()
        await trio.aclose_forcefully(silent)
        nursery.cancel_scope.cancel()
