"""A relay with two gateways: each is told what it must know, and one that is away keeps nothing from the other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
import trio

from tests.transport.relay.conftest import until
from tests.transport.relay.fake_gateway import Answer, FakeGateway, serving_https
from tests.transport.site import Site
from transport.relay.gateway_answers import Assignment, Migrate
from transport.relay.gateway_link import GatewayLink
from transport.relay.gateway_links import GatewayLinks
from transport.relay.host import RelayHost, open_host
from transport.relay.wish import NotAdmitted, Wish


@pytest.fixture
def both(site: Site) -> Iterator[tuple[RelayHost, FakeGateway, FakeGateway]]:
    first, second = FakeGateway(), FakeGateway()
    with serving_https(site, first), serving_https(site, second):
        config = site.relay_config("a")
        section = msgspec.structs.replace(config.gateway, url=first.url, others=[second.url])
        yield open_host(msgspec.structs.replace(config, gateway=section)), first, second


def names(host: RelayHost) -> set[str]:
    return {path.name for path in (host.spool.run_dir.parent / "receipts").iterdir()}


async def never(_: Assignment) -> None:
    raise AssertionError("nothing was assigned")


async def hear(_version: str | None, _link: GatewayLink) -> None:
    pass


@contextlib.asynccontextmanager
async def running(host: RelayHost) -> AsyncIterator[GatewayLinks]:
    links = GatewayLinks(host)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(links.run, never, hear)
        yield links
        nursery.cancel_scope.cancel()
    await links.close()


RECEIPT = json.dumps({"receipt": {"body": "b"}, "permit": "the permit"}).encode()


async def test_a_receipt_is_kept_until_both_have_it(both: tuple[RelayHost, FakeGateway, FakeGateway]) -> None:
    host, first, second = both
    second.answer = lambda path, _: (503, b"") if path == "/v1/receipts" else None
    host.spool.keep_receipt("r", RECEIPT)
    async with running(host):
        await until(lambda: bool(first.paths("/v1/receipts")))
        assert names(host) == {"r.json"}
        second.answer = lambda _path, _body: None
        await until(lambda: names(host) == set(), 20)
    assert first.paths("/v1/receipts") == second.paths("/v1/receipts") == [{"receipt": {"body": "b"}}], "once, to each"
    assert first.paths("/v1/relay/permit") == []


async def test_a_newer_receipt_that_comes_just_as_the_older_one_is_forgotten_goes_out_too(
    both: tuple[RelayHost, FakeGateway, FakeGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session was taken up again, and both hosts' receipts name each other's last."""
    host, first, second = both
    forget = host.spool.forget_receipt
    forgotten: list[Any] = []

    def keep_newer_and_forget(*arguments: Any) -> None:
        if not forgotten:
            host.spool.keep_receipt("r", RECEIPT.replace(b'"b"', b'"newer"'))
        forgotten.append(arguments)
        forget(*arguments)

    monkeypatch.setattr(host.spool, "forget_receipt", keep_newer_and_forget)
    host.spool.keep_receipt("r", RECEIPT)
    async with running(host):
        await until(lambda: names(host) == set(), 20)
    for gateway in (first, second):
        assert [each["receipt"]["body"] for each in gateway.paths("/v1/receipts")] == ["b", "newer"]


async def test_a_gateway_that_did_not_permit_it_is_shown_the_permit_first(
    both: tuple[RelayHost, FakeGateway, FakeGateway],
) -> None:
    host, _, second = both

    def forbid_at_first(path: str, _: bytes) -> Answer | None:
        return (403, b"") if path == "/v1/receipts" and not second.paths("/v1/relay/permit") else None

    second.answer = forbid_at_first
    host.spool.keep_receipt("r", RECEIPT)
    async with running(host):
        await until(lambda: names(host) == set(), 20)
    assert second.paths("/v1/relay/permit") == [{"permit": "the permit"}]
    assert len(second.paths("/v1/receipts")) == 1


async def test_what_both_refuse_is_set_aside_and_what_one_takes_is_not(
    both: tuple[RelayHost, FakeGateway, FakeGateway],
) -> None:
    host, first, second = both
    first.answer = lambda path, body: (400, b"") if path == "/v1/receipts" and b"bad" in body else None
    second.answer = lambda path, _: (403, b"") if path in {"/v1/receipts", "/v1/relay/permit"} else None
    host.spool.keep_receipt("bad", b'{"receipt": {"body": "bad"}}')
    host.spool.keep_receipt("good", RECEIPT)
    async with running(host):
        await until(lambda: names(host) == {"bad.refused"}, 20)
    assert len(first.paths("/v1/receipts")) == 1


async def test_of_receipts_that_newer_ones_have_replaced_nothing_is_remembered(
    both: tuple[RelayHost, FakeGateway, FakeGateway],
) -> None:
    """A peer that comes back again and again, and asks each time, has as many made as it likes."""
    host, first, second = both
    second.answer = lambda path, _: (503, b"") if path == "/v1/receipts" else None
    links = GatewayLinks(host)
    for number in range(9):
        host.spool.keep_receipt("r", RECEIPT)
        await links._deliver(links.all[0])
        assert len(first.paths("/v1/receipts")) == number + 1
    assert (len(links._taken), len(links._refused)) == (1, 1)
    second.answer = lambda _path, _body: None
    await links._deliver(links.all[1])
    await links._deliver(links.all[0])
    assert (names(host), links._taken, links._refused) == (set(), {}, {})
    await links.close()


PERMITTED = json.dumps(
    {
        "kind": "migrate",
        "migration_id": "m",
        "permit": "p",
        "destination_address": "127.0.0.1:1",
        "deadline_seconds": 60,
        "downtime_limit_ms": 300,
    }
).encode()


async def test_whoever_answers_first_admits(both: tuple[RelayHost, FakeGateway, FakeGateway]) -> None:
    host, first, second = both
    wish = Wish("11111111-2222-4333-8444-555555555555", "web", "b", ("memory",), 0)
    first.answer = lambda path, _: (503, b"") if path == "/v1/relay/admission" else None
    second.answer = lambda path, _: (200, PERMITTED) if path == "/v1/relay/admission" else None
    links = GatewayLinks(host)
    assert (await links.admit(wish)).migration_id == "m"
    denied = json.dumps({"kind": "denied", "message": "no"}).encode()
    first.answer = lambda path, _: (200, denied) if path == "/v1/relay/admission" else None
    with pytest.raises(NotAdmitted, match="no"):
        await links.admit(wish)
    assert len(second.paths("/v1/relay/admission")) == 1, "a denial is an answer: the other one is not asked"
    first.answer = second.answer = lambda path, _: (503, b"") if path == "/v1/relay/admission" else None
    with pytest.raises(NotAdmitted, match="cannot be asked"):
        await links.admit(wish)
    await links.close()


async def test_whose_a_permit_is_is_remembered_of_the_newest_alone(
    both: tuple[RelayHost, FakeGateway, FakeGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what clients of libvirt had asked for, each was kept for as long as the relay ran."""
    monkeypatch.setattr("transport.relay.gateway_links._REMEMBERED", 3)
    links = GatewayLinks(both[0])
    for number in range(9):
        links._of(links.all[1], Migrate(f"m{number}", "", "", 1.0, 1))
    assert list(links._origin) == ["m6", "m7", "m8"]
    await links.close()
