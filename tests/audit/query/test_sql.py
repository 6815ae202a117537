"""SQLite answers as the reference does, whatever is asked of whatever records: pages, counts and histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import QueryRefused
from audit.index import Index
from audit.index_questions import Questions
from audit.query import Node, facets_of, fields, matches
from audit.query.sql import condition_of
from audit.query.tree import All, Has, Is, Like, Or, Wild
from tests.audit.query.documents import NODES, documents

ORIGIN = "gateway.example/sealane"


def entry_of(document: dict[str, Any]) -> bytes:
    return msgspec.json.encode(document if document["kind"] == "sealane-permit" else {"record": document})


def expected(where: Node, found: Sequence[dict[str, Any]]) -> list[int]:
    return [index for index, one in enumerate(found) if matches(where, facets_of(index, one))]


@given(st.lists(documents(), min_size=1, max_size=12), st.lists(NODES, min_size=1, max_size=6))
def test_every_question_has_the_answer_of_the_reference(found: list[dict[str, Any]], nodes: list[Node]) -> None:
    with Index(":memory:", ORIGIN) as index:
        index.apply(0, map(entry_of, found))
        questions = Questions(index.database)
        for where in nodes:
            wanted = expected(where, found)
            assert questions.page(where, limit=1000) == wanted
            assert questions.count(where) == len(wanted)
            newest: list[int] = []
            while page := questions.page(where, after=newest[-1] if newest else None, limit=2, newest_first=True):
                newest += page
            assert newest == wanted[::-1]
            in_order: list[int] = []
            while page := questions.page(where, after=in_order[-1] if in_order else None, limit=1):
                in_order += page
            assert in_order == wanted
            timed = [facets_of(position, found[position]) for position in wanted]
            day = 86400 * 10**6
            counted = Counter(
                (int(one[fields.TIME][0]) // day * day, one.get(fields.OUTCOME, (None,))[0])
                for one in timed
                if fields.TIME in one
            )
            start = 1795305600 * 10**6  # 2026-11-22
            buckets = questions.histogram(where, start, day, 3)
            assert {(one.start, one.outcome): one.count for one in buckets} == counted


@given(NODES)
def test_no_text_of_a_query_is_ever_in_its_sql(where: Node) -> None:
    sql = condition_of(where).sql
    names = {atom.name.replace(".", "_") for atom in fields.ATOMS} | {"policies_set", "groups_set"}
    words = {"SELECT", "id", "FROM", "texts", "sentences", "members", "WHERE", "text", "AND", "OR", "IN", "IS", "NOT"}
    words |= {"TRUE", "NULL", "GLOB", "instr", "position", "0", "1"}
    for piece in sql.translate({ord(one): " " for one in "()|=<>?,'"}).split():
        assert piece in names | words, sql


def test_a_thousand_alternatives_are_not_too_deep_for_sqlite() -> None:
    with Index(":memory:", ORIGIN) as index:
        index.apply(0, [entry_of({"kind": "a", "vm": {"name": "vm-7"}})])
        where = Or(tuple(Is(fields.VM_NAME, f"vm-{number}") for number in range(2000)))
        assert Questions(index.database).page(where) == [0]


def test_a_pattern_that_would_backtrack_for_ever_is_answered_soon() -> None:
    with Index(":memory:", ORIGIN) as index:
        index.apply(0, [entry_of({"kind": "a", "vm": {"name": "a" * 1024}})])
        pattern = (*(Wild.ANY, "a") * 8, "b")
        where = Like(fields.VM_NAME, pattern)
        assert Questions(index.database).page(where) == []
        assert not matches(where, facets_of(0, {"kind": "a", "vm": {"name": "a" * 1024}}))


def test_a_question_that_takes_too_long_ends_with_a_reason() -> None:
    with Index(":memory:", ORIGIN) as index:
        index.apply(0, [entry_of({"kind": "a", "reason": f"r{number}"}) for number in range(20_000)])
        hasty = Questions(index.database, seconds=-1)
        for ask in (hasty.page, hasty.count):
            with pytest.raises(QueryRefused, match="took over"):
                ask(Or((Has(fields.WHY), Has(fields.BYTES))))
        assert Questions(index.database).count(All()) == 20_000


def test_limits_and_buckets_are_bounded() -> None:
    with Index(":memory:", ORIGIN) as index:
        questions = Questions(index.database)
        for limit in (0, -1, 1001):
            with pytest.raises(QueryRefused, match="limit"):
                questions.page(All(), limit=limit)
        for width, buckets in ((0, 1), (1, 0), (1, 2001)):
            with pytest.raises(QueryRefused, match="buckets"):
                questions.histogram(All(), 0, width, buckets)
