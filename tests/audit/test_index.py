"""The query index: finds by every filter, treats all input as data, and can be thrown away."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import IndexLocked, QueryRefused
from audit.index import Index
from audit.index_questions import Questions
from audit.log import Log
from audit.query import All, Node, fields
from audit.query.facets import PERMIT_KIND
from audit.query.terms import NAMES, terms
from audit.query.tree import Is, Not, all_of
from audit.reader import CommittedLog, LogReader
from audit.record import Actor, Vm
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


def where(**given: str) -> Node:
    """Permits only where they are asked for, as `parse` has it."""
    permits = given.get("kind") == PERMIT_KIND
    return terms(given) if permits else all_of(terms(given), Not(Is(fields.KIND, PERMIT_KIND)))


def ask(index: Index) -> Questions:
    return Questions(index.database)


@pytest.mark.parametrize(
    ("given_terms", "expected"),
    [
        ({}, [0, 2, 3, 4]),
        ({"migration": "m-0"}, [0, 3]),
        ({"vm": VM_ID}, [0, 2]),
        ({"vm": "DB-1"}, [3]),
        ({"host": DESTINATION}, [0, 3]),
        ({"host": SOURCE}, [0, 2, 3]),
        ({"host": "c"}, [2]),
        ({"actor": "okta#bob"}, [2]),
        ({"actor": "alice"}, [0]),
        ({"outcome": "denied"}, [2]),
        ({"kind": "receipt"}, [3]),
        ({"kind": PERMIT_KIND}, [1]),
        ({"kind": PERMIT_KIND, "vm": VM_ID, "host": "b", "migration": "m-0"}, [1]),
        ({"since": "2026-11-22T21:00:02.000000Z"}, [2, 3, 4]),
        ({"until": "2026-11-22T21:00:03.000000Z"}, [0, 2]),
        ({"actor": "alice", "outcome": "denied"}, []),
        ({"vm": "' OR 1=1 --"}, []),
        ({"host": "%"}, []),
        ({"host": "spiffe://other.example/host/c"}, []),
    ],
)
def test_each_term_finds_its_records(index: Index, given_terms: dict[str, str], expected: list[int]) -> None:
    assert ask(index).page(where(**given_terms)) == expected
    assert ask(index).page(where(**given_terms), newest_first=True) == expected[::-1]
    assert ask(index).count(where(**given_terms)) == len(expected)


@given(st.sampled_from(NAMES[:-2]), st.text(min_size=1))
def test_any_text_is_data(name: str, text: str) -> None:
    with Index(":memory:", ORIGIN) as index:
        index.apply(0, [entry(0)])
        assert Questions(index.database).page(terms({name: text, "vm": "x" + text})) == []


def test_malformed_terms_are_refused() -> None:
    for given_terms in ({"since": "yesterday"}, {"until": "2026-11-22"}, {"vm": "\ud800"}):
        with pytest.raises(QueryRefused):
            terms(given_terms)


def test_entries_are_applied_in_order_and_what_cannot_be_read_has_its_row(index: Index) -> None:
    for first in (0, 4, 6):
        with pytest.raises(QueryRefused, match="gap"):
            index.apply(first, [entry(first)])
    index.apply(5, [])
    index.apply(5, [entry(5), b"not an entry", b"[]", b'{"record":{"kind":7}}'])
    assert index.size == 9
    assert ask(index).page(where(kind="unreadable")) == [6, 7, 8]
    index.apply(9, [receipt(9, SOURCE).replace(b'"outcome":"running"', b'"outcome":["running"]')])
    assert placed(index) == {}
    assert ask(index).page(where(kind="migration.receipt")) == [9]


def test_a_batch_that_fails_leaves_nothing_behind(index: Index) -> None:
    with pytest.raises(TypeError):
        index.apply(5, [entry(5, vm=Vm(None, "new-name")), None])  # type: ignore[list-item]  # a bug of a caller
    assert index.size == 5
    index.apply(5, [entry(5, vm=Vm(None, "another")), entry(6, vm=Vm(None, "new-name"))])
    assert ask(index).page(where(vm="new-name")) == [6]


def test_it_catches_up_with_the_log_and_is_rebuilt_from_it(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log", SIGNER, disk=FastDisk()) as log, Index(tmp_path / "index", ORIGIN) as index:
        log.append([with_permit] * 300)
        index.catch_up(log)
        assert index.size == 600
        log.append([one])
        index.catch_up(CommittedLog(ORIGIN, log.size, LogReader(tmp_path / "log")))
        before = list(index.database.iterdump())
        index.rebuild(log)
        assert before == list(index.database.iterdump())


def test_a_rebuild_by_several_processes_gives_the_same_index(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log", SIGNER, disk=FastDisk()) as log:
        log.append([with_permit] * 5_000)
    committed = CommittedLog(ORIGIN, 10_000, LogReader(tmp_path / "log"))
    with Index(tmp_path / "index", ORIGIN) as index:
        index.catch_up(committed)
        before, told = list(index.database.iterdump()), list[tuple[int, int]]()
        index.rebuild(committed, lambda *done: told.append(done), workers=2)
        assert before == list(index.database.iterdump())
        assert told[-1] == (10_000, 10_000)
        assert index.database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "index.lock", "log"]


def test_a_rebuild_that_is_cut_short_leaves_the_index_that_was_there(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log", SIGNER, disk=FastDisk()) as log, Index(tmp_path / "index", ORIGIN) as index:
        log.append([with_permit] * 300)
        index.catch_up(log)
        before = list(index.database.iterdump())

        def stop(_done: int, _size: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            index.rebuild(log, stop)
        assert before == list(index.database.iterdump())
        log.append([one])
        index.catch_up(log)
        assert index.size == 601


def test_what_a_killed_rebuild_left_goes_when_the_index_is_opened(tmp_path: Path) -> None:
    left = tmp_path / "index.sqlite.rebuilding"
    left.write_bytes(b"half of it")
    Index(tmp_path / "index.sqlite", ORIGIN).close()
    assert not left.exists()


@pytest.mark.parametrize("other", [raw(entry(0, reason="another log's")), raw(entry(0), entry(1), entry(2))])
def test_an_index_of_another_or_a_longer_log_is_rebuilt(other: object, tmp_path: Path) -> None:
    with Index(tmp_path / "index", ORIGIN) as index:
        for name, builder in (("a", other), ("b", one)):
            with Log.open(tmp_path / name, SIGNER, disk=FastDisk()) as log:
                log.append([builder])  # type: ignore[list-item]  # parametrised
                index.catch_up(log)
        assert ask(index).page(All()) == [0]
        assert index.database.execute("SELECT text FROM sentences").fetchall() == [("maintenance",)]


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


def test_an_index_of_an_older_version_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE records (position INTEGER PRIMARY KEY, body BLOB)")
    old.close()
    with Index(path, ORIGIN) as index:
        index.apply(0, [entry(0)])
        assert path.stat().st_mode & 0o077 == 0


def test_one_process_writes_it(tmp_path: Path) -> None:
    with Index(tmp_path / "index", ORIGIN), pytest.raises(IndexLocked, match="stop that one first"):
        Index(tmp_path / "index", ORIGIN)


def test_an_index_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        Index(tmp_path / "missing" / "index", ORIGIN)


def receipt(sequence: int, host: str, **details: object) -> bytes:
    details = {"role": "destination", **details}
    return entry(sequence, kind="migration.receipt", outcome="running", destination=host, details=details)


def placed(index: Index) -> dict[str, tuple[str, str]]:
    return {vm: (arrival.host, arrival.source) for vm, arrival in ask(index).arrivals().items()}


def test_arrivals_are_the_last_that_was_certified_or_shown_and_not_forgotten(index: Index) -> None:
    index.apply(5, [receipt(5, SOURCE), receipt(6, DESTINATION), receipt(7, SOURCE, role="source")])
    assert placed(index) == {VM_ID: (DESTINATION, "receipt")}
    index.apply(8, [entry(8, kind="config.reloaded", details={"placement_forgotten": [VM_ID]})])
    assert placed(index) == {}
    index.apply(9, [receipt(9, SOURCE)])
    assert placed(index) == {VM_ID: (SOURCE, "receipt")}
    adopted = {"host": DESTINATION, "vms": [VM_ID, "other"]}
    index.apply(10, [entry(10, kind="placement.adopted", details=adopted)])
    assert placed(index) == {VM_ID: (DESTINATION, "report"), "other": (DESTINATION, "report")}
    assert ask(index).arrivals()[VM_ID].time_us > 0
    index.apply(11, [receipt(11, SOURCE, moves_guest=False)])
    index.apply(12, [receipt(12, SOURCE, places_vm=False)])
    assert placed(index)[VM_ID] == (DESTINATION, "report"), "a named port moves no VM, and what came late says nothing"
