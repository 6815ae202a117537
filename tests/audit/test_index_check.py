"""Holding the index against the log: sound it agrees, and whatever is altered in it is told."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.index import Index
from audit.index_check import MAX_DIFFERENCES, differences
from tests.audit.query.documents import documents
from tests.audit.query.test_sql import ORIGIN, entry_of
from tests.audit.samples import DESTINATION, entry, with_permit


class Entries:
    """A log of these entries."""

    origin = ORIGIN

    def __init__(self, entries: list[bytes]) -> None:
        self._entries = entries

    @property
    def size(self) -> int:
        return len(self._entries)

    def entry(self, index: int) -> bytes:
        return self._entries[index]

    def entries(self, start: int, end: int) -> Any:
        return iter(self._entries[start:end])


ARRIVAL = entry(
    2,
    kind="migration.receipt",
    outcome="running",
    destination=DESTINATION,
    details={"role": "destination", "sent_bytes": 5},
)
LOG = Entries([*with_permit(0), ARRIVAL, entry(3, actor=None, reason="Kernel update")])


@pytest.fixture
def index() -> Index:
    index = Index(":memory:", ORIGIN)
    index.catch_up(LOG)
    return index


@given(st.lists(documents(), min_size=1, max_size=10))
def test_what_was_just_made_agrees(found: list[dict[str, Any]]) -> None:
    log = Entries([entry_of(one) for one in found])
    with Index(":memory:", ORIGIN) as index:
        index.catch_up(log)
        assert differences(index.database, log) == []


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("DELETE FROM records WHERE position = 1", "entry 1 is missing"),
        ("UPDATE records SET outcome = NULL WHERE position = 0", "entry 0: outcome"),
        ("UPDATE records SET bytes = 6 WHERE position = 2", "entry 2: bytes"),
        ("UPDATE texts SET text = 'mallory' WHERE text = 'alice'", "who.name"),
        ("UPDATE sentences SET text = 'kernel' WHERE text = 'kernel update'", "entry 3: reason"),
        ("DELETE FROM members", "group"),
        ("UPDATE tallies SET n = n + 1 WHERE field = 2", "tallies of kind"),
        ("DELETE FROM tallies", "tallies"),
        ("UPDATE zones SET high = 0", "zones"),
        ("DELETE FROM arrivals", "arrivals"),
        ("INSERT INTO records (position) VALUES (9)", "1 rows beyond entry 3"),
        ("UPDATE state SET size = 3", "it ends at 3, the log at 4"),
        ("UPDATE state SET last = x'00'", "last entry"),
        ("UPDATE state SET origin = 'other'", "of the log other"),
    ],
)
def test_whatever_is_altered_is_told(index: Index, sql: str, told: str) -> None:
    index.database.execute(sql)
    assert any(told in one for one in differences(index.database, LOG))


def test_an_index_of_another_log_is_told_within_bounds(index: Index) -> None:
    other = Entries([entry(number, reason=f"other {number}") for number in range(4)])
    assert 0 < len(differences(index.database, other)) <= MAX_DIFFERENCES


def test_it_can_be_held_against_the_log_beside_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "index"
    with Index(path, ORIGIN) as index:
        index.catch_up(LOG)
        database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        assert differences(database, LOG) == []
        database.close()
