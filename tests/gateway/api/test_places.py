"""Places for connections: bounded, and when all are taken, no crowd keeps out whoever has fewer."""

from __future__ import annotations

import pytest
import trio

from gateway.api.places import Place, Places
from gateway.crowds import crowd_of
from gateway.starter import Site
from tests.gateway.api.test_https import configured, connected
from tests.gateway.conftest import running_gateway


def taken(places: Places, *addresses: str) -> list[Place]:
    found = [places.take(address) for address in addresses]
    assert None not in found
    return [place for place in found if place is not None]


def test_an_address_has_so_many_and_all_have_so_many() -> None:
    places = Places(4, 2)
    first = taken(places, "192.0.2.1", "192.0.2.1")
    assert places.take("192.0.2.1") is None
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


async def test_nobody_makes_room_for_an_equal_or_for_their_own() -> None:
    places = Places(2, 2)
    taken(places, "192.0.2.1", "192.0.2.2")
    assert places.take("192.0.2.3") is None
    full = Places(2, 4)
    taken(full, "192.0.2.1", "192.0.2.1")
    assert full.take("192.0.2.1") is None


async def test_whoever_has_shown_a_certificate_keeps_their_place() -> None:
    places = Places(3, 3)
    relays = taken(places, *["192.0.2.1"] * 3)
    for place in relays:
        place.is_stranger = False
    assert places.take("192.0.2.2") is None
    assert not any(place.scope.cancel_called for place in relays)


async def test_a_network_of_ipv6_is_one_crowd() -> None:
    places = Places(3, 1)
    crowd = taken(places, "2001:db8::1", "2001:db8::2", "2001:db8::3")
    assert places.take("2001:db8::4") is None
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
