from __future__ import annotations

import msgspec
from hypothesis import given

from audit.proof import leaf_hash
from audit.record import decode_entry
from audit.siem.document import LogEntry, document_of
from audit.siem.formats.entry import entry_line
from tests.audit.siem.entries import log_entry, permit_entry
from tests.audit.siem.hostile import hostile_entries

LIMIT = 60_000


@given(hostile_entries())
def test_the_logs_own_bytes_come_back_from_a_line(entry: LogEntry) -> None:
    line = entry_line(document_of(entry), LIMIT)
    assert line.decode("ascii").isprintable()
    read = msgspec.json.decode(line)
    again = msgspec.json.encode(read["entry"], order="sorted")
    assert again == entry.entry
    assert leaf_hash(again).hex() == read["hash"]
    assert (read["id"], read["sequence"]) == (entry.id, entry.index)
    decode_entry(again)


def test_a_permit_entry_is_one_too() -> None:
    read = msgspec.json.decode(entry_line(document_of(permit_entry(3)), LIMIT))
    assert read["entry"]["kind"] == "sealane-permit"


def test_a_document_without_its_original_is_given_as_it_is() -> None:
    document = document_of(log_entry(1), frozenset({"user.name"}))
    assert msgspec.json.decode(entry_line(document, LIMIT)) == document.body
