"""The shipper and a real Elasticsearch that is killed, frozen, put behind a liar, …: nothing missing, nothing twice.

Certificates are shown by a proxy in front of the node: what is wrong with them is seen before a byte reaches the node.
"""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trio
from elasticsearch import Elasticsearch

from audit.siem.document import LogEntry
from audit.siem.elastic import ElasticSink
from audit.siem.reconcile import Findings, reconcile
from audit.siem.shipper import Shipper
from audit.siem.sink import SinkAway
from audit.siem.status import SinkEvent, Terms
from certs.files import write_atomically
from tests.audit.samples import ORIGIN
from tests.audit.siem import sink_contract as contract
from tests.audit.siem.certificates import TestAuthority
from tests.audit.siem.conftest import Indices
from tests.audit.siem.elastic_receiver import ElasticReceiver
from tests.audit.siem.entries import FakeLog, log_entry
from tests.elasticsearch_node.process import START_SECONDS
from tests.elasticsearch_node.proxy import Answer, Behaviour, Passing, all_created, misbehaving, too_many

pytestmark = [pytest.mark.real, pytest.mark.whole]

KILLS = 2  # of the node's process; `make soak-sinks` kills it a hundred times
CUTS = 30  # of connections
TERMS = Terms(batch_entries=50, deadline_seconds=5, longest_pause_seconds=0.05, poll_seconds=0.01)


@pytest.fixture
def receiver(indices: Indices) -> ElasticReceiver:
    return ElasticReceiver(indices)


async def test_it_keeps_the_contract_of_all_sinks(receiver: ElasticReceiver) -> None:
    await contract.arrives_in_order(receiver)


async def test_two_deliveries_at_once_do_not_mix(receiver: ElasticReceiver) -> None:
    await contract.two_at_once_do_not_mix(receiver)


async def test_a_frozen_server_costs_a_deadline_and_no_entry(receiver: ElasticReceiver) -> None:
    await contract.a_frozen_receiver_costs_a_deadline_and_no_entry(receiver)


async def test_cancelled_anywhere_it_leaves_no_half_entry(receiver: ElasticReceiver) -> None:
    await contract.cancelled_anywhere_it_sends_no_half_entry(receiver, rounds=8, seed=1)


async def test_a_server_that_is_down_is_away_and_gets_all_when_it_is_back(receiver: ElasticReceiver) -> None:
    await contract.is_away_while_it_is_down_and_delivers_when_it_is_back(receiver)


async def test_killed_at_random_it_misses_nothing_and_holds_nothing_twice(
    receiver: ElasticReceiver, tmp_path: Path
) -> None:
    missing = await contract.killed_at_random_it_misses_nothing(
        receiver, tmp_path, KILLS, seed=2, restart_seconds=START_SECONDS
    )
    held = receiver.held()
    assert missing == []
    assert len(held) == len(set(held)) == 200 + 100 * KILLS


# Behind something that misbehaves


@contextmanager
def behind(indices: Indices, folder: Path, behave: Behaviour) -> Iterator[ElasticSink]:
    authority = TestAuthority(folder)
    pair = authority.issue("localhost")
    with misbehaving(indices.node.url, indices.node.ca, pair.certificate, pair.key, behave) as url:
        context = ssl.create_default_context(cafile=str(authority.bundle))
        client = Elasticsearch(url, api_key=indices.key, ssl_context=context, request_timeout=4, max_retries=0)
        yield ElasticSink("elastic", client, indices.name)
        client.close()


async def ship(sink: ElasticSink, folder: Path, log: FakeLog, end: Callable[[Shipper], bool] | None = None) -> Shipper:
    shipper = Shipper(sink, log, folder, write_atomically, quiet, TERMS)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(shipper.run)
            while not (shipper.status.position == log.size if end is None else end(shipper)):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    return shipper


async def quiet(event: SinkEvent) -> None:
    """What is told is the shipper's own test."""


async def test_connections_that_are_cut_before_or_after_the_work_cost_nothing(indices: Indices, tmp_path: Path) -> None:
    chance = random.Random(3)
    cuts = 0

    def behave(passing: Passing) -> Answer | None:
        nonlocal cuts
        if cuts >= CUTS or chance.random() < 0.3:
            return passing.forward()
        cuts += 1
        if chance.random() < 0.5:
            passing.forward()  # the work is done, and nobody hears of it
        return None

    with behind(indices, tmp_path, behave) as sink:
        await ship(sink, tmp_path, FakeLog(800))
    stored = indices.stored()
    assert cuts > CUTS // 2
    assert len(stored) == len(set(stored)) == 800


