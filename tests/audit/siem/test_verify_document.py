from __future__ import annotations

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.siem.document import LogEntry, document_of
from audit.siem.verify_document import verify_document
from audit.verify_tree import read_vkey
from tests.audit.samples import OTHER_SIGNER, SIGNER, entry
from tests.audit.siem.entries import entry_of_group, log_entry, permit_entry

KEYS = [read_vkey(SIGNER.verifier.vkey)]
ENTRIES = [log_entry(0), log_entry(1), permit_entry(2)]
BODY = document_of(ENTRIES[1]).body
DATA = msgspec.json.encode(BODY)


def entry_at(index: int) -> bytes:
    return ENTRIES[index].entry


def changed(path: str, value: Any) -> bytes:
    body = copy.deepcopy(BODY)
    *parents, last = path.split(".")
    member = body
    for name in parents:
        member = member[name]
    member[last] = value
    return msgspec.json.encode(body)


def test_a_document_verifies_alone_and_as_a_search_hit() -> None:
    verdict = verify_document(DATA, KEYS)
    assert (verdict.outcome, verdict.index, verdict.in_log) == ("verified", 1, False)
    assert verdict.record is not None
    assert verdict.record["vm"]["name"] == "web-1"
    assert (
        verify_document(json.dumps({"_id": ENTRIES[1].id, "_source": BODY}, indent=2).encode(), KEYS).outcome
        == "verified"
    )


def test_a_document_of_a_record_that_was_signed_with_others_verifies_alone() -> None:
    entry = entry_of_group(1)
    assert verify_document(msgspec.json.encode(document_of(entry).body), KEYS).outcome == "verified"
    moved = entry.entry.replace(b'"index":0', b'"index":1')
    verdict = verify_document(msgspec.json.encode(document_of(LogEntry(entry.origin, 1, moved)).body), KEYS)
    assert (verdict.outcome, verdict.faults) == ("refused", ["its signature is wrong"])


def test_with_the_log_it_is_also_known_to_be_there() -> None:
    verdict = verify_document(DATA, KEYS, entry_at)
    assert (verdict.outcome, verdict.in_log) == ("verified", True)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not JSON"),
        (b"[]", "no place in a log"),
        (b'{"event":{"sequence":1,"sequence":1}}', "twice"),
        (changed("user.name", "mallory"), "user.name"),
        (changed("message", "nothing happened"), "message"),
        (changed("note", "added"), "note"),
        (changed("event.outcome", "failure"), "event.outcome"),
        (changed("event.hash", "00" * 32), "hash"),
        (changed("event.id", "x-1"), "id is not"),
        (changed("event.sequence", 0), "number 1"),
        (changed("event.original", ENTRIES[0].entry.decode()), "number 0"),
        (changed("event.original", entry(1).decode().replace("alice", "mallo")), "signature is wrong"),
        (changed("event.original", entry(1, OTHER_SIGNER).decode()), "which was not given"),
        (changed("event.original", entry(1).decode() + " "), "canonical"),
        (changed("event.original", 7), "no text"),
        (changed("sealane.origin", "other.example/log"), "no key was given"),
        (changed("sealane.redacted", ["event.hash"]), "cannot be"),
        (changed("sealane.redacted", [["user.name"]]), "cannot be"),
        (changed("sealane.facets.who_name", "bob"), "sealane.facets.who_name"),
        (json.dumps({"_id": "forged", "_source": BODY}).encode(), "id is not"),
    ],
)
def test_whatever_was_changed_is_refused_with_what_it_is(data: bytes, complaint: str) -> None:
    verdict = verify_document(data, KEYS)
    assert verdict.outcome == "refused"
    assert complaint in " ".join(verdict.faults)


@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_one_byte_changed_anywhere_is_never_verified_unless_the_json_is_the_same(at: int, flip: int) -> None:
    data = bytearray(DATA)
    data[at] ^= flip
    verdict = verify_document(bytes(data), KEYS)
    if verdict.outcome == "verified":
        assert msgspec.json.decode(bytes(data)) == BODY


def test_what_bears_no_signature_is_proven_by_the_log_only() -> None:
    permit = msgspec.json.encode(document_of(ENTRIES[2]).body)
    assert verify_document(permit, KEYS).outcome == "unproven"
    assert verify_document(permit, KEYS, entry_at).outcome == "verified"


def test_a_document_with_fields_withheld_is_proven_by_the_log_only() -> None:
    body = document_of(ENTRIES[1], frozenset({"user.name", "user.id"})).body
    assert verify_document(msgspec.json.encode(body), KEYS).outcome == "unproven"
    assert verify_document(msgspec.json.encode(body), KEYS, entry_at).outcome == "verified"
    body["sealane"]["outcome"] = "denied"
    assert verify_document(msgspec.json.encode(body), KEYS, entry_at).outcome == "refused"


def test_a_record_that_the_log_does_not_have_is_refused_though_it_is_signed() -> None:
    other = LogEntry(ENTRIES[1].origin, 1, entry(1, reason="of a log that was put back"))
    verdict = verify_document(msgspec.json.encode(document_of(other).body), KEYS, entry_at)
    assert verdict.faults == ["its original is not what the log has at 1"]


def test_a_document_of_a_later_form_is_checked_by_its_original() -> None:
    verdict = verify_document(changed("sealane.document", 2), KEYS)
    assert verdict.outcome == "unproven"
    assert verdict.record is not None
