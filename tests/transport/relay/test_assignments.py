"""What a relay is asked for: a permit is fetched before anything begins, and without it nothing does."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from tests.transport.relay.conftest import until
from tests.transport.relay.fake_gateway import Answer, FakeGateway, serving_https
from tests.transport.relay.test_evacuations import VM, order, prepared
from tests.transport.site import Site
from transport.hypervisors.errors import HypervisorUnreachable
from transport.relay.assignments import Assignments
from transport.relay.gateway_answers import (
    GatewayAway,
    Migrate,
    TakeEvacuation,
    TakePermit,
    WithdrawEvacuation,
    decode_assignments,
)
from transport.relay.gateway_link import GatewayLink
from transport.relay.gateway_links import GatewayLinks
from transport.relay.host import RelayHost, open_host
from transport.relay.wish import NotAdmitted, Wish

FETCH = "/v1/relay/assignment"
WAITS = {
    "kind": "migrate",
    "migration_id": "m1",
    "permit": "not a permit",
    "destination_address": "127.0.0.9:1",
    "deadline_seconds": 60,
    "downtime_limit_ms": 300,
}


@pytest.fixture
def answering(site: Site) -> Iterator[tuple[RelayHost, FakeGateway]]:
    with serving_https(site, FakeGateway()) as gateway:
        config = site.relay_config("a")
        section = msgspec.structs.replace(config.gateway, url=gateway.url)
        yield open_host(msgspec.structs.replace(config, gateway=section)), gateway


async def nobody_asks(_wish: Wish) -> None:
    raise NotAdmitted("nobody asks here")


async def test_a_permit_that_was_withdrawn_begins_nothing_and_one_that_waits_is_fetched_when_it_is_told_again(
    answering: tuple[RelayHost, FakeGateway],
) -> None:
    host, gateway = answering
    answers: list[Answer] = [(403, b"{}"), (503, b"{}"), (200, msgspec.json.encode(WAITS))]
    gateway.answer = lambda path, _body: answers.pop(0) if path == FETCH else None
    links = GatewayLinks(host)
    async with trio.open_nursery() as nursery:
        assignments = Assignments(host, nursery, links, nobody_asks, lambda _: None)  # type: ignore[arg-type]
        for left in (2, 1):
            await assignments.take(TakePermit("m1"))
            await assignments.take(TakePermit("m1"))  # told twice: asked once
            await until(lambda left=left: len(answers) == left and not assignments.are_under_way)  # type: ignore[misc]
        assert gateway.taken == []
        await assignments.take(TakePermit("m1"))
        await until(lambda: bool(gateway.paths("/v1/relay/progress")))
        (said,) = gateway.paths("/v1/relay/progress")
        assert (said["migration_id"], said["state"]) == ("m1", "failed"), "begun, and its permit is no good"
        await until(lambda: not assignments.are_under_way)
        nursery.cancel_scope.cancel()
    await links.close()


async def test_a_gateway_that_makes_up_assignments_does_not_fill_the_relays_log(
    answering: tuple[RelayHost, FakeGateway],
) -> None:
    host, gateway = answering
    gateway.answer = lambda _path, _body: (403, b"{}")
    links = GatewayLinks(host)
    with capture_logs() as said:
        async with trio.open_nursery() as nursery:
            assignments = Assignments(host, nursery, links, nobody_asks, lambda _: None)  # type: ignore[arg-type]
            for number in range(200):
                await assignments.take(TakePermit(f"p{number}"))
                await assignments.take(msgspec.convert({**WAITS, "migration_id": f"m{number}"}, Migrate))
                await assignments.take(WithdrawEvacuation(f"{number}"))
                await assignments.take(TakeEvacuation(f"{number:032x}"))
    lines = Counter(each["event"] for each in said)
    assert lines["migration not begun"] >= 20, "what fails of a host that is emptied is all told"
    assert lines["a permit was not fetched"] >= 1
    assert lines["evacuation permits could not be withdrawn"] >= 1
    assert max(lines.values()) < 100, lines
    await links.close()


async def test_of_a_hypervisor_that_cannot_be_asked_the_gateway_hears_what_to_do(site: Site) -> None:
    with serving_https(site, FakeGateway()) as gateway:
        config = site.relay_config("a", kind="qmp", qmp_socket="/nonexistent/{uuid}.qmp")
        section = msgspec.structs.replace(config.gateway, url=gateway.url)
        host = open_host(msgspec.structs.replace(config, gateway=section))
        links = GatewayLinks(host)
        async with trio.open_nursery() as nursery:
            assignments = Assignments(host, nursery, links, nobody_asks, lambda _: None)  # type: ignore[arg-type]
            order = {**WAITS, "permit": site.permit()}
            await assignments.take(msgspec.convert(order, Migrate))
            await until(lambda: bool(gateway.paths("/v1/relay/progress")))
            nursery.cancel_scope.cancel()
        (said,) = gateway.paths("/v1/relay/progress")
        assert said["state"] == "failed"
        assert said["message"].endswith(HypervisorUnreachable.next_step), said["message"]
        await links.close()


async def test_a_relay_that_takes_nothing_new_fetches_nothing_and_says_so(
    answering: tuple[RelayHost, FakeGateway],
) -> None:
    host, gateway = answering
    links = GatewayLinks(host)
    host.board.is_draining = True
    async with trio.open_nursery() as nursery:
        assignments = Assignments(host, nursery, links, nobody_asks, lambda _: None)  # type: ignore[arg-type]
        await assignments.take(TakePermit("m1"))
        await until(lambda: bool(gateway.paths("/v1/relay/progress")))
        nursery.cancel_scope.cancel()
    assert gateway.paths(FETCH) == []
    assert "about to be restarted" in gateway.paths("/v1/relay/progress")[0]["message"]
    await links.close()


@pytest.mark.parametrize("said", [{**WAITS, "migration_id": "m2"}, {"kind": "cancel", "migration_id": "m1"}, None])
async def test_what_is_no_permit_of_that_migration_is_not_taken(
    answering: tuple[RelayHost, FakeGateway], said: object
) -> None:
    host, gateway = answering
    gateway.answer = lambda _path, _body: (200, msgspec.json.encode(said))
    link = GatewayLink(host)
    with pytest.raises(GatewayAway, match=r"another migration|not understood"):
        await link.fetch_permit("m1")
    await link.close()


def test_what_tells_of_a_permit_is_decoded_strictly() -> None:
    told = decode_assignments(b'{"assignments":[{"kind":"permit","migration_id":"m1"}]}')
    assert told.assignments == [TakePermit("m1")]
    with pytest.raises(msgspec.ValidationError):
        decode_assignments(b'{"assignments":[{"kind":"permit","migration_id":"m1","permit":"x"}]}')


async def test_a_gateway_has_no_more_begun_than_a_relay_can_hold(
    answering: tuple[RelayHost, FakeGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells again of what it has not heard of; one that was taken over told of more at each poll, without end."""
    monkeypatch.setattr("transport.relay.assignments._MAX_ORDERS", 3)
    host, gateway = answering
    may_answer, asked = threading.Event(), list[str]()

    def hold(path: str, body: bytes) -> Answer:
        asked.append(path)
        may_answer.wait(10)
        return 503, b"{}"

    gateway.answer = hold
    links = GatewayLinks(host)
    async with trio.open_nursery() as nursery:
        assignments = Assignments(host, nursery, links, nobody_asks, lambda _: None)  # type: ignore[arg-type]
        for number in range(20):
            await assignments.take(TakePermit(f"m{number}"))
            await assignments.take(TakeEvacuation(f"{number:032x}"))
        await until(lambda: len(asked) == 3 + 4)
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert len(asked) == 3 + 4
        may_answer.set()
        nursery.cancel_scope.cancel()
    await links.close()


async def test_an_evacuation_begins_also_where_the_gateway_has_filled_every_place(
    site: Site, answering: tuple[RelayHost, FakeGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for when a gateway is of no use; one that never began stayed noted as used, and its guest where it was."""
    monkeypatch.setattr("transport.relay.assignments._MAX_ORDERS", 0)
    host, _ = answering
    host.evacuations.keep(prepared(site, order(site, VM, "b")))
    links = GatewayLinks(host)
    async with trio.open_nursery() as nursery:
        evacuating = Assignments(host, nursery, links, nobody_asks, lambda _: None).evacuating  # type: ignore[arg-type]
        begun = str((await evacuating.begin("web", "b"))["migration_id"])
        # Nobody listens at that destination.
        await until(lambda: (evacuating.outcome(begun) or {})["state"] == "failed", 5)
        nursery.cancel_scope.cancel()
    await links.close()
