"""The query index: a SQLite projection of the log. It proves nothing and can be thrown away and rebuilt.

It holds what records are found by, not the records: those are read from the log, where their hash is checked.
It remembers which log it is of, how far it got and the last entry's hash, so that an index of another or of a longer
log is noticed and rebuilt. One process writes it (flock); `index_questions.py` asks it, beside the writer.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec

from audit import index_arrivals
from audit.errors import IndexLocked, QueryRefused
from audit.index_schema import COLUMNS, INDEX_VERSION, INDEXES, INSERT, TABLES, ZONE_WIDTH, Column, Store
from audit.proof import leaf_hash
from audit.query import fields
from audit.query.facets import PERMIT_KIND, UNREADABLE_KIND, Facets, facets_of

BATCH = 4096
_CACHED_TEXTS = 200_000
_MMAP_BYTES = 256 * 2**20

# Where a field stands in a row: going over what a record has, texts apart, is most of a rebuild's speed.
_PLACES = {column.atom: (place, column, column.store is Store.TEXT) for place, column in enumerate(COLUMNS, 1)}

Row = tuple[int | str | None, ...]
Progress = Callable[[int, int], None]


class ReadableLog(Protocol):
    """What the index needs of a log (`audit.log.Log`, or a `CommittedLog` over its files)."""

    @property
    def origin(self) -> str: ...
    @property
    def size(self) -> int: ...
    def entry(self, index: int) -> bytes: ...
    def entries(self, start: int, end: int) -> Iterator[bytes]: ...


class Index:
    """The index, open for writing. One thread at a time; `path` may be ":memory:"."""

    def __init__(self, path: Path | str, origin: str) -> None:
        """Open or create the index of the log `origin`. A file that is no index of ours is replaced: it is a copy.

        Raises IndexLocked (another process writes it), sqlite3.OperationalError or OSError if it cannot be opened.
        """
        self._origin = origin
        self._path = path
        self._lock = _lock(path)
        try:
            self.database = _open_or_replace(path)
        except BaseException:
            self._unlock()
            raise
        self._texts: dict[str, int] = {}
        self._sentences: dict[str, int] = {}
        self._sets: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self.database.close()
        self._unlock()

    @property
    def path(self) -> Path | str:
        """Where it is."""
        return self._path

    @property
    def size(self) -> int:
        """How many entries of the log have been applied."""
        return self._state()[1]

    def apply(self, first_index: int, entries: Iterable[bytes]) -> None:
        """Add committed entries that follow those applied before; all or none. Raises QueryRefused for a gap.

        An entry that cannot be read has a row of kind `unreadable`: it must neither hide nor stop the rest.
        """
        batch = list(entries)
        if not batch:
            return
        if first_index != self.size:
            raise QueryRefused(f"the index is at {self.size}, entries from {first_index} would leave a gap")
        with self._transaction():
            self._insert(first_index, batch)
            end, last = first_index + len(batch), leaf_hash(batch[-1])
            self.database.execute(
                "INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?, ?)", (INDEX_VERSION, self._origin, end, last)
            )

    def catch_up(self, log: ReadableLog, progress: Progress | None = None) -> None:
        """Apply what is missing; begin anew first if the index is not of this log, or is ahead of it."""
        if not self._is_of(log):
            self._clear()
        size = log.size
        start = self.size
        entries = log.entries(start, size)
        while start < size:
            batch = list(islice(entries, BATCH))
            if not batch:
                raise QueryRefused(f"the log gave no entry {start} of {size}")
            self.apply(start, batch)
            start += len(batch)
            if progress is not None:
                progress(start, size)

    def rebuild(self, log: ReadableLog, progress: Progress | None = None) -> None:
        """Throw everything away and read the whole log again; the SQL indexes are made at the end, which is faster.

        Nobody may be asking meanwhile. Cut short, it leaves an index that is whole as far as it got, and catches up
        when it is opened again.
        """
        if self._path == ":memory:":
            self._clear()
        else:  # a new file: emptying a large one takes long, and leaves it large
            self.database.close()
            _remove(self._path)
            self.database = _open(self._path)
            self._forget()
        for column in COLUMNS:
            self.database.execute(f"DROP INDEX IF EXISTS {column.index_name}")
        self.catch_up(log, progress)
        self.database.executescript(INDEXES)

    def _state(self) -> tuple[str, int, bytes]:
        row = self.database.execute("SELECT origin, size, last FROM state").fetchone()
        return (self._origin, 0, b"") if row is None else row

    def _is_of(self, log: ReadableLog) -> bool:
        origin, size, last = self._state()
        if size == 0:
            return True
        return origin == log.origin and size <= log.size and leaf_hash(log.entry(size - 1)) == last

    def _clear(self) -> None:
        with self._transaction():
            for table in ("records", "texts", "sentences", "sets", "members", "tallies", "zones", "arrivals", "state"):
                self.database.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
        self._forget()

    def _forget(self) -> None:
        """What was noted of numbers: they may have been undone with their transaction."""
        self._texts, self._sentences, self._sets = {}, {}, {}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.database.execute("ROLLBACK")
            self._forget()
            raise
        self.database.execute("COMMIT")
        if len(self._texts) + len(self._sentences) > _CACHED_TEXTS:
            self._forget()

    def _insert(self, first_index: int, entries: Sequence[bytes]) -> None:
        tallies: dict[tuple[int, int], int] = {}
        zones: dict[int, tuple[int, int]] = {}
        arrivals: dict[str, index_arrivals.Arrival | None] = {}
        rows = []
        for index, entry in enumerate(entries, first_index):
            document = document_of(entry)
            index_arrivals.apply_to(arrivals, document)
            values = facets_of(index, document)
            rows.append(self._row(index, values, tallies))
            for time in values.get(fields.TIME, ()):
                assert isinstance(time, int)
                low, high = zones.get(index // ZONE_WIDTH, (time, time))
                zones[index // ZONE_WIDTH] = min(low, time), max(high, time)
        self.database.executemany(INSERT, rows)
        self.database.executemany(
            "INSERT INTO tallies VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
            [(field, number, n) for (field, number), n in tallies.items()],
        )
        self.database.executemany(
            "INSERT INTO zones VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
            " SET low = min(low, excluded.low), high = max(high, excluded.high)",
            [(zone, low, high) for zone, (low, high) in zones.items()],
        )
        self.database.executemany("DELETE FROM arrivals WHERE vm = ?", [(vm,) for vm in arrivals])
        arrived = [(vm, each.host, each.time_us, each.source) for vm, each in arrivals.items() if each is not None]
        self.database.executemany("INSERT INTO arrivals VALUES (?, ?, ?, ?)", arrived)

    def _row(self, index: int, values: Facets, tallies: dict[tuple[int, int], int]) -> Row:
        row: list[int | str | None] = [None] * (len(COLUMNS) + 1)
        row[0] = index
        for atom, found in values.items():
            known = _PLACES.get(atom)
            if known is None:
                continue  # the position is the row's own
            place, column, is_text = known
            if is_text:
                text = str(found[0])
                stored: int | str = self._texts.get(text) or self._number(self._texts, "texts", text)
            else:
                stored = self._stored(column, found)
            row[place] = stored
            if column.indexed and type(stored) is int:
                tally = column.number, stored
                tallies[tally] = tallies.get(tally, 0) + 1
        return tuple(row)

    def _stored(self, column: Column, found: Sequence[str | int]) -> int | str:
        match column.store:
            case Store.INTEGER | Store.INLINE:
                return found[0]
            case Store.TEXT:
                return self._number(self._texts, "texts", str(found[0]))
            case Store.SENTENCE:
                return self._number(self._sentences, "sentences", str(found[0]))
            case Store.SET:
                return self._set([self._number(self._texts, "texts", str(text)) for text in found])

    def _number(self, known: dict[str, int], table: str, text: str) -> int:
        number = known.get(text)
        if number is None:
            row = self.database.execute(f"SELECT id FROM {table} WHERE text = ?", (text,)).fetchone()  # noqa: S608
            if row is None:
                number = self.database.execute(f"INSERT INTO {table} (text) VALUES (?)", (text,)).lastrowid  # noqa: S608
                assert number is not None
            else:
                number = int(row[0])
            known[text] = number
        return number

    def _set(self, members: list[int]) -> int:
        name = ",".join(map(str, sorted(members)))
        number = self._sets.get(name)
        if number is None:
            row = self.database.execute("SELECT id FROM sets WHERE texts = ?", (name,)).fetchone()
            if row is None:
                number = self.database.execute("INSERT INTO sets (texts) VALUES (?)", (name,)).lastrowid
                assert number is not None
                self.database.executemany("INSERT INTO members VALUES (?, ?)", [(text, number) for text in members])
            else:
                number = int(row[0])
            self._sets[name] = number
        return number

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def document_of(entry: bytes) -> dict[str, Any]:
    """What stands in an entry, as `facets_of` takes it; what cannot be read has the kind `unreadable`."""
    try:
        document = msgspec.json.decode(entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"kind": UNREADABLE_KIND}
    if isinstance(document, dict):
        if document.get("kind") == PERMIT_KIND:
            return document
        record = document.get("record")
        if isinstance(record, dict) and isinstance(record.get("kind"), str) and record["kind"]:
            return record
    return {"kind": UNREADABLE_KIND}


def _lock(path: Path | str) -> int:
    if path == ":memory:":
        return -1
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise IndexLocked(f"the index {path} is open in another process (a gateway?); stop that one first") from None
    return descriptor


def _open_or_replace(path: Path | str) -> sqlite3.Connection:
    try:
        database = _open(path)
        if _is_ours(database):
            return database
        database.close()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        pass
    _remove(path)
    return _open(path)


def _remove(path: Path | str) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _open(path: Path | str) -> sqlite3.Connection:
    if path != ":memory:":
        # It says who moved what: for nobody else, like the log that it is a copy of.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA mmap_size = {_MMAP_BYTES}")
        if _is_ours(database):
            database.executescript(TABLES + INDEXES)
            database.execute(f"PRAGMA user_version = {INDEX_VERSION}")
    except BaseException:
        database.close()
        raise
    return database


def _is_ours(database: sqlite3.Connection) -> bool:
    """Of this version, or new and empty."""
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    if version == INDEX_VERSION:
        return True
    tables = int(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    return version == 0 and tables == 0
