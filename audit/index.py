"""The query index: a SQLite projection of the log. It proves nothing and can be thrown away and rebuilt.

It holds what records are found by, not the records: those are read from the log, where their hash is checked.
It remembers which log it is of, how far it got and the last entry's hash, so that an index of another or of a longer
log is noticed and rebuilt. One process writes it (flock); `index_questions.py` asks it, beside the writer.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from audit.disk import lock
from audit.errors import IndexLocked, QueryRefused
from audit.index_digest import Digest, digest
from audit.index_rebuild import Progress, ReadableLog, digests, hasten
from audit.index_schema import INDEX_VERSION, INDEXES, INSERT, TABLES
from audit.proof import leaf_hash

_CACHED_TEXTS = 50_000
_MMAP_BYTES = 16 * 2**20  # the writer looks up texts; who asks maps more


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
            if path != ":memory:":
                _remove(_unfinished(path))  # of a rebuild that was killed
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
        if batch:
            self._apply(digest(first_index, batch))

    def _apply(self, made: Digest) -> None:
        if made.first != self.size:
            raise QueryRefused(f"the index is at {self.size}, entries from {made.first} would leave a gap")
        with self._transaction():
            self._store(made)
            self.database.execute(
                "INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?, ?)",
                (INDEX_VERSION, self._origin, made.end, made.last),
            )

    def catch_up(self, log: ReadableLog, progress: Progress | None = None) -> None:
        """Apply what is missing; begin anew first if the index is not of this log, or is ahead of it."""
        if not self._is_of(log):
            self._clear()
        self._fill(log, progress)

    def rebuild(self, log: ReadableLog, progress: Progress | None = None, *, workers: int = 1) -> None:
        """Throw everything away and read the whole log again, by so many processes beside this one.

        Nobody may be asking meanwhile. Cut short, it leaves the index that was there before.
        """
        if self._path == ":memory:":
            self._clear()
            self._fill(log, progress)
            return
        path = _unfinished(self._path)
        _remove(path)
        self._forget()
        self.database.close()
        try:
            self.database = _open(path, workers)
            try:
                self._fill(log, progress, workers)
                self.database.executescript(INDEXES)
            finally:
                self.database.close()
                self._forget()
            _take_the_place(path, Path(self._path))
        finally:
            _remove(path)
            self.database = _open_or_replace(self._path)

    def _fill(self, log: ReadableLog, progress: Progress | None, workers: int = 1) -> None:
        size, start = log.size, self.size
        if start >= size:  # the common case of one that keeps up
            return
        for made in digests(log, start, size, workers=workers):
            self._apply(made)
            if progress is not None:
                progress(made.end, size)

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

    def _store(self, made: Digest) -> None:
        numbers: list[int | None] = [None] * (made.numbers + 1)  # the last one is NO_TERM's
        for text, number in made.texts.items():
            numbers[number] = self._texts.get(text) or self._number(self._texts, "texts", text)
        for sentence, number in made.sentences.items():
            numbers[number] = self._number(self._sentences, "sentences", sentence)
        for members, number in made.sets.items():
            numbers[number] = self._set([numbers[one] for one in members])  # type: ignore[misc]  # texts have theirs
        stored = numbers.__getitem__
        self.database.executemany(INSERT, [[*map(stored, terms), *plain] for terms, plain in made.rows])
        self.database.executemany(
            "INSERT INTO tallies VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
            [(column, stored(number), n) for (column, number), n in made.tallies.items()],
        )
        self.database.executemany(
            "INSERT INTO zones VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
            " SET low = min(low, excluded.low), high = max(high, excluded.high)",
            [(zone, low, high) for zone, (low, high) in made.zones.items()],
        )
        self.database.executemany("DELETE FROM arrivals WHERE vm = ?", [(vm,) for vm in made.arrivals])
        arrived = [(vm, one.host, one.time_us, one.source) for vm, one in made.arrivals.items() if one is not None]
        self.database.executemany("INSERT INTO arrivals VALUES (?, ?, ?, ?)", arrived)

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


def _lock(path: Path | str) -> int:
    if path == ":memory:":
        return -1
    try:
        return lock(f"{path}.lock", 0o600)
    except BlockingIOError:
        raise IndexLocked(f"the index {path} is open in another process (a gateway?); stop that one first") from None


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


def _take_the_place(new: Path, path: Path) -> None:
    """Durable before it has its name; the old one's journal goes with it."""
    with new.open("rb") as file:
        os.fsync(file.fileno())
    _remove(path)
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _unfinished(path: Path | str) -> Path:
    """Where a new index is made."""
    return Path(f"{path}.rebuilding")


def _open(path: Path | str, hasten_by: int = 0) -> sqlite3.Connection:
    """With `hasten_by` threads: a new file that is to be filled, and has no SQL indexes yet."""
    if path != ":memory:":
        # It says who moved what: for nobody else, like the log that it is a copy of.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        if hasten_by:
            hasten(database, hasten_by)
        else:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA mmap_size = {_MMAP_BYTES}")
        if _is_ours(database):
            database.executescript(TABLES if hasten_by else TABLES + INDEXES)
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
