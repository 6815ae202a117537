"""Both hosts' receipts tell one story whatever cuts their exchange: else an audit takes honest hosts for liars."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from certs import layout
from certs.authority import Authority
from certs.files import write_atomically
from certs.tls import ControlPeer, local_leaf_sha256
from gateway.host_receipts import other_than_sent
from tests.transport.relay.conftest import Pair, host_with, serving, until
from tests.transport.relay.cutter import network_to
from tests.transport.relay.hostile import Driver
from tests.transport.relay.test_carriage import VM, listen
from tests.transport.relay.test_hostile_peer import signed_receipt
from tests.transport.relay.test_resumption import LIMITS, Talk, talk
from tests.transport.site import Site
from transport.errors import ConnectionBroken
from transport.relay import source as carrying
from transport.relay.config import split_address
from transport.relay.destination_session import DestinationSession
from transport.relay.host import RelayHost, now, open_host
from transport.relay.receipts import ReceiptFacts, make_receipt, receipt_sha256, verify_peer_receipt
from transport.relay.source_session import SourceSession, exchange_receipts_as_source, keep_receipt
from transport.relay.spool import Spool
from transport.wire.control import Role
from transport.wire.messages import Answer, Open, Receipt

pytestmark = pytest.mark.whole


def kept(host: RelayHost) -> Receipt:
    """The one that waits for this host's gateway."""
    (path,) = host.spool.receipts()
    receipt = json.loads(path.read_bytes())["receipt"]
    return Receipt(receipt["body"], receipt["signature"])


def contradictions(source: Receipt, destination: Receipt) -> list[str]:
    """What `sealane audit reconcile hosts` says of the two."""
    (ours, sent), (theirs, answered) = (
        (json.loads(each.body), {"body_sha256": receipt_sha256(each)}) for each in (source, destination)
    )
    return list(other_than_sent(ours, sent, theirs, answered))


