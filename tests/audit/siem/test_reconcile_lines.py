from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.siem.document import Document, LogEntry, document_of
from audit.siem.formats import Format, line_of
from audit.siem.reconcile_lines import LineFindings, LineSource, reconcile_lines
from tests.audit.samples import ORIGIN
from tests.audit.siem.entries import FakeLog, log_entry

COUNT = 40
LOG = FakeLog(COUNT)


def source(form: Format = Format.ENTRY, size: int = COUNT) -> LineSource:
    make = line_of(form)

    def line(document: Document) -> bytes:
        return make(document, 8192)

    return LineSource(ORIGIN, size, lambda start, end: LOG.entries[start:end], document_of, line)


def lines(form: Format = Format.ENTRY) -> list[bytes]:
    expected = source(form)
    return [expected.expected(index) or b"" for index in range(COUNT)]


def reconciled(stored: Sequence[bytes], form: Format = Format.ENTRY, start: int = 0, end: int = COUNT) -> LineFindings:
    numbered = ((f"file:{number}", line) for number, line in enumerate(stored, 1))
    return reconcile_lines(numbered, source(form), start, end)


@pytest.mark.parametrize("form", Format)
def test_a_file_that_holds_the_log_agrees_in_any_order_and_with_repeats(form: Format) -> None:
    stored = [b"<110>1 - gw sealane - - - " + line for line in lines(form)]
    random.Random(1).shuffle(stored)
    found = reconciled([*stored, stored[0], stored[0]], form)
    assert found.findings.agrees
    assert (found.findings.compared, found.repeated, found.others) == (COUNT, 2, 0)


@given(st.sampled_from(Format), st.integers(0, COUNT - 1), st.data())
def test_one_byte_changed_anywhere_is_found(form: Format, index: int, data: st.DataObject) -> None:
    stored = lines(form)
    line = bytearray(stored[index])
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] = data.draw(st.integers(0x20, 0x7E).filter(lambda byte: byte != line[at]))
    stored[index] = bytes(line)
    found = reconciled(stored, form).findings
    assert not found.agrees
    # Where the id itself was changed, it is another entry's line, or none, and this one's is missing.
    assert found.missing == [index] or [each.index for each in found.altered] == [index]


def test_a_line_that_is_missing_is_named() -> None:
    stored = lines()
    del stored[7], stored[20]
    found = reconciled(stored).findings
    assert found.missing == [7, 21]
    assert not found.agrees


def test_lines_that_no_entry_accounts_for_are_added() -> None:
    beyond = log_entry(COUNT + 5)
    forged = line_of(Format.ENTRY)(document_of(beyond), 8192)
    unreadable = b"CEF:0|Sealane|Sealane|1|migration.decision|allowed|1|rt=1 act=allowed "
    found = reconciled([*lines(), forged, unreadable, b"Nov 25 sshd: hello"])
    assert found.findings.added == [f"file:{COUNT + 1}", f"file:{COUNT + 2}"]
    assert found.others == 1


def test_another_logs_lines_are_none_of_this_ones() -> None:
    other = LogEntry("other.example/sealane", 3, LOG.entries[3])
    found = reconciled([*lines(), line_of(Format.ENTRY)(document_of(other), 8192)])
    assert found.findings.agrees
    assert found.others == 1


def test_a_range_looks_at_nothing_else() -> None:
    found = reconciled(lines()[10:20], start=10, end=20)
    assert found.findings.agrees
    assert found.findings.compared == 10


def test_what_the_sinks_filter_leaves_out_is_not_missed_and_is_not_allowed() -> None:
    wanted = source()
    wanted.render = lambda entry: document_of(entry) if entry.index % 2 else None
    numbered = [(str(index), line) for index, line in enumerate(lines())]
    assert reconcile_lines(numbered[1::2], wanted, 0, COUNT).findings.agrees
    assert reconcile_lines(numbered[1::2] + numbered[4:5], wanted, 0, COUNT).findings.added == ["4"]


def test_a_line_altered_beside_the_right_one_is_still_altered() -> None:
    altered = lines()[3].replace(b"web-1", b"web-2")
    found = reconciled([*lines(), altered]).findings
    assert [each.place for each in found.altered] == [f"file:{COUNT + 1}"]
    assert found.missing == []
