"""OCSF against its own schema: see the `$comment` in ocsf_schema.json for where that is from."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from audit.siem.document import LogEntry, document_of
from audit.siem.formats import Format, line_of
from audit.siem.formats.fit import LEAST_LIMIT_BYTES
from audit.siem.formats.ocsf import ocsf
from tests.audit.siem.entries import log_entry, permit_entry
from tests.audit.siem.hostile import body, hostile_entries
from tests.audit.siem.hostile import document as one


@lru_cache
def validator(class_uid: int) -> Draft202012Validator:
    schema = msgspec.json.decode((Path(__file__).with_name("ocsf_schema.json")).read_bytes())
    return Draft202012Validator({**schema["classes"][str(class_uid)], "$defs": schema["$defs"]})


def checked(line: bytes) -> dict[str, Any]:
    event: dict[str, Any] = msgspec.json.decode(line)
    errors = [
        f"{'/'.join(map(str, error.path))}: {error.message}"
        for error in validator(event["class_uid"]).iter_errors(event)
    ]
    assert errors == []
    return event


@pytest.mark.parametrize(
    ("kind", "class_uid", "type_uid"),
    [
        ("migration.decision", 6003, 600301),
        ("migration.cancel_requested", 6003, 600303),
        ("token.refused", 6003, 600301),
        ("audit.read", 6003, 600302),
        ("policy.published", 6003, 600399),
        ("migration.receipt", 3004, 300405),
        ("gateway.started", 1008, 100806),
        ("gateway.stopped", 1008, 100807),
        ("heartbeat", 1008, 100899),
        ("clock-step", 1008, 100899),
        ("siem.degraded", 1008, 100899),
    ],
)
def test_each_kind_of_record_is_of_its_class(kind: str, class_uid: int, type_uid: int) -> None:
    for changes in ({}, {"actor": None, "vm": None, "source": None, "destination": None, "reason": None}):
        event = checked(ocsf(body(kind=kind, **changes)))
        assert (event["class_uid"], event["type_uid"]) == (class_uid, type_uid)
        assert event["metadata"]["event_code"] == kind


def test_a_permit_entry_is_an_event_too() -> None:
    event = checked(ocsf(document_of(permit_entry(3)).body))
    assert event["api"]["operation"] == "sealane-permit"


def test_the_entry_its_hash_and_its_leaf_hash_are_there() -> None:
    entry = log_entry(7)
    event = checked(ocsf(document_of(entry).body))
    assert event["raw_data"].encode() == entry.entry
    assert event["raw_data_hash"]["value"] == hashlib.sha256(entry.entry).hexdigest()
    assert event["unmapped"]["leaf_hash"] == document_of(entry).body["event"]["hash"]
    assert (event["metadata"]["uid"], event["metadata"]["sequence"]) == (entry.id, 7)


def test_the_attestation_is_over_the_event_without_its_own_fingerprint() -> None:
    event = checked(ocsf(body()))
    (attestation,) = event["attestation_list"]
    fingerprint = attestation.pop("fingerprint")
    canonical = msgspec.json.encode(event, order="sorted")
    assert fingerprint["value"] == hashlib.sha256(canonical).hexdigest()
    assert (fingerprint["algorithm_id"], fingerprint["serialization_id"]) == (3, 2)


def test_a_denied_decision_names_the_policies_and_fails() -> None:
    decision = {"policies": [{"id": "forbid-night"}], "bundle_digest": "ab" * 32}
    event = checked(ocsf(body(outcome="denied", details={"decision": decision, "client_address": "192.0.2.7"})))
    assert event["status_id"] == 2
    assert event["severity_id"] == 3
    assert event["src_endpoint"] == {"ip": "192.0.2.7"}
    assert event["dst_endpoint"] == {"uid": "spiffe://bank.example/host/b", "hostname": "b"}
    assert event["actor"]["authorizations"] == [{"policy": {"name": "forbid-night", "version": "ab" * 32}}]
    assert event["actor"]["user"]["groups"] == [{"uid": "S-1-5-32-544"}]


@pytest.mark.parametrize("limit", [LEAST_LIMIT_BYTES, 4096])
def test_what_was_left_out_is_still_valid_and_says_so(limit: int) -> None:
    event = checked(line_of(Format.OCSF)(one(details={"n": "x" * 9000}, reason="y" * 3000), limit))
    assert event["metadata"]["is_truncated"] is True
    assert "event.original" in event["unmapped"]["omitted"]
    assert "raw_data" not in event


@given(hostile_entries())
def test_every_entry_is_a_valid_event_of_one_line(entry: LogEntry) -> None:
    line = ocsf(document_of(entry).body)
    assert line.decode("ascii").isprintable()
    event = checked(line)
    assert event["metadata"]["uid"] == entry.id


@given(hostile_entries())
def test_a_redacted_document_is_valid_too(entry: LogEntry) -> None:
    redact = frozenset({"user.id", "user.name", "sealane.vm.name", "sealane.vm.uuid", "source.address"})
    event = checked(ocsf(document_of(entry, redact).body))
    assert event["unmapped"]["redacted"] == sorted(redact)