async def test_a_cut_between_the_two_receipts_makes_none_of_them_another(
    site: Site, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = DestinationSession.keep_receipt
    made: list[Receipt] = []

    async def keep_and_cut(session: DestinationSession) -> Receipt:
        made.append(await keep(session))
        if len(made) == 1:
            assert network.cut("control") == 1
        return made[-1]

    monkeypatch.setattr(DestinationSession, "keep_receipt", keep_and_cut)
    said = Talk(b"forth", b"back")
    async with serving(host_with(site, "b", LIMITS)) as (destination, address):
        pair = Pair(site, host_with(site, "a", LIMITS), destination, address)
        async with network_to(split_address(address, "relay")) as network:
            await talk(pair, network, short_path / "in.sock", said, lambda _: trio.sleep_forever())
    assert (said.state, len(made)) == ("completed", 2)
    assert contradictions(kept(pair.source), kept(destination)) == []


@pytest.mark.parametrize("when", ["before it is sent", "before it is answered"])
async def test_a_stream_that_arrived_whole_is_certified_so_though_the_network_ends_before_the_receipts_are_exchanged(
    site: Site, short_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Whoever was told that it failed would send it once more."""
    limits = {"resume_seconds": 1.0, "silence_seconds": 1.0}
    keep, exchange = DestinationSession.keep_receipt, exchange_receipts_as_source

    def end_the_network(moment: str) -> None:
        if when == moment and not network.is_down:
            network.is_down = True
            network.cut("control", "lane")

    async def keep_and_cut(session: DestinationSession) -> Receipt:
        receipt = await keep(session)
        end_the_network("before it is answered")
        return receipt

    async def cut_and_exchange(session: SourceSession, ask: Any) -> None:
        end_the_network("before it is sent")
        await exchange(session, ask)

    monkeypatch.setattr(DestinationSession, "keep_receipt", keep_and_cut)
    monkeypatch.setattr(carrying, "exchange_receipts_as_source", cut_and_exchange)
    said = Talk(b"forth", b"back")
    async with serving(host_with(site, "b", limits)) as (destination, address):
        pair = Pair(site, host_with(site, "a", limits), destination, address)
        async with network_to(split_address(address, "relay")) as network:
            await talk(pair, network, short_path / "in.sock", said, lambda _: trio.sleep_forever())
        await until(lambda: not destination.board.entries and bool(destination.spool.receipts()))
    assert said.state == "completed"
    assert [json.loads(kept(each).body)["outcome"] for each in (pair.source, destination)] == ["completed"] * 2
    assert contradictions(kept(pair.source), kept(destination)) == []


def at_its_end(source: RelayHost, site: Site) -> SourceSession:
    """A session of which nothing but the receipts is left."""
    permit = source.permits.verify(site.permit(vm=VM), source=source.spiffe_id, destination=None)
    facts = ReceiptFacts(Role.SOURCE, permit, "uuid", now(), local_leaf_sha256(source.credentials))
    journal = source.spool.begin(Role.SOURCE, "1" * 32, session_id="1" * 32)
    return SourceSession(source, permit, "", journal, facts, outcome="completed")


async def test_what_a_source_keeps_is_what_it_sent_also_where_no_answer_came(site: Site) -> None:
    source = open_host(site.relay_config("a"))
    session = at_its_end(source, site)
    sent: list[Receipt] = []

    async def ask(ours: Any) -> Receipt:
        sent.append(ours())
        raise ConnectionBroken("the destination has it, and is gone")

    with pytest.raises(ConnectionBroken):
        await exchange_receipts_as_source(session, ask)
    await keep_receipt(session)
    assert kept(source).body == sent[0].body


async def test_what_came_of_it_after_all_is_kept_and_not_what_was_sent(site: Site) -> None:
    source = open_host(site.relay_config("a"))
    session = at_its_end(source, site)
    session.facts.outcome = "completed"
    session.receipt_for_peer()
    session.facts.outcome = "failed"
    await keep_receipt(session)
    assert json.loads(kept(source).body)["outcome"] == "failed"


async def test_the_same_receipt_goes_over_each_connection_but_where_it_shows_another_certificate(site: Site) -> None:
    source = open_host(site.relay_config("a"))
    session = at_its_end(source, site)
    first = session.receipt_for_peer()
    session.facts.connections += 1
    assert session.receipt_for_peer() is first
    session.facts.own_leaf_sha256 = b"\x01" * 32
    second = session.receipt_for_peer()
    assert json.loads(second.body)["source_fingerprint"] == "01" * 32
    session.facts.own_leaf_sha256 = b"\x02" * 32  # on a connection that was lost before it was sent there
    await keep_receipt(session)
    assert kept(source).body == second.body


async def test_what_was_sent_is_kept_by_the_certificate_that_it_names(site: Site) -> None:
    """One that was issued after its `ended` is a fault to `sealane audit verify`."""
    source = open_host(site.relay_config("a"))
    session = at_its_end(source, site)
    sent = session.receipt_for_peer()
    shutil.rmtree(site.certs / "hosts" / "a")
    layout.issue_host(site.certs, "a", datetime.now(UTC))
    source.identity.reload(now())
    session.facts.own_leaf_sha256 = local_leaf_sha256(source.credentials)  # of the last connection, soon lost
    await keep_receipt(session)
    (path,) = source.spool.receipts()
    signer = base64.b64decode(json.loads(path.read_bytes())["receipt"]["chain"][0])
    assert kept(source).body == sent.body
    assert json.loads(sent.body)["source_fingerprint"] == hashlib.sha256(signer).hexdigest()


def certified_until(site: Site, name: str, seconds: float) -> None:
    """The host's files hold a certificate of its key that ends then."""
    folder, moment = site.certs / "hosts" / name, datetime.now(UTC)
    key = load_pem_private_key((folder / "host.key").read_bytes(), None).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    chain = Authority.load(site.certs).issue_host(name, key, moment, timedelta(seconds=seconds))
    write_atomically(folder / "host.pem", b"".join(each.public_bytes(Encoding.PEM) for each in chain))


def is_good_for_a_gateway(host: RelayHost) -> bool:
    """Whether the certificate of what was kept was valid when its session ended: else it is refused for good."""
    (path,) = host.spool.receipts()
    receipt = json.loads(path.read_bytes())["receipt"]
    leaf = x509.load_der_x509_certificate(base64.b64decode(receipt["chain"][0]))
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(base64.b64decode(receipt["signature"]), receipt["body"].encode(), ec.ECDSA(hashes.SHA256()))
    return datetime.fromisoformat(json.loads(receipt["body"])["ended"]) <= leaf.not_valid_after_utc


async def test_a_session_that_outlives_its_certificate_is_certified_by_the_renewed_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where hosts' certificates last for an hour (`host_hours`), say; each end shows its peer what that knows."""
    for name in ("a", "b"):
        certified_until(site, name, 3600)
    source = open_host(site.relay_config("a"))
    permit, theirs = site.permit(vm=VM), source.credentials
    async with (
        listen(site) as listener,
        serving(host_with(site, "b", {"drain_seconds": 0.1})) as (destination, address),
        Driver.connected(address, theirs) as driver,
    ):
        assert isinstance(await driver.offer(permit), Answer)
        await driver.send(Open(0, "memory"))
        async with await listener.accept(), await driver.lane(0):
            session = at_its_end(source, site)
            for name, host in (("a", source), ("b", destination)):
                certified_until(site, name, 36_000)
                host.identity.reload(now())
            later = now() + timedelta(hours=2)
            for module in ("destination_session", "source_session"):
                monkeypatch.setattr(f"transport.relay.{module}.now", lambda: later)
            await driver.send(make_receipt(session.facts, theirs, later))
            answer = await driver.hear()
            assert isinstance(answer, Receipt)
            verify_peer_receipt(answer, driver.conversation.peer)
    assert is_good_for_a_gateway(destination)
    assert kept(destination).body == answer.body
    await keep_receipt(session)
    assert is_good_for_a_gateway(source)


async def test_nor_where_the_destination_shows_another_one(site: Site) -> None:
    """It was renewed meanwhile, and names the new one in the receipt that it answers with."""
    source, there = open_host(site.relay_config("a")), open_host(site.relay_config("b")).credentials
    session = at_its_end(source, site)
    leaf = local_leaf_sha256(there)
    peer = ControlPeer(there.spiffe_id, there.chain[0], leaf, (), "TLSv1.3", "X25519MLKEM768", "TLS_AES_256_GCM_SHA384")
    named = []
    for each in (peer, dataclasses.replace(peer, leaf_sha256=b"\x02" * 32)):
        session.answered(each, session.facts.own_leaf_sha256)
        named.append(json.loads(session.receipt_for_peer().body)["destination_fingerprint"])
    assert named == [leaf.hex(), "02" * 32]


def test_a_clock_that_was_set_back_in_a_session_makes_no_receipt_that_every_gateway_refuses(site: Site) -> None:
    """Its session began on a day that is still to come, by what its journal says."""
    host = open_host(site.relay_config("a"))
    permit = host.permits.verify(site.permit(vm=VM), source=host.spiffe_id, destination=None)
    ended = now()
    facts = ReceiptFacts(Role.SOURCE, permit, "uuid", ended + timedelta(days=1), local_leaf_sha256(host.credentials))
    body = json.loads(make_receipt(facts, host.credentials, ended).body)
    assert body["started"] == body["ended"] == f"{ended:%Y-%m-%dT%H:%M:%S.%fZ}"


async def test_a_receipt_that_the_gateway_has_is_followed_by_none_of_a_later_process(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its source's Bye was lost. A relay that was restarted has no counts, and would certify nothing as carried."""
    begin, journals = Spool.begin, []

    def noted(spool: Spool, *arguments: Any, **facts: Any) -> Any:
        journals.append(begin(spool, *arguments, **facts))
        return journals[-1]

    monkeypatch.setattr(Spool, "begin", noted)
    permit, source = site.permit(vm=VM), open_host(site.relay_config("a"))
    async with listen(site) as listener, serving(open_host(site.relay_config("b"))) as (destination, address):
        async with Driver.connected(address, source.credentials) as driver:
            assert isinstance(await driver.offer(permit), Answer)
            await driver.send(Open(0, "memory"))
            async with await listener.accept(), await driver.lane(0):
                await driver.send(signed_receipt(source, permit))
                assert isinstance(await driver.hear(), Receipt)
        await until(lambda: journals[0].state == "discarded")
        (path,) = destination.spool.receipts()
        destination.spool.forget_receipt(path, path.stat().st_mtime_ns)  # as once the gateway has logged it
    os.close(journals[0]._ownership)  # as a process that has ended does
    async with serving(open_host(site.relay_config("b"))) as (restarted, _):
        await trio.sleep(1.0)
        assert restarted.spool.receipts() == []
