"""The sink against a real Elasticsearch: what it stores, refuses, and what of it can be told apart."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from audit.siem.document import Document, LogEntry, document_of
from audit.siem.elastic import OCCUPIED, ElasticSink
from audit.siem.reconcile import Findings, find_strangers, reconcile
from audit.siem.sink import Refusal, SinkAway
from tests.audit.samples import ORIGIN
from tests.audit.siem import sink_contract as contract
from tests.audit.siem.conftest import Indices
from tests.audit.siem.entries import log_entry, permit_entry

pytestmark = pytest.mark.real

ENTRIES = [*(log_entry(index) for index in range(7)), permit_entry(7), log_entry(8, outcome="denied")]
DOCUMENTS = [document_of(entry) for entry in ENTRIES]


class _Odd(Document):
    """What no entry makes: a field of a type that the mapping refuses."""

    @property
    def body(self) -> dict[str, Any]:
        return {**super().body, "event": {**super().body["event"], "sequence": "not a number"}}


class _Receiver:
    """Elasticsearch as `sink_contract` sees a receiver."""

    def __init__(self, indices: Indices) -> None:
        self._indices = indices
        self.freeze = indices.node.pause
        self.thaw = indices.node.go_on
        self.kill = indices.node.kill
        self.start = indices.node.start

    def sink(self) -> ElasticSink:
        return ElasticSink("siem", self._indices.node.keyed_client(self._indices.key), self._indices.name)

    def held(self) -> list[str]:
        return sorted(self._indices.stored(), key=lambda each: int(each.rpartition("-")[2]))

    def secrets(self) -> list[str]:
        return [self._indices.key]


async def test_it_keeps_the_contract_of_all_sinks_in_order_and_at_once(indices: Indices) -> None:
    await contract.arrives_in_order(_Receiver(indices))


async def test_two_deliveries_at_once_do_not_mix(indices: Indices) -> None:
    await contract.two_at_once_do_not_mix(_Receiver(indices))


async def test_cancelled_anywhere_it_leaves_no_half_entry(indices: Indices) -> None:
    await contract.cancelled_anywhere_it_sends_no_half_entry(_Receiver(indices), rounds=4, seed=1)


def place_of(indices: Indices, index: int) -> dict[str, Any]:
    return {"index": f"{indices.name}-2026.11", "id": ENTRIES[index].id}


async def found(indices: Indices, *, repair: bool = False) -> Findings:
    findings = Findings(0, len(ENTRIES))
    await indices.sink.refresh()
    await reconcile(indices.sink, ENTRIES, findings, deliver=indices.sink.deliver if repair else None)
    await find_strangers(indices.sink, lambda: len(ENTRIES), ORIGIN, findings)
    return findings


async def test_documents_are_stored_under_their_ids_in_the_index_of_their_month(indices: Indices) -> None:
    assert await indices.sink.deliver(DOCUMENTS) == []
    assert sorted(indices.stored()) == sorted(document.id for document in DOCUMENTS)
    held = indices.admin.get(**place_of(indices, 3))
    assert held["_source"] == DOCUMENTS[3].body
    december = document_of(log_entry(9, time="2026-12-01T00:00:00.000000Z"))
    await indices.sink.deliver([december])
    assert indices.admin.exists(index=f"{indices.name}-2026.12", id=december.id)


async def test_the_template_decides_the_types_and_not_the_first_document(indices: Indices) -> None:
    await indices.sink.deliver(DOCUMENTS)
    mapping = indices.admin.indices.get_mapping(index=f"{indices.name}-2026.11")
    properties = mapping[f"{indices.name}-2026.11"]["mappings"]["properties"]
    assert properties["@timestamp"]["type"] == "date_nanos"
    assert properties["event"]["properties"]["sequence"]["type"] == "long"
    assert properties["event"]["properties"]["original"]["index"] is False


async def test_its_indices_follow_the_lifecycle_policy_that_it_names(indices: Indices) -> None:
    sink = ElasticSink("siem", indices.node.keyed_client(indices.key), indices.name, lifecycle="kept-a-year")
    await sink.deliver(DOCUMENTS)
    await sink.close()
    settings = indices.admin.indices.get_settings(index=f"{indices.name}-*", flat_settings=True).body
    assert {each["settings"]["index.lifecycle.name"] for each in settings.values()} == {"kept-a-year"}


async def test_what_was_delivered_before_is_delivered_and_not_doubled(indices: Indices) -> None:
    await indices.sink.deliver(DOCUMENTS[:5])
    assert await indices.sink.deliver(DOCUMENTS) == []
    assert len(indices.stored()) == len(DOCUMENTS)


async def test_a_forgery_laid_under_an_id_in_advance_is_no_success(indices: Indices) -> None:
    """Ids can be foreseen: who may write at the SIEM could keep a record out by being first."""
    await indices.sink.deliver(DOCUMENTS[:1])
    indices.admin.index(**place_of(indices, 1), document={**DOCUMENTS[1].body, "message": "nothing happened"})
    assert await indices.sink.deliver(DOCUMENTS) == [Refusal(1, OCCUPIED)]


async def test_what_the_server_will_never_take_is_refused_alone(indices: Indices) -> None:
    await indices.sink.deliver(DOCUMENTS[:1])
    odd = _Odd(log_entry(1), document_of(log_entry(1)).head)
    (refused,) = await indices.sink.deliver([DOCUMENTS[2], odd, DOCUMENTS[3]])
    assert refused.index == 1
    assert "document_parsing_exception" in refused.cause
    assert len(indices.stored()) == 3


async def test_a_batch_over_the_servers_limit_goes_in_parts(indices: Indices) -> None:
    batch = [document_of(log_entry(index, details={"x": "y" * 50_000})) for index in range(50)]
    assert await indices.sink.deliver(batch) == []
    assert len(indices.stored()) == 50


async def test_a_revoked_key_is_waited_for_and_the_operator_told(indices: Indices) -> None:
    await indices.sink.deliver(DOCUMENTS[:1])
    indices.admin.security.invalidate_api_key(ids=[indices.key_id])
    with pytest.raises(SinkAway, match=r"401 .*give it an API key that is valid"):
        await indices.sink.deliver(DOCUMENTS)


async def test_a_full_disk_is_waited_for(indices: Indices) -> None:
    """The block that Elasticsearch itself puts on every index at its flood stage watermark."""
    await indices.sink.deliver(DOCUMENTS[:1])
    name = f"{indices.name}-2026.11"
    indices.admin.indices.put_settings(index=name, settings={"index.blocks.read_only_allow_delete": True})
    with pytest.raises(SinkAway, match="cluster_block_exception"):
        await indices.sink.deliver(DOCUMENTS)
    indices.admin.indices.put_settings(index=name, settings={"index.blocks.read_only_allow_delete": None})
    assert await indices.sink.deliver(DOCUMENTS) == []
    assert len(indices.stored()) == len(DOCUMENTS)


async def test_a_closed_index_is_waited_for(indices: Indices) -> None:
    await indices.sink.deliver(DOCUMENTS[:1])
    indices.admin.indices.close(index=f"{indices.name}-2026.11")
    with pytest.raises(SinkAway, match="index_closed_exception"):
        await indices.sink.deliver(DOCUMENTS)


async def test_a_foreign_mapping_refuses_everything_which_the_shipper_waits_for(indices: Indices) -> None:
    wrong: dict[str, Any] = {"properties": {"event": {"type": "long"}}}
    indices.admin.indices.create(index=f"{indices.name}-2026.11", mappings=wrong)
    refusals = await indices.sink.deliver(DOCUMENTS)
    assert [each.index for each in refusals] == [document.index for document in DOCUMENTS]


async def test_a_stopped_server_costs_the_time_out_and_no_more(indices: Indices) -> None:
    await indices.sink.deliver(DOCUMENTS[:1])
    impatient = ElasticSink("siem", indices.node.keyed_client(indices.key, seconds=1), indices.name)
    indices.node.pause()
    try:
        with trio.fail_after(30), pytest.raises(SinkAway, match="timed out"):
            await impatient.deliver(DOCUMENTS)
    finally:
        indices.node.go_on()
        await impatient.close()
    with trio.fail_after(30):
        assert await indices.sink.deliver(DOCUMENTS) == []
    assert len(indices.stored()) == len(DOCUMENTS)


# Reconciliation


async def test_a_siem_that_holds_the_log_agrees(indices: Indices) -> None:
    await indices.sink.deliver(DOCUMENTS)
    findings = await found(indices)
    assert findings.agrees
    assert findings.compared == len(ENTRIES)


async def test_an_empty_siem_lacks_everything_and_repair_delivers_it(indices: Indices) -> None:
    assert (await found(indices)).missing == list(range(len(ENTRIES)))
    repaired = await found(indices, repair=True)
    assert (repaired.agrees, repaired.repaired) == (True, len(ENTRIES))


async def test_a_record_deleted_by_hand_is_missing_and_can_be_repaired(indices: Indices) -> None:
    await indices.sink.deliver(DOCUMENTS)
    indices.admin.delete(**place_of(indices, 4))
    assert (await found(indices)).missing == [4]
    assert (await found(indices, repair=True)).agrees
    assert (await found(indices)).agrees


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"user": {"name": "mallory"}}, ["user.name"]),
        ({"event": {"outcome": "success"}}, ["event.outcome"]),
        ({"event": {"original": ENTRIES[3].entry.decode()}}, ["event.original"]),
        ({"note": "added"}, ["note"]),
    ],
)
async def test_a_record_altered_by_hand_is_found_to_the_field_and_never_repaired(
    indices: Indices, change: dict[str, Any], fields: list[str]
) -> None:
    await indices.sink.deliver(DOCUMENTS)
    indices.admin.update(**place_of(indices, 8), doc=change)
    findings = await found(indices, repair=True)
    assert [(each.index, list(each.fields)) for each in findings.altered] == [(8, fields)]
    assert not findings.missing
    assert not findings.added


@pytest.mark.parametrize("claims", ["nothing", "a place in the log", "a place beyond its end"])
async def test_a_record_added_by_hand_is_found(indices: Indices, claims: str) -> None:
    await indices.sink.deliver(DOCUMENTS)
    body: dict[str, Any] = {"@timestamp": "2026-11-22T21:00:00.000000Z", "message": "all is well"}
    if claims != "nothing":
        body["event"] = {"sequence": 2 if claims == "a place in the log" else 10**6}
        body["sealane"] = {"origin": ORIGIN}
    indices.admin.index(index=f"{indices.name}-2026.11", id="forged", document=body)
    findings = await found(indices)
    assert findings.added == [f"{indices.name}-2026.11/forged"]
    assert not findings.missing
    assert not findings.altered


async def test_the_same_record_in_two_indices_is_one_too_many(indices: Indices) -> None:
    await indices.sink.deliver(DOCUMENTS)
    indices.admin.index(index=f"{indices.name}-copy", id=ENTRIES[2].id, document=DOCUMENTS[2].body)
    assert len((await found(indices)).added) == 1


async def test_the_log_of_another_gateway_in_the_same_indices_is_no_finding(indices: Indices) -> None:
    await indices.sink.deliver(DOCUMENTS)
    await indices.sink.deliver([document_of(LogEntry("other.example/log", 0, ENTRIES[0].entry))])
    assert (await found(indices)).agrees
