from __future__ import annotations

import msgspec
import pytest
from hypothesis import given

from audit.record import Actor
from audit.siem.document import LogEntry, document_of
from audit.siem.formats import Format, line_of
from audit.siem.formats.fit import LEAST_LIMIT_BYTES
from audit.siem.formats.parse import parse_line
from tests.audit.siem.entries import log_entry
from tests.audit.siem.hostile import document as one
from tests.audit.siem.hostile import hostile_entries

WIDE = "\U0001d54a" * 1024  # twelve bytes each, as ASCII JSON


def large() -> LogEntry:
    actor = Actor(WIDE, WIDE, WIDE, WIDE, tuple(f"{index}-{'g' * 200}" for index in range(100)))
    return LogEntry(WIDE, 9, log_entry(9, actor=actor, migration_id=WIDE, reason=WIDE).entry)


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("limit", [LEAST_LIMIT_BYTES, 4096, 8192, 65_536])
def test_the_largest_document_fits_and_says_what_it_lacks(form: Format, limit: int) -> None:
    document = document_of(large())
    line = line_of(form)(document, limit)
    assert len(line) <= limit
    assert parse_line(line).id == document.id
    assert document.body["event"]["hash"].encode() in line
    assert b"mitted" in line or b'"entry":' in line or b"original" in line


@pytest.mark.parametrize("form", Format)
def test_what_fits_is_left_whole(form: Format) -> None:
    assert b"mitted" not in line_of(form)(one(), 8192)


def test_the_original_goes_first_and_all_else_stays() -> None:
    document = one(details={"n": "x" * 5000})
    read = msgspec.json.decode(line_of(Format.ECS)(document, 4096))
    assert read["sealane"]["omitted"] == ["event.original"]
    assert read["user"] == document.body["user"]
    assert "original" not in read["event"]
    assert "original" in document.body["event"], "the document itself was changed"


@given(hostile_entries())
def test_every_format_holds_every_limit_for_every_entry(entry: LogEntry) -> None:
    document = document_of(entry)
    for form in Format:
        for limit in (LEAST_LIMIT_BYTES, 8192):
            assert len(line_of(form)(document, limit)) <= limit
