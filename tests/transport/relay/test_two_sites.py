"""Between hosts of two sites: two CAs, two gateways, two permits in one Offer; whatever is not both is refused."""

from __future__ import annotations

import hashlib
import json
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from certs.federation import bundle_document
from certs.files import read_certificates
from policy.permit import Limits, Requirements, verify_permit
from tests.transport.relay.conftest import serving, until
from tests.transport.relay.cutter import network_to
from tests.transport.relay.test_carriage import dial, listen
from tests.transport.relay.test_resumption import Talk, is_whole, talk
from tests.transport.site import Site
from transport.errors import OfferRefused, RefusalCode
from transport.relay.config import split_address
from transport.relay.config_sections import SiteSection
from transport.relay.host import RelayHost, open_host
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source

VM = "11111111-2222-4333-8444-555555555555"
WEST, EAST = "west.example.test", "east.example.test"


@dataclass
class Sites:
    """Host `a` of the west, host `b` of the east; each pins the other site."""

    west: Site
    east: Site

    @classmethod
    def lay_out(cls, folder: Path) -> Sites:
        west = Site.lay_out(folder / "w", ("a", "c"), WEST, "log.west.example.test/1")
        east = Site.lay_out(folder / "e", ("b", "d"), EAST, "log.east.example.test/1")
        return cls(west, east)

    def parties(self, **changes: Any) -> dict[str, Any]:
        there = self.east.spiffe("b")
        said = {"vm": VM, "source": self.west.spiffe("a"), "destination": there, "aud": there}
        return {**said, "migration_id": uuid.uuid4().hex, **changes}

    def permits(self, **changes: Any) -> tuple[str, str]:
        """The west's and the east's, of one migration."""
        said = self.parties(**changes)
        return self.west.permit(**said), self.east.permit(**said)

    def host(self, name: str, *, knows_other: bool = True, **hypervisor: Any) -> RelayHost:
        mine, other = (self.west, self.east) if name in "ac" else (self.east, self.west)
        config = mine.relay_config(name, **hypervisor)
        sites = [section_of(other)] if knows_other else []
        return open_host(msgspec.structs.replace(config, sites=sites))


def section_of(other: Site) -> SiteSection:
    gateway = other.certs / "gateway"
    bundle = other.folder / "bundle.json"
    bundle.write_text(json.dumps(bundle_document(read_certificates(other.certs / "ca.pem"), 1)))
    return SiteSection(
        trust_domain=other.domain,
        bundle=str(bundle),
        crls=[str(other.certs / "crl.pem")],
        permit_keys=[str(gateway / "permit.pub")],
        log_keys=[str(gateway / "log.vkey")],
    )


@pytest.fixture
def sites(short_path: Path) -> Sites:
    return Sites.lay_out(short_path)


@dataclass
class Crossing:
    """Source host `a` of the west, and a relay that runs as destination host `b` of the east."""

    sites: Sites
    source: RelayHost
    destination: RelayHost
    address: str

    async def carry(self, permits: tuple[str, str | None], path: Path) -> News:
        async def tell(_: News) -> None:
            pass

        order = MigrationOrder(permits[0], self.address, other_permit=permits[1])
        return await carry_as_source(self.source, order, tell, trio.Event(), path)

    @property
    def journals(self) -> list[Path]:
        return [*(self.destination.spool.run_dir.parent / "journals").iterdir()]


@pytest.fixture
async def crossing(sites: Sites) -> AsyncIterator[Crossing]:
    async with serving(sites.host("b")) as (destination, address):
        yield Crossing(sites, sites.host("a"), destination, address)


