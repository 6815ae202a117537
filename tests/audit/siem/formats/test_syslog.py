from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.siem.document import LogEntry, document_of
from audit.siem.formats.syslog import MAX_MSGID, framed, header, syslog_name
from tests.audit.siem.hostile import document as one
from tests.audit.siem.hostile import hostile_entries, hostile_text

# RFC 5424, section 6: HEADER and one SD-ELEMENT, by its grammar.
GRAMMAR = re.compile(
    rb"<(?P<pri>[0-9]{1,3})>1 (?P<time>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?Z) "
    rb"(?P<host>[!-~]{1,255}) (?P<app>[!-~]{1,48}) (?P<proc>[!-~]{1,128}) (?P<msgid>[!-~]{1,32}) "
    rb'\[(?P<sdid>[!#-<>-\\^-~]{1,32})(?P<params>( [a-z]{1,32}="[^"\\\]]*")+)\] '
)


@given(hostile_entries(), hostile_text)
def test_every_header_keeps_the_rfcs_grammar(entry: LogEntry, hostname: str) -> None:
    match = GRAMMAR.fullmatch(header(document_of(entry), syslog_name(hostname)))
    assert match is not None
    assert f' id="{entry.id}"'.encode() in match["params"]


@pytest.mark.parametrize(
    ("changes", "priority"),
    [
        ({"outcome": "allowed"}, 13 * 8 + 6),
        ({"outcome": "denied"}, 13 * 8 + 4),
        ({"kind": "siem.quarantined"}, 13 * 8 + 3),
        ({"kind": "placement.unpermitted"}, 13 * 8 + 3),
        ({"kind": "clock-step"}, 13 * 8 + 4),
    ],
)
def test_the_priority_says_log_audit_and_how_bad_it_is(changes: dict[str, str], priority: int) -> None:
    assert header(one(**changes), "gw").startswith(b"<%d>1 " % priority)


def test_a_header_in_full() -> None:
    document = one()
    assert header(document, "gw-1").decode() == (
        "<110>1 2026-11-22T21:00:07.000000Z gw-1 sealane - migration.decision "
        f'[sealane@32473 id="{document.id}" sequence="7" hash="{document.head.leaf_hash}"] '
    )


def test_a_long_kind_is_cut_to_what_a_msgid_may_be() -> None:
    match = GRAMMAR.fullmatch(header(one(kind="a" * 64), "gw"))
    assert match is not None
    assert match["msgid"] == b"a" * MAX_MSGID


@given(st.binary(max_size=2000))
def test_a_frame_counts_octets(message: bytes) -> None:
    length, _, rest = framed(message).partition(b" ")
    assert int(length) == len(message)
    assert rest == message


def test_a_name_that_is_none_is_nil() -> None:
    assert syslog_name("") == "-"
