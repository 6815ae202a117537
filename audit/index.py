"""The query index: a SQLite projection of the log. It proves nothing and can be thrown away and rebuilt.

One row for each record, with the columns that people filter by, and the record itself. It remembers which
log it is of, how far it got and the last entry's hash, so that an index of another or of a longer log is
noticed and rebuilt. Every value reaches SQLite as a parameter. Permit entries are found by their kind only.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec

from audit.errors import QueryRefused, RecordInvalid
from audit.proof import leaf_hash
from audit.record import PERMIT_KIND, PermitEntry, SignedRecord, decode_entry, parse_time

MAX_LIMIT = 1000
_BATCH = 1000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (one INTEGER PRIMARY KEY CHECK (one = 1), origin TEXT, size INTEGER, last BLOB);
CREATE TABLE IF NOT EXISTS records (
    position INTEGER PRIMARY KEY, kind TEXT NOT NULL, time TEXT, migration_id TEXT, outcome TEXT,
    vm_uuid TEXT, vm_name TEXT, source TEXT, destination TEXT, source_name TEXT, destination_name TEXT,
    actor_id TEXT, actor_name TEXT, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_migration ON records (migration_id, position);
CREATE INDEX IF NOT EXISTS by_time ON records (time, position);
CREATE INDEX IF NOT EXISTS by_kind ON records (kind, position);
CREATE INDEX IF NOT EXISTS by_vm_uuid ON records (vm_uuid, position);
CREATE INDEX IF NOT EXISTS by_actor_id ON records (actor_id, position);
"""
_INSERT = f"INSERT INTO records VALUES ({', '.join('?' * 14)})"  # noqa: S608 - only question marks

# One fixed piece of SQL for each filter; values are bound, never pasted.
_CONDITIONS = {
    "migration_id": "migration_id = :migration_id",
    "vm": "(vm_uuid = :vm OR vm_name = :vm)",
    "host": "(source = :host OR destination = :host OR source_name = :host OR destination_name = :host)",
    "actor": "(actor_id = :actor OR actor_name = :actor)",
    "outcome": "outcome = :outcome",
    "kind": "kind = :kind",
    "since": "time >= :since",
    "until": "time < :until",
}


class ReadableLog(Protocol):
    """What the index needs of `audit.log.Log`."""

    @property
    def origin(self) -> str: ...
    @property
    def size(self) -> int: ...
    def entry(self, index: int) -> bytes: ...
    def entries(self, start: int, end: int) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records: all given ones must hold. `vm` is a UUID or name, `host` a SPIFFE id or its name,
    `actor` an id or name; `since` (inclusive) and `until` (exclusive) are times in a record's form."""

    migration_id: str | None = None
    vm: str | None = None
    host: str | None = None
    actor: str | None = None
    outcome: str | None = None
    kind: str | None = None
    since: str | None = None
    until: str | None = None


