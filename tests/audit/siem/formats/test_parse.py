from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.siem.document import LogEntry, document_of
from audit.siem.formats import Format, line_of
from audit.siem.formats.fit import LEAST_LIMIT_BYTES
from audit.siem.formats.parse import LineError, parse_line
from audit.siem.formats.syslog import header
from tests.audit.siem.hostile import document as one
from tests.audit.siem.hostile import hostile_entries


@given(hostile_entries(), st.sampled_from(Format), st.sampled_from([LEAST_LIMIT_BYTES, 60_000]))
def test_each_line_gives_its_own_id_whatever_its_values_say(entry: LogEntry, form: Format, limit: int) -> None:
    document = document_of(entry)
    line = line_of(form)(document, limit)
    for before in (b"", header(document, "gw"), b"2026-11-25T20:00:00+01:00 gw sealane: "):
        held = parse_line(before + line)
        assert (held.id, held.sequence, held.line) == (entry.id, entry.index, line)


# What begins as a line of ours does, some of it with an id that may stand there.
BEGINNINGS = (
    b'{"hash":',
    b'{"time":',
    b"CEF:0|",
    b"LEEF:2.0|",
    b'{"hash":"' + b"0" * 64 + b'","id":"0123456789abcdef-%b","',
    b'{"event":{"id":"0123456789abcdef-%b"}}',
    b'{"time":1,"metadata":{"uid":"0123456789abcdef-%b"}}',
    b"CEF:0|||||||rt=1 externalId=0123456789abcdef-%b ",
    b"LEEF:2.0|||||^|eventId=0123456789abcdef-%b",
)
BEGUN = st.builds(
    lambda before, start, number, rest: before + start.replace(b"%b", number) + rest,
    st.sampled_from([b"", b"Nov 25 20:00:00 gw sealane: "]),
    st.sampled_from(BEGINNINGS),
    st.sampled_from([b"0", b"7", b"07", b"-1", b"9" * 19, b"9" * 20]),
    st.just(b"") | st.binary(max_size=300),
)


@given(st.binary(max_size=300) | BEGUN)
def test_anything_else_is_a_line_error_or_the_end_of_what_was_stored_with_its_own_id(stored: bytes) -> None:
    try:
        held = parse_line(stored)
    except LineError:
        return
    assert stored.endswith(held.line)
    assert held.id.encode() in held.line
    assert held.id.endswith(f"-{held.sequence}")


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"Nov 25 20:00:00 host sshd[1]: accepted",
        b'{"event":{}}',
        b'{"event":{"id":"../../x"}}',
        b'{"event":{"id":"9762c2f5d5eccd96-01"}}',
        b'{"time":1,"metadata":{"uid":7}}',
        b"LEEF:2.0|a|b|c|d|^|eventId=9762c2f5d5eccd96-1^eventId=9762c2f5d5eccd96-2",
        b'{"' + b"x" * (1024 * 1024),
        b'{"event":{"id":"\xff"}}',
    ],
)
def test_what_is_none_of_ours_is_refused(stored: bytes) -> None:
    with pytest.raises(LineError):
        parse_line(stored)


def test_a_duplicated_id_inside_a_value_is_not_taken_for_the_line() -> None:
    line = line_of(Format.CEF)(one(reason="rt=1 externalId=0000000000000000-9 x"), 8192)
    assert parse_line(line).sequence == 7
