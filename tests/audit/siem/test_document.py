from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import RecordError
from audit.proof import leaf_hash
from audit.query import fields
from audit.record import Actor, Vm
from audit.siem.document import LogEntry, body_of, document_id, document_of
from audit.siem.mapping import MAPPING, REDACTABLE, facet_name
from tests.audit.samples import ORIGIN, entry
from tests.audit.siem.entries import log_entry, permit_entry


def test_a_decision_is_told_in_terms_of_ecs() -> None:
    decision = {"bundle_digest": "cd" * 32, "policies": [{"id": "p-1", "effect": "forbid", "reason": "no"}]}
    document = body_of(log_entry(7, outcome="denied", details={"decision": decision, "client_address": "10.0.0.9"}))
    assert document["@timestamp"] == "2026-11-22T21:00:07.000000Z"
    event = document["event"]
    assert (event["sequence"], event["outcome"], event["type"], event["category"]) == (
        7,
        "failure",
        ["denied"],
        ["api"],
    )
    assert event["action"] == "migration.decision"
    assert document["user"] == {"id": "okta#alice", "name": "alice", "domain": "https://issuer.example"}
    assert document["source"] == {"address": "10.0.0.9"}
    assert document["rule"] == {"name": ["p-1"], "version": "cd" * 32}
    assert document["sealane"]["vm"]["name"] == "web-1"


def test_a_permit_is_told_with_the_time_of_its_issue() -> None:
    document = body_of(permit_entry(3))
    assert document["@timestamp"] == "2026-11-18T11:06:40.000000Z"
    assert document["event"]["action"] == "sealane-permit"
    assert document["sealane"]["migration_id"] == "m-2"
    assert document["rule"] == {"version": "ab" * 32}


def test_the_entry_stands_in_the_document_and_proves_itself() -> None:
    one = log_entry(1)
    event = body_of(one)["event"]
    assert event["original"].encode() == one.entry
    assert event["hash"] == hashlib.sha256(b"\x00" + one.entry).hexdigest() == leaf_hash(one.entry).hex()


def test_ids_differ_by_log_and_index_and_stay_the_same() -> None:
    assert document_id("a", 1) == document_id("a", 1)
    assert len({document_id("a", 1), document_id("a", 2), document_id("b", 1), document_id("a", 11)}) == 4


def test_what_is_no_entry_is_refused() -> None:
    for wrong in (
        b"",
        b"{}",
        entry(1)[:-1],
        b'{"claims":{},"decision":{"index":0,"leaf_hash":""},"kind":"sealane-permit"}',
    ):
        with pytest.raises(RecordError):
            document_of(LogEntry(ORIGIN, 1, wrong))


@pytest.mark.parametrize("issued", [None, "1795000000", 10**18, -(10**18)])
def test_a_permit_entry_of_no_time_is_refused(issued: Any) -> None:
    claims = {} if issued is None else {"iat": issued}
    document = {"kind": "sealane-permit", "decision": {"index": 0, "leaf_hash": "A" * 43 + "="}, "claims": claims}
    with pytest.raises(RecordError):
        document_of(LogEntry(ORIGIN, 1, msgspec.json.encode(document, order="sorted")))


def test_a_redacted_document_shows_the_value_nowhere_and_says_what_it_lacks() -> None:
    one = log_entry(7, reason="for alice's database", details={"client_address": "10.0.0.9"})
    body = document_of(one, frozenset({"user.id", "user.name", "event.reason", "source.address"})).body
    assert b"alice" not in msgspec.json.encode(body)
    assert b"10.0.0.9" not in msgspec.json.encode(body)
    assert body["sealane"]["redacted"] == ["event.reason", "source.address", "user.id", "user.name"]
    assert body["user"] == {"domain": "https://issuer.example"}
    assert body["message"] == "migration.decision: allowed, VM web-1"
    assert body["event"]["hash"] == leaf_hash(one.entry).hex()
    assert "original" not in body["event"]


@pytest.mark.parametrize("withheld", REDACTABLE)
def test_why_something_was_denied_is_not_told_to_who_is_denied_a_field(withheld: str) -> None:
    """As `policy.decision` words it: with the person, their id, and the VM's name."""
    because = "No policy permits MigrateVm of VM web-1 (zone dmz) by alice (okta#alice). Ask for the role."
    one = log_entry(7, outcome="denied", details={"decision": {"denied_because": because}})
    assert "by alice okta alice" in body_of(one)["sealane"]["facets"][facet_name(fields.WHY)]
    assert b"by alice" not in msgspec.json.encode(document_of(one, frozenset({withheld})).body["sealane"]["facets"])


def test_a_host_that_is_redacted_is_in_no_other_field() -> None:
    body = document_of(log_entry(7), frozenset({"sealane.source"})).body
    assert b"spiffe://bank.example/host/a" not in msgspec.json.encode(body)
    assert body["related"]["hosts"] == ["spiffe://bank.example/host/b"]
    assert "source" not in body


def test_a_move_into_another_jurisdiction_says_so() -> None:
    hosts = {"spiffe://bank.example/host/a": "DE", "spiffe://bank.example/host/b": "CH"}
    entities = [{"uid": {"type": "Sealane::Host", "id": i}, "attrs": {"jurisdiction": j}} for i, j in hosts.items()]
    told = body_of(log_entry(7, details={"policy_entities": entities}))["sealane"]["jurisdiction"]
    assert told == {"source": "DE", "destination": "CH", "crossed": True}
    assert "jurisdiction" not in body_of(log_entry(7, details={"policy_entities": [1, {"uid": 2}, {}]}))["sealane"]


def test_redaction_never_touches_what_places_the_record_in_the_log() -> None:
    whole, least = body_of(log_entry(7)), document_of(log_entry(7), frozenset(REDACTABLE)).body
    assert least["event"] == {
        name: whole["event"][name] for name in whole["event"] if name not in {"original", "reason"}
    }
    assert least["sealane"]["kind"] == whole["sealane"]["kind"]


_names = st.text(min_size=1, max_size=40)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | _names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=8,
)


@given(
    name=_names,
    details=st.dictionaries(_names | st.sampled_from(["decision", "client_address", "policies"]), _json, max_size=4),
    outcome=st.none() | st.sampled_from(["allowed", "denied", "failed", "running", "strange"]),
)
def test_any_record_has_only_mapped_fields_of_their_type(
    name: str, details: dict[str, Any], outcome: str | None
) -> None:
    """What a record's writer chose can cause no mapping conflict, and no field that nobody declared."""
    try:
        one = log_entry(1, actor=Actor(name, name, "oidc"), vm=Vm(None, name), details=details, outcome=outcome)
    except (RecordError, UnicodeEncodeError):
        return
    _require_mapped(document_of(one).body, MAPPING)
    _require_mapped(document_of(one, frozenset(REDACTABLE)).body, MAPPING)


def _require_mapped(value: Any, mapping: dict[str, Any]) -> None:
    if "properties" in mapping:
        assert isinstance(value, dict)
        assert value
        for name, member in value.items():
            _require_mapped(member, mapping["properties"][name])
        return
    for one in value if isinstance(value, list) else [value]:
        assert type(one) is {"long": int, "boolean": bool}.get(mapping["type"], str)


def test_a_refused_call_of_libvirt_is_told_as_denied() -> None:
    event = body_of(log_entry(7, kind="libvirt.refused", outcome="denied"))["event"]
    assert (event["action"], event["outcome"], event["category"], event["type"]) == (
        "libvirt.refused",
        "failure",
        ["api"],
        ["denied"],
    )