class Index:
    """An open index. One thread at a time; `path` may be ":memory:"."""

    def __init__(self, path: Path | str, origin: str) -> None:
        """Open or create the index of the log `origin`. A file that is no database is replaced: it is a copy.

        Raises sqlite3.OperationalError if it cannot be opened (permissions, a full disk, another lock).
        """
        self._origin = origin
        try:
            self._database = _open(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            self._database = _open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    @property
    def size(self) -> int:
        """How many entries of the log have been applied."""
        return self._state()[1]

    def apply(self, first_index: int, entries: Iterable[bytes]) -> None:
        """Add committed entries that follow those applied before; all or none. Raises QueryRefused for a gap."""
        batch = list(entries)
        if not batch:
            return
        if first_index != self.size:
            raise QueryRefused(f"the index is at {self.size}, entries from {first_index} would leave a gap")
        rows = [_row(first_index + offset, entry) for offset, entry in enumerate(batch)]
        end = first_index + len(batch)
        with self._database:
            self._database.execute("BEGIN")
            self._database.executemany(_INSERT, rows)
            self._database.execute(
                "INSERT OR REPLACE INTO state VALUES (1, ?, ?, ?)", (self._origin, end, leaf_hash(batch[-1]))
            )

    def catch_up(self, log: ReadableLog) -> None:
        """Apply what is missing; rebuild first if the index is not of this log, or is ahead of it."""
        if not self._is_of(log):
            self._clear()
        for start in range(self.size, log.size, _BATCH):
            self.apply(start, log.entries(start, min(start + _BATCH, log.size)))

    def rebuild(self, log: ReadableLog) -> None:
        """Throw everything away and read the whole log again."""
        self._clear()
        self.catch_up(log)

    def query(
        self,
        where: Filter,
        after: int | None = None,
        limit: int = 100,
        newest_first: bool = False,
    ) -> list[tuple[int, dict[str, Any]]]:
        """Up to `limit` (1 to 1000) matching records with their index, in the order of the log or newest first.

        `after` is the last index of the page before. Raises QueryRefused.
        """
        sql, parameters = _select(where, after, limit, newest_first=newest_first)
        rows = self._database.execute(sql, parameters)
        return [(position, msgspec.json.decode(body)) for position, body in rows]

    def _state(self) -> tuple[str, int, bytes]:
        row = self._database.execute("SELECT origin, size, last FROM state").fetchone()
        return (self._origin, 0, b"") if row is None else row

    def _is_of(self, log: ReadableLog) -> bool:
        origin, size, last = self._state()
        if size == 0:
            return True
        return origin == log.origin and size <= log.size and leaf_hash(log.entry(size - 1)) == last

    def _clear(self) -> None:
        with self._database:
            self._database.execute("BEGIN")
            self._database.execute("DELETE FROM records")
            self._database.execute("DELETE FROM state")


def _open(path: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    try:
        database.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;" + _SCHEMA)
    except BaseException:
        database.close()
        raise
    return database


def _select(where: Filter, after: int | None, limit: int, *, newest_first: bool) -> tuple[str, dict[str, str | int]]:
    if not 1 <= limit <= MAX_LIMIT:
        raise QueryRefused(f"limit must be from 1 to {MAX_LIMIT}")
    for bound in (where.since, where.until):
        if bound is not None:
            try:
                parse_time(bound)
            except RecordInvalid as error:
                raise QueryRefused("since and until must be like 2026-11-22T21:42:21.123456Z") from error
    given = {field.name: getattr(where, field.name) for field in fields(where)}
    parameters: dict[str, str | int] = {name: value for name, value in given.items() if value is not None}
    try:
        "".join(map(str, parameters.values())).encode()
    except UnicodeEncodeError as error:
        raise QueryRefused("a filter holds text that is not Unicode") from error
    conditions = [_CONDITIONS[name] for name in parameters]
    if where.kind is None:
        conditions.append("kind != :permit_kind")
        parameters["permit_kind"] = PERMIT_KIND
    if after is not None:
        conditions.append("position < :after" if newest_first else "position > :after")
        parameters["after"] = max(-1, min(after, 2**63 - 1))
    parameters["limit"] = limit
    order = "DESC" if newest_first else "ASC"
    return (
        f"SELECT position, body FROM records WHERE {' AND '.join(conditions)}"  # noqa: S608 - fixed pieces
        f" ORDER BY position {order} LIMIT :limit",
        parameters,
    )


def _row(index: int, entry: bytes) -> Sequence[Any]:
    decoded = decode_entry(entry)
    match decoded:
        case PermitEntry(claims=claims):
            names = ("migration_id", "vm", "source", "destination")
            migration_id, vm, source, destination = (_text(claims.get(name)) for name in names)
            hosts = (source, destination, _host_name(source), _host_name(destination))
            return (index, PERMIT_KIND, None, migration_id, None, vm, None, *hosts, None, None, entry)
        case SignedRecord(record=record, record_bytes=body):
            return (
                index,
                record.kind,
                record.time,
                record.migration_id,
                record.outcome,
                record.vm.uuid if record.vm else None,
                record.vm.name if record.vm else None,
                record.source,
                record.destination,
                _host_name(record.source),
                _host_name(record.destination),
                record.actor.id if record.actor else None,
                record.actor.name if record.actor else None,
                body,
            )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _host_name(spiffe_id: str | None) -> str | None:
    return spiffe_id.rpartition("/")[2] if spiffe_id else None
