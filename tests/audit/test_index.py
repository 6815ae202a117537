"""The query index: finds by every filter, treats all input as data, and can be thrown away."""

import itertools
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import QueryRefused
from audit.index import Filter, Index
from audit.log import Log
from audit.record import PERMIT_KIND, Actor, Vm
from tests.audit.disks import FastDisk
from tests.audit.samples import DESTINATION, ORIGIN, SIGNER, SOURCE, VM_ID, entry, one, raw, with_permit

OTHER_VM = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def index() -> Index:
    index = Index(":memory:", ORIGIN)
    bob = Actor("okta#bob", "bob", "oidc", "https://issuer.example", None)
    decision, issued = with_permit(0)
    index.apply(
        0,
        [
            decision,
            issued,
            entry(2, actor=bob, outcome="denied", migration_id="m-2", destination="spiffe://bank.example/host/c"),
            entry(3, actor=None, vm=Vm(OTHER_VM, "db-1"), kind="receipt", outcome="completed", migration_id="m-0"),
            entry(4, actor=None, vm=None, source=None, destination=None, kind="heartbeat", outcome=None),
        ],
    )
    return index


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (Filter(), [0, 2, 3, 4]),
        (Filter(migration_id="m-0"), [0, 3]),
        (Filter(vm=VM_ID), [0, 2]),
        (Filter(vm="db-1"), [3]),
        (Filter(host=DESTINATION), [0, 3]),
        (Filter(host=SOURCE), [0, 2, 3]),
        (Filter(host="c"), [2]),
        (Filter(actor="okta#bob"), [2]),
        (Filter(actor="alice"), [0]),
        (Filter(outcome="denied"), [2]),
        (Filter(kind="receipt"), [3]),
        (Filter(kind=PERMIT_KIND), [1]),
        (Filter(kind=PERMIT_KIND, vm=VM_ID, host="b", migration_id="m-0"), [1]),
        (Filter(since="2026-11-22T21:00:02.000000Z"), [2, 3, 4]),
        (Filter(until="2026-11-22T21:00:03.000000Z"), [0, 2]),
        (Filter(actor="alice", outcome="denied"), []),
        (Filter(vm="' OR 1=1 --"), []),
        (Filter(host="%"), []),
    ],
)
def test_each_filter_finds_its_records(index: Index, where: Filter, expected: list[int]) -> None:
    assert [position for position, _ in index.query(where)] == expected
    assert [position for position, _ in index.query(where, newest_first=True)] == expected[::-1]


def test_what_is_found_is_the_record(index: Index) -> None:
    ((position, found),) = index.query(Filter(actor="bob"))
    assert (position, found["sequence"], found["outcome"]) == (2, 2, "denied")


@pytest.mark.parametrize("newest_first", [False, True])
def test_pages_continue_after_the_last_index(index: Index, newest_first: bool) -> None:
    seen: list[int] = []
    after = None
    while page := index.query(Filter(), after, 2, newest_first):
        seen += [position for position, _ in page]
        after = seen[-1]
    assert seen == sorted([0, 2, 3, 4], reverse=newest_first)


@given(st.text(), st.integers())
def test_any_text_and_number_is_data(text: str, after: int) -> None:
    with Index(":memory:", ORIGIN) as index:
        index.apply(0, [entry(0)])
        assert index.query(Filter(vm=text, host=text, actor=text, migration_id=text), after) == []


def test_malformed_filters_are_refused(index: Index) -> None:
    for where in (Filter(since="yesterday"), Filter(until="2026-11-22"), Filter(vm="\ud800")):
        with pytest.raises(QueryRefused):
            index.query(where)
    for limit in (0, -1, 1001):
        with pytest.raises(QueryRefused, match="limit"):
            index.query(Filter(), limit=limit)


def test_entries_are_applied_in_order_and_whole(index: Index) -> None:
    for first in (0, 4, 6):
        with pytest.raises(QueryRefused, match="gap"):
            index.apply(first, [entry(first)])
    with pytest.raises(Exception, match="neither"):
        index.apply(5, [entry(5), b"not an entry"])
    assert index.size == 5
    index.apply(5, [])
    index.apply(5, [entry(5)])
    assert index.size == 6


def test_it_catches_up_with_the_log_and_is_rebuilt_from_it(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log", SIGNER, disk=FastDisk()) as log, Index(tmp_path / "index", ORIGIN) as index:
        log.append([with_permit] * 300)
        index.catch_up(log)
        assert index.size == 600
        log.append([one])
        index.catch_up(log)
        before = list(itertools.chain(index.query(Filter(), limit=1000), index.query(Filter(kind=PERMIT_KIND))))
        index.rebuild(log)
        assert before == [*index.query(Filter(), limit=1000), *index.query(Filter(kind=PERMIT_KIND))]


@pytest.mark.parametrize("other", [raw(entry(0, reason="another log's")), raw(entry(0), entry(1), entry(2))])
def test_an_index_of_another_or_a_longer_log_is_rebuilt(other: object, tmp_path: Path) -> None:
    with Index(tmp_path / "index", ORIGIN) as index:
        for name, builder in (("a", other), ("b", one)):
            with Log.open(tmp_path / name, SIGNER, disk=FastDisk()) as log:
                log.append([builder])  # type: ignore[list-item]  # parametrised
                index.catch_up(log)
        assert [(position, found["reason"]) for position, found in index.query(Filter())] == [(0, "maintenance")]


def test_an_index_survives_reopening_and_a_broken_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with Index(path, ORIGIN) as index:
        index.apply(0, [entry(0)])
    with Index(path, ORIGIN) as index:
        assert index.size == 1
    for leftover in tmp_path.iterdir():
        leftover.write_bytes(b"this is not a database" * 100)
    with Index(path, ORIGIN) as index:
        assert index.size == 0
        index.apply(0, [entry(0)])


def test_an_index_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError):
        Index(tmp_path / "missing" / "index", ORIGIN)