@pytest.mark.whole
async def test_a_stream_crosses_on_two_permits_and_each_receipt_names_both(
    crossing: Crossing, short_path: Path
) -> None:
    listener = listen(crossing.sites.east)
    path = short_path / "in.sock"
    permits = crossing.sites.permits()
    told: list[News] = []
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def carry() -> None:
                told.append(await crossing.carry(permits, path))

            nursery.start_soon(carry)
            source = await dial(path)
            destination = await listener.accept()
            await source.send_all(b"x" * 100)
            await source.send_eof()
            assert await destination.receive_some(200) == b"x" * 100
            await destination.aclose()
            await source.aclose()
    await listener.aclose()
    assert told[0].state == "completed"
    bodies = [
        json.loads(json.loads(host.spool.receipts()[0].read_bytes())["receipt"]["body"])
        for host in (crossing.source, crossing.destination)
    ]
    west, east = (hashlib.sha256(permit.encode()).hexdigest() for permit in permits)
    assert [(body["permit_sha256"], body["other_permit_sha256"]) for body in bodies] == [(west, east), (east, west)]
    assert bodies[0]["migration_id"] == bodies[1]["migration_id"]
    assert bodies[0]["jti"] != bodies[1]["jti"], "each site's own"
    for body, site in zip(bodies, (crossing.sites.west, crossing.sites.east), strict=True):
        assert body["checkpoint"].startswith(f"log.{site.domain}/1\n"), "proof of the receipt's own site"


@pytest.mark.whole
async def test_both_permits_are_spent_by_one_use(crossing: Crossing, short_path: Path) -> None:
    west, east = crossing.sites.permits()
    with pytest.raises(OfferRefused) as refused, trio.fail_after(20):
        await crossing.carry((west, None), short_path / "in.sock")
    assert refused.value.code is RefusalCode.PERMIT_FORMAT, "one is refused before anything is dialled"
    listener = listen(crossing.sites.east)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crossing.carry, (west, east), short_path / "in.sock")
            source = await dial(short_path / "in.sock")
            destination = await listener.accept()
            for stream in (source, destination):
                await stream.aclose()
    claims = verify_permit(west, crossing.destination.permits.sites[WEST].permit_keys).claims
    again = crossing.sites.east.permit(**crossing.sites.parties(migration_id=claims.migration_id))
    news = await crossing.carry((west, again), short_path / "in2.sock")
    assert news.state == "failed", "a new permit of the east does not make the west's fresh again"
    assert "permit_replayed" in news.message
    assert news.is_spent
    await listener.aclose()


def desk_refusal(host: RelayHost, sites: Sites, own: str, other: str | None) -> RefusalCode:
    with pytest.raises(OfferRefused) as refused:
        host.permits.verify(own, other, source=sites.west.spiffe("a"), destination=sites.east.spiffe("b"))
    return refused.value.code


OTHERS: list[tuple[str, dict[str, Any], RefusalCode]] = [
    ("another VM", {"vm": "99999999-2222-4333-8444-555555555555"}, RefusalCode.PERMIT_VM),
    ("another migration", {"migration_id": "m" * 32}, RefusalCode.PERMIT_FORMAT),
    ("another source", {"source": f"spiffe://{WEST}/host/c"}, RefusalCode.PERMIT_PARTIES),
    (
        "another destination",
        {"destination": f"spiffe://{EAST}/host/d", "aud": f"spiffe://{EAST}/host/d"},
        RefusalCode.PERMIT_PARTIES,
    ),
    (
        "expired",
        {
            **dict.fromkeys(("iat", "nbf"), 1_700_000_000),
            **dict.fromkeys(("exp", "session_until", "recover_until"), 1_700_000_060),
        },
        RefusalCode.PERMIT_TIMES,
    ),
    ("other ports", {"ports": ("disks", "memory")}, RefusalCode.PERMIT_PORTS),
    ("a newer CRL", {"minimum_crl_number": 1000}, RefusalCode.PERMIT_REQUIREMENTS),
    (
        "the VM's UUID checked",
        {"requirements": Requirements(content_digest=False, stream_inspection=False, vm_binding=True)},
        RefusalCode.PERMIT_REQUIREMENTS,
    ),
]


@pytest.mark.parametrize("relay", ["a", "b"])
@pytest.mark.parametrize(("change", "code"), [each[1:] for each in OTHERS], ids=[each[0] for each in OTHERS])
def test_the_other_sites_permit_must_be_as_good_and_of_the_same_migration(
    sites: Sites, relay: str, change: dict[str, Any], code: RefusalCode
) -> None:
    host = sites.host(relay)
    said = sites.parties()
    mine, theirs = (sites.west, sites.east) if relay == "a" else (sites.east, sites.west)
    assert host.permits.verify(mine.permit(**said), theirs.permit(**said), source=None, destination=None).other
    assert desk_refusal(host, sites, mine.permit(**said), theirs.permit(**{**said, **change})) is code