async def test_a_storm_of_429_is_waited_out_as_the_server_asks(indices: Indices, tmp_path: Path) -> None:
    refused: list[float] = []

    def behave(passing: Passing) -> Answer | None:
        if passing.is_bulk and len(refused) < 20:
            refused.append(0)
            return too_many("0" if len(refused) % 2 else "100000")
        return passing.forward()

    with behind(indices, tmp_path, behave) as sink:
        await ship(sink, tmp_path, FakeLog(300))
    assert len(refused) == 20
    assert len(indices.stored()) == 300


async def test_a_server_that_says_yes_and_drops_is_found_by_reconciliation(indices: Indices, tmp_path: Path) -> None:
    def behave(passing: Passing) -> Answer | None:
        return all_created(passing) if passing.is_bulk else passing.forward()

    log = FakeLog(120)
    await indices.sink.deliver([])  # nothing: the template alone
    with behind(indices, tmp_path, behave) as sink:
        await ship(sink, tmp_path, log)
    entries = [LogEntry(ORIGIN, index, one) for index, one in enumerate(log.entries)]
    findings = Findings(0, 120)
    await indices.sink.refresh()
    await reconcile(indices.sink, entries, findings)
    assert findings.missing == list(range(120))
    repaired = Findings(0, 120)
    await reconcile(indices.sink, entries, repaired, deliver=indices.sink.deliver)
    assert (repaired.agrees, repaired.repaired) == (True, 120)


async def test_an_answer_about_other_documents_is_not_believed(indices: Indices, tmp_path: Path) -> None:
    def behave(passing: Passing) -> Answer | None:
        if not passing.is_bulk:
            return passing.forward()
        status, headers, body = all_created(passing)
        return status, headers, body.replace(b"-1", b"-7", 1)

    with behind(indices, tmp_path, behave) as sink, pytest.raises(SinkAway, match="other documents than were sent"):
        await sink.deliver(contract.documents(0, 5))


async def test_what_is_not_elasticsearch_is_not_believed(indices: Indices, tmp_path: Path) -> None:
    def behave(_passing: Passing) -> Answer | None:
        return 200, {"content-type": "application/json"}, b"{}"

    with behind(indices, tmp_path, behave) as sink, pytest.raises(SinkAway, match="Elasticsearch"):
        await sink.deliver(contract.documents(0, 5))


# Certificates


@pytest.mark.parametrize(
    ("shown", "complaint"),
    [
        ("expired", "expired"),
        ("of another name", "[Hh]ostname mismatch|not valid for"),
        ("of another CA", "self-signed|unable to get"),
    ],
)
async def test_a_certificate_that_is_wrong_gets_no_document_until_it_is_right(
    indices: Indices, tmp_path: Path, shown: str, complaint: str
) -> None:
    seen: list[Passing] = []
    authority, other = TestAuthority(tmp_path), TestAuthority(_made(tmp_path / "other"))
    pair = {
        "expired": authority.issue("localhost", ends_in=timedelta(minutes=-1)),
        "of another name": authority.issue("elsewhere.test"),
        "of another CA": other.issue("localhost"),
    }[shown]
    context = ssl.create_default_context(cafile=str(authority.bundle))
    with misbehaving(indices.node.url, indices.node.ca, pair.certificate, pair.key, seen.append) as url:
        client = Elasticsearch(url, api_key=indices.key, ssl_context=context, request_timeout=4, max_retries=0)
        sink = ElasticSink("elastic", client, indices.name)
        with pytest.raises(SinkAway, match=complaint):
            await sink.deliver(contract.documents(0, 5))
        await sink.close()
    assert seen == []


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


# Our own side


async def test_a_lost_cursor_delivers_all_again_and_nothing_is_there_twice(indices: Indices, tmp_path: Path) -> None:
    log = FakeLog(300)
    await ship(indices.sink, tmp_path, log)
    (tmp_path / "siem.cursor").unlink()
    shipper = await ship(ElasticReceiver(indices).sink(), tmp_path, log)
    stored = indices.stored()
    assert len(stored) == len(set(stored)) == 300
    assert shipper.status.quarantined == 0


async def test_records_of_a_clock_that_was_behind_arrive_in_the_month_that_they_name(
    indices: Indices, tmp_path: Path
) -> None:
    log = FakeLog(3)
    log.grow(1, time="2025-01-01T00:00:00.000000Z")
    log.grow(2)
    await ship(indices.sink, tmp_path, log)
    assert indices.admin.exists(index=f"{indices.name}-2025.01", id=log_entry(3).id)
    assert len(indices.stored()) == 6
