"""Query texts: what they mean, what is refused and where, and that nothing else ever happens."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import QueryMalformed
from audit.query import facets_of, fields, matches, parse
from audit.query.explain import explain
from audit.query.literals import zone_named
from audit.query.parse import MAX_CHARS, names_in
from audit.query.tree import Between, Is, Not, leaves
from tests.audit.query.documents import DECISION, RECEIPT, documents

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def fits(text: str, document: Mapping[str, Any] = DECISION) -> bool:
    return matches(parse(text, NOW).where, facets_of(7, document))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "*:*",
        "vm:web-1",
        "vm:WEB-1",
        "VM:web-1",
        "vm:5f0c6d5e-3f0a-4a53-9a55-0a4d8f0f3d10",
        'host:"spiffe://bank.example/host/a"',
        "from:a",
        "to:host-zz",
        "who:alice",
        'who:"okta#alice"',
        "group:ops",
        "group:S-1-5-32-544",
        "policy:residency policy:allow-operators",
        "ticket:chg-42",
        "client:192.0.2.*",
        "reason:kernel",
        'reason:"kernel update tonight"',
        "reason:upd*",
        "why:residency",
        "since:30d",
        "since:2026-11-22T21:42:21Z until:2026-11-23",
        "time:2026",
        "time:2026-11",
        "time:2026-11-22",
        "time:2026-11-22T21:42Z",
        "time:[2026-11-22 TO 2026-11-22]",
        'time:"2026-11-22 22:42 +01:00"',
        'time:"2026-11-22 22:42 Europe/Berlin"',
        "time:>2026-11-21",
        "index:7",
        "index:[7 TO 7]",
        "index:{6 TO 8}",
        "index:>=7 index:<=7",
        "web-1",
        "alice denied kernel",
        "vm:(db-1 OR web-?)",
        "-vm:db-1",
        "NOT outcome:allowed",
        "NOT downtime:>0",
        "downtime:* OR vm:*",
        "vm:[v TO x]",
        r"vm:web\-1",
        "(vm:web-1 AND outcome:denied) OR vm:x",
        "+vm:web-1",
    ],
)
def test_what_fits_the_decision(text: str) -> None:
    assert fits(text)


@pytest.mark.parametrize(
    "text",
    [
        "vm:web",
        r"vm:web\*",
        'vm:"web*"',
        "who:bob",
        "outcome:allowed",
        'reason:"update kernel"',
        "reason:kern",
        "since:1d",
        "until:2026-11-22",
        "time:>2026-11-22",
        "time:{2026-11-21 TO 2026-11-22}",
        "index:>7",
        "index:{7 TO 9]",
        "downtime:<1h",
        "NOT web-1",
        "kind:sealane-permit",
        "vm:[a TO w]",
        "vm:%",
        "vm:w_b-1",
    ],
)
def test_what_does_not(text: str) -> None:
    assert not fits(text)


@pytest.mark.parametrize(
    "text",
    [
        "bytes:5M",
        "bytes:>4Mi",
        "downtime:240",
        "downtime:<1s",
        "downtime:240ms",
        "tls:x25519*",
        "permit:j-9",
        "role:source",
    ],
)
def test_what_fits_a_receipt(text: str) -> None:
    assert fits(text, RECEIPT)


@pytest.mark.parametrize(
    ("text", "position", "hint"),
    [
        ("hots:a", 0, "did you mean host?"),
        ("vm:x AND fro:y", 9, "did you mean from?"),
        ("zzzzzz:y", 0, "sealane audit fields"),
        ("a OR b AND c", 11, "parentheses"),
        ("a b OR c", 7, "parentheses"),
        ("a OR b c", 7, "parentheses"),
        ("a OR b OR c d", 12, "parentheses"),
        ("vm:(a OR b c)", 11, "parentheses"),
        ("x:1 AND (a OR b) OR c", 20, "parentheses"),
        ("a OR b c " * 400, 7, "parentheses"),
        ("a and b", 2, "AND in capitals"),
        ("a && b", 2, "AND in capitals"),
        ("!a", 0, "NOT"),
        ("vm:a~2", 3, "wildcards"),
        ('"a b"~2', 0, "wildcards"),
        ("a^2", 0, "no scores"),
        ("vm:/a/", 3, "quotes"),
        ("host:spiffe://a/b", 5, "quotes"),
        ("vm:(who:a)", 4, "quotes"),
        ("index:-1", 6, "before the field"),
        ("index:x", 6, "whole number"),
        ("index:99999999999999999999", 6, "whole number"),
        ("bytes:5X", 6, "5M"),
        ("downtime:fast", 9, "300ms"),
        ("time:30d", 5, "2026-11-22"),
        ("time:2026-02-30", 5, "2026-11-22"),
        ("since:soon", 6, "2026-11-22"),
        ('since:"2026-11-22 09:00 Mars/Base"', 6, "zone"),
        ("since:[1d TO 2d]", 6, "one time"),
        ("since:999999w", 6, "first year"),
        ("reason:k*l", 7, "end of a word"),
        ('reason:"..."', 7, "no word"),
        ("reason:kernel-upd*", 7, "one word"),
        ("reason:[a TO b]", 7, "no order"),
        ("vm:**", 3, "beside its wildcards"),
        ("vm:*a*b*c*d*e*f*g*h*", 3, "at most 8"),
        ("vm:[a* TO b]", 3, "wildcards"),
        (">5", 0, "in which field"),
        ("(a", 2, "missing"),
        ("vm:", 3, "missing"),
        ("a)", 1, "opens"),
        ('vm:"a', 3, "not closed"),
        ("a\ud800", 1, ""),
        ("(" * 17 + "a" + ")" * 17, 17, "simply"),
        ("NOT " * 20 + "a", 68, "simply"),
    ],
)
def test_what_is_refused_says_where_and_what_was_meant(text: str, position: int, hint: str) -> None:
    with pytest.raises(QueryMalformed) as refused:
        parse(text, NOW)
    assert (refused.value.position, hint in refused.value.hint) == (position, True), refused.value


def test_ten_thousand_clauses_are_refused_at_once() -> None:
    for text in (" OR ".join(["a"] * 10_000), " ".join(["a"] * 10_000), "a " * 257, "(" * 5000):
        with pytest.raises(QueryMalformed, match=r"longer|clauses"):
            parse(text, NOW)
    assert parse("vm:a OR " * 200 + "vm:b", NOW)


_WORDS = [
    "vm:",
    "who:",
    "time:",
    "since:",
    "reason:",
    "x:",
    "a",
    "web*",
    "TO",
    "AND",
    "OR",
    "NOT",
    "<=",
    "30d",
    "2026-11-22",
    "&&",
]
_PIECES = st.sampled_from([*'()[]{}-+~^/\\>:*?"\n\0é ', "  ", '"a b"', *_WORDS])


@given(st.one_of(st.text(max_size=60), st.lists(_PIECES, max_size=25).map("".join)), documents())
def test_any_text_is_a_query_or_refused_with_a_position(text: str, document: dict[str, Any]) -> None:
    try:
        query = parse(text, NOW)
    except QueryMalformed as error:
        refused = error
    else:
        matches(query.where, facets_of(0, document))
        assert explain(query.where)
        return
    assert 0 <= refused.position <= min(len(text), MAX_CHARS)


def test_permit_entries_come_only_where_they_are_asked_for() -> None:
    permit = {"kind": "sealane-permit", "claims": {"vm": "5f0c6d5e-3f0a-4a53-9a55-0a4d8f0f3d10", "jti": "J"}}
    assert not fits("", permit)
    assert not fits("permit:j", permit)
    assert fits("permit:j kind:sealane-permit", permit)
    assert Not(Is(fields.KIND, "sealane-permit")) in [parse("", NOW).where]


def test_times_without_a_zone_are_of_the_one_given() -> None:
    zone = timezone(timedelta(hours=1))
    where = parse("time:2026-11-22 kind:sealane-permit", NOW, zone).where
    (bound,) = (leaf for leaf in leaves(where) if isinstance(leaf, Between))
    assert isinstance(bound.low, int)
    assert datetime.fromtimestamp(bound.low / 1e6, UTC) == datetime(2026, 11, 21, 23, tzinfo=UTC)
    assert isinstance(bound.high, int)
    assert bound.high - bound.low == 86400 * 10**6


def test_a_local_day_is_as_long_as_it_is_there() -> None:
    (bound,) = (
        leaf for leaf in leaves(parse('time:"2026-10-25 Europe/Berlin"', NOW).where) if isinstance(leaf, Between)
    )
    assert isinstance(bound.low, int)
    assert isinstance(bound.high, int)
    assert bound.high - bound.low == 25 * 3600 * 10**6


def test_an_explanation_leaves_nothing_open() -> None:
    assert explain(parse("vm:web* -outcome:allowed since:2026-11-22", NOW).where) == [
        "all of:",
        '  vm.id or vm.name like "web*"',
        '  not outcome = "allowed"',
        "  time >= 2026-11-22T00:00:00Z",
        '  not kind = "sealane-permit"',
    ]


def test_names_are_completed() -> None:
    assert names_in("ou") == ["outcome:"]
    assert "vm.name:" in names_in("VM")


def test_no_two_fields_share_a_spelling() -> None:
    spellings = [one for name in fields.NAMES for one in (name.name, *name.others)]
    assert len(spellings) == len(set(spellings))
    assert {atom for name in fields.NAMES for atom in name.atoms} == set(fields.ATOMS)


@pytest.mark.parametrize("name", ["Europe/Nowhere", "/etc/passwd", "../UTC", "", "a\x00b"])
def test_a_zone_that_is_none_is_refused_in_one_way(name: str) -> None:
    with pytest.raises(ValueError, match="there is no time zone"):
        zone_named(name)