@pytest.mark.parametrize("relay", ["a", "b"])
def test_what_is_not_one_permit_of_each_gateway_is_refused(sites: Sites, relay: str) -> None:
    host = sites.host(relay)
    said = sites.parties()
    west, east = sites.west.permit(**said), sites.east.permit(**said)
    own, other = (west, east) if relay == "a" else (east, west)
    twin = sites.west.permit(**said) if relay == "a" else sites.east.permit(**said)
    for pair, code in (
        ((own, None), RefusalCode.PERMIT_FORMAT),  # one is missing
        ((own, own), RefusalCode.PERMIT_SIGNATURE),  # one twice
        ((own, twin), RefusalCode.PERMIT_SIGNATURE),  # two of one gateway
        ((other, own), RefusalCode.PERMIT_SIGNATURE),  # each in the other's place
        ((other, other), RefusalCode.PERMIT_SIGNATURE),
    ):
        assert desk_refusal(host, sites, *pair) is code


def test_the_other_permit_needs_its_own_sites_log(sites: Sites) -> None:
    """A gateway whose permit key was stolen, without its log: the proof is of nothing that is pinned for it."""
    said = sites.parties()
    claims = sites.west.claims(**said)
    forged = sites.west.seal(claims, sites.east.proof(claims))
    assert desk_refusal(sites.host("b"), sites, sites.east.permit(**said), forged) is RefusalCode.PERMIT_PROOF


def test_a_site_that_is_not_configured_is_nobody(sites: Sites) -> None:
    west, east = sites.permits()
    for name, pair in (("a", (west, east)), ("b", (east, west))):
        assert desk_refusal(sites.host(name, knows_other=False), sites, *pair) is RefusalCode.PERMIT_PARTIES


def test_a_second_permit_within_one_site_is_refused(sites: Sites) -> None:
    there = sites.west.spiffe("c")
    said = sites.parties(destination=there, aud=there)
    with pytest.raises(OfferRefused) as refused:
        sites.host("a").permits.verify(
            sites.west.permit(**said), sites.east.permit(**said), source=None, destination=None
        )
    assert refused.value.code is RefusalCode.PERMIT_FORMAT


def test_what_is_left_is_what_both_allow(sites: Sites) -> None:
    said = sites.parties()
    west = sites.west.claims(**said, limits=Limits(8, 0))
    session_until = west.session_until - 100
    east = sites.east.claims(**said, limits=Limits(16, 5_000_000), session_until=session_until)
    token, other = sites.west.seal(west, sites.west.proof(west)), sites.east.seal(east, sites.east.proof(east))
    pair = sites.host("a").permits.verify(token, other, source=None, destination=None)
    assert pair.claims.limits == Limits(8, 5_000_000)
    assert pair.claims.session_until == session_until
    assert pair.token == token


@dataclass
class _Pair:
    """A crossing as `talk` wants it: where the destination's programs are, and how a stream is carried."""

    site: Site
    crossing: Crossing
    address: str

    async def carry(self, _permit: str, path: Path) -> News:
        self.crossing.address = self.address
        return await self.crossing.carry(self.crossing.sites.permits(), path)


@pytest.mark.whole
async def test_a_stream_between_two_sites_goes_on_after_a_cut(sites: Sites, short_path: Path) -> None:
    """A resumption offers both permits again, in their order, and neither is spent a second time."""

    def host(name: str) -> RelayHost:
        made = sites.host(name)
        limits = msgspec.structs.replace(made.config.limits, resume_seconds=20.0, silence_seconds=2.0)
        return replace(made, config=msgspec.structs.replace(made.config, limits=limits))

    said = Talk(random.Random(1).randbytes(8_000_000), random.Random(2).randbytes(1_000_000))
    async with serving(host("b")) as (destination, address):
        crossing = Crossing(sites, host("a"), destination, address)
        async with network_to(split_address(address, "relay")) as network:

            async def disturb(talked: Talk) -> None:
                await until(lambda: talked.sizes["forth"] > 2_000_000, 60)
                assert network.cut("control", "lane")

            pair = _Pair(sites.east, crossing, network.address)
            await talk(pair, network, short_path / "in.sock", said, disturb)  # type: ignore[arg-type]
            assert network.controls >= 2
    assert said.state == "completed"
    assert is_whole(said)
