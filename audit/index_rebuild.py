"""Makes the query index anew in a file of its own, which takes the old one's place when it is whole.

Other processes read the log, check its hashes and work out what goes in; this one stores it. The SQL indexes are made
at the end, which is faster, and nothing is journalled: until it is whole the file is worth nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, Protocol

from audit.errors import QueryRefused
from audit.index_digest import Digest, digest
from audit.verify_work import in_order

BATCH: Final = 4096
_CACHE_KIB: Final = 256 * 1024  # pages of texts that are looked up, and then what the SQL indexes sort

Progress = Callable[[int, int], None]


class ReadableLog(Protocol):
    """What the index needs of a log (`audit.log.Log`, or a `CommittedLog` over its files)."""

    @property
    def origin(self) -> str: ...
    @property
    def size(self) -> int: ...
    def entry(self, index: int) -> bytes: ...
    def entries(self, start: int, end: int) -> Iterator[bytes]: ...


def digests(log: ReadableLog, start: int, size: int, *, workers: int = 1) -> Iterator[Digest]:
    """Of the entries [start, size), in order. With several `workers` the log goes to other processes, pickled.

    Raises what reading the log raises, QueryRefused where it gives fewer entries than it has, and BrokenExecutor where
    one of the processes dies.
    """
    if workers == 1 or size - start <= 2 * BATCH:
        entries = log.entries(start, size)
        for first in range(start, size, BATCH):
            yield _digest_of(list(islice(entries, BATCH)), first, size)
        return
    starts = ((log, first, min(first + BATCH, size)) for first in range(start, size, BATCH))
    yield from in_order(_read, starts, workers)


def _read(part: tuple[ReadableLog, int, int]) -> Digest:
    log, first, end = part
    return _digest_of(list(log.entries(first, end)), first, end)


def _digest_of(entries: list[bytes], first: int, size: int) -> Digest:
    if not entries:
        raise QueryRefused(f"the log gave no entry {first} of {size}")
    return digest(first, entries)


def hasten(database: sqlite3.Connection, threads: int) -> None:
    """For a file that nobody else has and that a crash may spoil."""
    for pragma in (
        "journal_mode = OFF",
        "synchronous = OFF",
        "locking_mode = EXCLUSIVE",
        f"cache_size = -{_CACHE_KIB}",
        f"threads = {threads}",
    ):
        database.execute(f"PRAGMA {pragma}")
