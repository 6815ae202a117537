from __future__ import annotations

from datetime import UTC, datetime

import pytest

from audit.errors import QueryRefused
from audit.siem.document import document_of
from audit.siem.selection import selection
from tests.audit.siem.entries import log_entry, permit_entry

NOW = datetime(2026, 11, 25, tzinfo=UTC)


def test_without_a_filter_everything_comes_whole() -> None:
    render = selection(None, (), NOW)
    assert render(log_entry(1)) == document_of(log_entry(1))
    assert render(permit_entry(2)) == document_of(permit_entry(2))


def test_a_filter_is_a_query_of_the_audit_log() -> None:
    render = selection("outcome:denied AND vm:web-*", (), NOW)
    assert render(log_entry(1)) is None
    assert render(log_entry(2, outcome="denied")) == document_of(log_entry(2, outcome="denied"))
    assert render(permit_entry(3)) is None
    assert selection("kind:sealane-permit", (), NOW)(permit_entry(3)) is not None


def test_redaction_holds_for_what_the_filter_lets_through() -> None:
    document = selection("who:alice", ["user.name"], NOW)(log_entry(1))
    assert document == document_of(log_entry(1), frozenset({"user.name"}))


def test_a_query_or_a_field_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(QueryRefused):
        selection("outcome:(", (), NOW)
    with pytest.raises(ValueError, match=r"event[.]hash cannot be redacted"):
        selection(None, ["event.hash"], NOW)
