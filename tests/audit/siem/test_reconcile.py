"""Comparing what a SIEM returns with the log; the same against a real server: test_elastic.py."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from audit.siem.document import Document, LogEntry, document_of
from audit.siem.mapping import REDACTABLE
from audit.siem.reconcile import Findings, Held, compare
from tests.audit.siem.entries import log_entry, permit_entry

ENTRIES = [*(log_entry(index) for index in range(4)), permit_entry(4)]


def held(entry: LogEntry, redact: frozenset[str] = frozenset()) -> Held:
    document = document_of(entry, redact)
    return Held(document.id, f"there/{document.id}", msgspec.json.decode(msgspec.json.encode(document.body)))


def compared(found: list[Held], **terms: object) -> Findings:
    findings = Findings(0, len(ENTRIES))
    compare(ENTRIES, found, findings, **terms)  # type: ignore[arg-type]
    return findings


def test_what_the_log_makes_of_its_entries_agrees() -> None:
    assert compared([held(entry) for entry in ENTRIES]).agrees


def test_what_is_not_there_is_missing() -> None:
    assert compared([held(ENTRIES[0]), held(ENTRIES[3])]).missing == [1, 2, 4]


@given(st.sampled_from(range(4)), st.integers(0, 10**6), st.integers(1, 255))
def test_one_byte_changed_in_any_field_is_found(which: int, at: int, flip: int) -> None:
    encoded = bytearray(msgspec.json.encode(document_of(ENTRIES[which]).body))
    encoded[at % len(encoded)] ^= flip
    try:
        body = msgspec.json.decode(bytes(encoded))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return
    if body == document_of(ENTRIES[which]).body:
        return  # another spelling of the same JSON
    others = [held(entry) for entry in ENTRIES if entry is not ENTRIES[which]]
    findings = compared([*others, Held(ENTRIES[which].id, "there", body)])
    assert [each.index for each in findings.altered] == [which]
    assert not findings.missing


def test_a_number_of_another_type_is_altered() -> None:
    one = copy.deepcopy(held(ENTRIES[1]))
    one.body["event"]["sequence"] = 1.0
    assert compared([held(ENTRIES[0]), one, *map(held, ENTRIES[2:])]).altered[0].fields == ("event.sequence",)


def test_a_document_that_is_no_object_is_altered() -> None:
    assert compared([Held(ENTRIES[0].id, "there", None), *map(held, ENTRIES[1:])]).altered[0].index == 0


def test_what_the_filter_leaves_out_may_be_there_but_only_unaltered() -> None:
    def odd(entry: LogEntry) -> Document | None:
        return document_of(entry) if entry.index % 2 else None

    assert compared([held(ENTRIES[1]), held(ENTRIES[3])], render=odd).agrees
    assert compared([held(entry) for entry in ENTRIES], render=odd).agrees
    forged = copy.deepcopy(held(ENTRIES[2]))
    forged.body["message"] = "other"
    assert [
        each.index for each in compared([*map(held, ENTRIES[:2]), forged, held(ENTRIES[3])], render=odd).altered
    ] == [2]


def test_redacted_documents_agree_with_their_own_redaction_and_with_no_other() -> None:
    some = frozenset({"user.name"})
    assert compared([held(entry, some) for entry in ENTRIES], render=partial(document_of, redact=some)).agrees
    assert len(compared([held(entry, some) for entry in ENTRIES]).altered) == len(ENTRIES)
    assert (
        len(
            compared(
                [held(e, frozenset(REDACTABLE)) for e in ENTRIES], render=partial(document_of, redact=some)
            ).altered
        )
        == 5
    )


def test_lists_in_the_answer_are_bounded_and_counts_are_not() -> None:
    findings = Findings(0, 10**6, missing=list(range(5000)))
    document = findings.document()
    assert (document["missing_count"], len(document["missing"])) == (5000, 100)


def test_what_nobody_can_encode_is_altered_and_breaks_nothing() -> None:
    """Elasticsearch keeps a field that its mapping lacks as it came; who may write there can lay down anything."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for odd in (10**30, "\ud800", float("nan"), deep):
        one = held(ENTRIES[0])
        one.body["planted"] = odd
        found = compared([one, *map(held, ENTRIES[1:])])
        assert [(each.index, each.fields) for each in found.altered] == [(0, ("planted",))]


def test_a_document_that_claims_another_form_is_altered() -> None:
    one = held(ENTRIES[0])
    one.body["sealane"]["document"] += 1
    found = compared([one, *map(held, ENTRIES[1:])])
    assert [each.fields for each in found.altered] == [("sealane.document",)]
