"""Holds the query index against the log: every row, every tally, every zone. It tells, and repairs nothing."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice

from audit import index_arrivals
from audit.index_digest import document_of
from audit.index_rebuild import BATCH, ReadableLog
from audit.index_schema import COLUMNS, INDEX_VERSION, ZONE_WIDTH, Column, Store
from audit.proof import leaf_hash
from audit.query.facets import facets_of

MAX_DIFFERENCES = 100

Value = str | int


def differences(
    database: sqlite3.Connection, log: ReadableLog, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """What the index says otherwise than the log, at most MAX_DIFFERENCES lines. Raises LogError, sqlite3.Error."""
    return list(islice(_all(database, log, progress), MAX_DIFFERENCES))


def _all(database: sqlite3.Connection, log: ReadableLog, progress: Callable[[int, int], None] | None) -> Iterator[str]:
    state = database.execute("SELECT version, origin, size, last FROM state").fetchone()
    version, origin, size, last = state or (INDEX_VERSION, log.origin, 0, b"")
    if (version, origin) != (INDEX_VERSION, log.origin):
        yield f"it is of version {version} and of the log {origin}"
        return
    if size != log.size:
        yield f"it ends at {size}, the log at {log.size}"
    size = min(size, log.size)
    if size and size == (state[2] if state else 0) and leaf_hash(log.entry(size - 1)) != last:
        yield "its last entry is not the log's"
    yield from _rows(database, log, size, progress)
    yield from _tallies(database)
    yield from _zones(database)


def _rows(
    database: sqlite3.Connection, log: ReadableLog, size: int, progress: Callable[[int, int], None] | None
) -> Iterator[str]:
    read = _Values(database)
    arrivals: dict[str, index_arrivals.Arrival | None] = {}
    entries = log.entries(0, size)
    for start in range(0, size, BATCH):
        end = min(start + BATCH, size)
        rows = database.execute("SELECT * FROM records WHERE position >= ? AND position < ?", (start, end)).fetchall()
        stored = {row[0]: row[1:] for row in rows}
        for index, entry in enumerate(islice(entries, end - start), start):
            document = document_of(entry)
            index_arrivals.apply_to(arrivals, document)
            row = stored.get(index)
            if row is None:
                yield f"entry {index} is missing"
                continue
            values = facets_of(index, document)
            for column, value in zip(COLUMNS, row, strict=True):
                if read.of(column, value) != tuple(values.get(column.atom, ())):
                    yield f"entry {index}: {column.atom.name} is not the record's"
        if progress is not None:
            progress(end, size)
    (more,) = database.execute("SELECT count(*) FROM records WHERE position >= ?", (size,)).fetchone()
    if more:
        yield f"it has {more} rows beyond entry {size - 1}"
    arrived = {(vm, one.host, one.time_us, one.source) for vm, one in arrivals.items() if one is not None}
    if arrived != set(database.execute("SELECT vm, host, time, source FROM arrivals")):
        yield "its arrivals of VMs are not what the log says"


def _tallies(database: sqlite3.Connection) -> Iterator[str]:
    for column in COLUMNS:
        if not column.indexed or column.store is Store.INLINE:
            continue
        counted = database.execute(
            f"SELECT {column.name}, count(*) FROM records WHERE {column.name} IS NOT NULL GROUP BY 1"  # noqa: S608
        ).fetchall()
        kept = database.execute("SELECT id, n FROM tallies WHERE field = ?", (column.number,)).fetchall()
        if sorted(counted) != sorted(kept):
            yield f"its tallies of {column.atom.name} are wrong"


def _zones(database: sqlite3.Connection) -> Iterator[str]:
    counted = database.execute(
        "SELECT position / ?, min(time), max(time) FROM records WHERE time IS NOT NULL GROUP BY 1", (ZONE_WIDTH,)
    ).fetchall()
    if sorted(counted) != sorted(database.execute("SELECT zone, low, high FROM zones").fetchall()):
        yield "its zones of time are wrong"


class _Values:
    """What a number in a column stands for; noted as it is looked up."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._known: defaultdict[str, dict[int, tuple[Value, ...]]] = defaultdict(dict)

    def of(self, column: Column, stored: Value | None) -> tuple[Value, ...]:
        if stored is None:
            return ()
        match column.store:
            case Store.INTEGER | Store.INLINE:
                return (stored,)
            case Store.TEXT:
                return self._looked_up("SELECT text FROM texts WHERE id = ?", stored)
            case Store.SENTENCE:
                return self._looked_up("SELECT text FROM sentences WHERE id = ?", stored)
            case Store.SET:
                question = "SELECT t.text FROM members m JOIN texts t ON t.id = m.text WHERE m.id = ?"
                return self._looked_up(question, stored)

    def _looked_up(self, question: str, stored: Value) -> tuple[Value, ...]:
        known = self._known[question]
        number = int(stored)
        if number not in known:
            if len(known) > 200_000:
                known.clear()
            known[number] = tuple(sorted(text for (text,) in self._database.execute(question, (number,))))
        return known[number]
