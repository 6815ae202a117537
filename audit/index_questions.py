"""Questions to the index: pages, counts, a histogram over time. Each filters everything, however much that is.

A plan is made from exact tallies, not guesses: the rarest condition with an index of its own drives the search, or,
if all are common, the log is walked in order. Every question has a deadline.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from audit.errors import QueryRefused
from audit.index_arrivals import Arrival
from audit.index_schema import COLUMN_OF, NAME_OF_ID, ZONE_WIDTH, Column, Store
from audit.query import fields
from audit.query.facets import PERMIT_KIND
from audit.query.sql import HAS_WORDS, Condition, condition_of, glob_of, sought_words
from audit.query.text import MAX_TEXT_CHARS
from audit.query.tree import All, And, Between, Is, Like, Node, Not, Or, Phrase, all_of

MAX_LIMIT: Final = 1000
MAX_BUCKETS: Final = 2000
_MAX_BRANCHES: Final = 64
_RARE: Final = 100_000  # records that are sooner fetched one by one than the whole log walked
_STEPS_BETWEEN_LOOKS: Final = 20_000
MAPPED_BYTES: Final = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Bucket:
    """Records of one outcome whose time is in [start, start + width); microseconds since 1970."""

    start: int
    outcome: str | None
    count: int


@dataclass(frozen=True, slots=True)
class _Branch:
    """One value of an indexed column: a part of what is looked for, and in how many records it stands."""

    column: Column
    value: int | str
    count: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """Positions [low, high) to look at; `branches`: only records that are in one of them (None: walk them all)."""

    low: int
    high: int
    branches: tuple[_Branch, ...] | None
    condition: Condition


class Questions:
    """A read-only connection. One thread at a time; any number of them beside the writer."""

    def __init__(
        self, source: Path | sqlite3.Connection, *, seconds: float = 30.0, mapped_bytes: int = MAPPED_BYTES
    ) -> None:
        """`source`: the index's file, or an open connection (which is the caller's). `seconds` for each question.

        Raises sqlite3.OperationalError if it cannot be opened.
        """
        self._owned = isinstance(source, Path)
        self._seconds = seconds
        self._sentences: dict[tuple[str, ...], list[int]] = {}  # that hold what this question looks for
        if isinstance(source, sqlite3.Connection):
            self._database = source
            return
        self._database = sqlite3.connect(
            f"{source.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False, isolation_level=None
        )
        self._database.execute(f"PRAGMA mmap_size = {mapped_bytes}")

    def close(self) -> None:
        """Close the connection, if it is ours."""
        if self._owned:
            self._database.close()

    @property
    def state(self) -> tuple[int, str, int]:
        """The version of the index, the origin of its log, and how many entries of it are in."""
        row = self._database.execute("SELECT version, origin, size FROM state").fetchone()
        return (0, "", 0) if row is None else (int(row[0]), str(row[1]), int(row[2]))

    @property
    def size(self) -> int:
        """How many entries of the log are in the index."""
        row = self._database.execute("SELECT size FROM state").fetchone()
        return 0 if row is None else int(row[0])

    def page(self, where: Node, *, after: int | None = None, limit: int = 100, newest_first: bool = False) -> list[int]:
        """Up to `limit` (1 to 1000) positions of matching records, in the order of the log or newest first.

        `after` is the last position of the page before: what is appended meanwhile neither repeats nor hides one.
        Raises QueryRefused.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise QueryRefused(f"limit must be from 1 to {MAX_LIMIT}")
        with self._deadline():
            plan = self._plan(where)
            low, high = plan.low, plan.high
            if after is not None and newest_first:
                high = min(high, max(after, 0))
            elif after is not None:
                low = max(low, min(after, 2**62) + 1)
            order = "DESC" if newest_first else "ASC"
            found: set[int] = set()
            for sql, parameters in _selections(plan, low, high):
                rows = self._database.execute(f"{sql} ORDER BY position {order} LIMIT ?", (*parameters, limit))
                found.update(position for (position,) in rows)
            return sorted(found, reverse=newest_first)[:limit]

    def count(self, where: Node) -> int:
        """How many records match. Raises QueryRefused."""
        if where == Not(Is(fields.KIND, PERMIT_KIND)):
            return self.size - self._tally(COLUMN_OF[fields.KIND], PERMIT_KIND)
        with self._deadline():
            plan = self._plan(where)
            selections = list(_selections(plan, plan.low, plan.high))
            if not selections:
                return 0
            # UNION: a record that is in two branches counts once.
            inner = " UNION ".join(sql for sql, _ in selections)
            parameters = [value for _, values in selections for value in values]
            (found,) = self._database.execute(f"SELECT count(*) FROM ({inner})", parameters).fetchone()  # noqa: S608
            return int(found)

    def span(self) -> tuple[int, int] | None:
        """The earliest and the latest time of any record, microseconds since 1970."""
        row = self._database.execute("SELECT min(low), max(high) FROM zones").fetchone()
        return None if row is None or row[0] is None else (int(row[0]), int(row[1]))

    def arrivals(self) -> dict[str, Arrival]:
        """Where each VM was last certified, or shown, to run, by its UUID."""
        found = self._database.execute("SELECT vm, host, time, source FROM arrivals").fetchall()
        return {vm: Arrival(host, time, source) for vm, host, time, source in found}

    def histogram(self, where: Node, start: int, width: int, buckets: int) -> list[Bucket]:
        """Matching records by time and outcome, in `buckets` of `width` microseconds from `start` on; none empty.

        Raises QueryRefused.
        """
        if not (1 <= buckets <= MAX_BUCKETS and width >= 1):
            raise QueryRefused(f"a histogram has from 1 to {MAX_BUCKETS} buckets")
        end = min(start + width * buckets, 2**63 - 1)
        within = all_of(where, Between(fields.TIME, start, end, include_high=False))
        counted: dict[tuple[int, int | None], int] = {}
        with self._deadline():
            plan = self._plan(within)
            by_bucket = plan.branches is None and _is_in_time_index(where)
            for bucket, outcome, n in (
                self._by_bucket(where, start, width, buckets) if by_bucket else self._at_once(plan, start, width)
            ):
                counted[bucket, outcome] = counted.get((bucket, outcome), 0) + n
        names = self._texts_of({outcome for _, outcome in counted if outcome is not None})
        found = [Bucket(start + bucket * width, names.get(outcome or 0), n) for (bucket, outcome), n in counted.items()]
        return sorted(found, key=lambda one: (one.start, one.outcome or ""))

    def _at_once(self, plan: _Plan, start: int, width: int) -> Iterator[tuple[int, int | None, int]]:
        selections = list(_selections(plan, plan.low, plan.high, columns="position, time, outcome"))
        # One branch has no record twice; several may, and UNION counts each once.
        for sql, parameters in [_united(selections)] if selections else ():
            yield from self._database.execute(
                f"SELECT (time - ?) / ? AS bucket, outcome, count(*) FROM ({sql}) GROUP BY 1, 2",  # noqa: S608
                (start, width, *parameters),
            )

    def _by_bucket(self, where: Node, start: int, width: int, buckets: int) -> Iterator[tuple[int, int | None, int]]:
        """Half the time where it is much: the index is in order of time, and only a bucket is sorted by outcome."""
        span, condition = self.span(), condition_of(where)
        first, last = (0, -1) if span is None else ((span[0] - start) // width, (span[1] - start) // width)
        for bucket in range(max(first, 0), min(last + 1, buckets)):
            low = start + bucket * width
            for outcome, n in self._database.execute(
                "SELECT outcome, count(*) FROM records INDEXED BY by_time"  # noqa: S608 - fixed pieces
                f" WHERE time >= ? AND time < ? AND ({condition.sql}) GROUP BY outcome",
                (low, min(low + width, 2**63 - 1), *condition.parameters),
            ):
                yield bucket, outcome, n

    def _plan(self, where: Node) -> _Plan:
        parts = where.parts if isinstance(where, And) else (where,)
        low, high = 0, self.size
        self._sentences = {}
        best: tuple[_Branch, ...] | None = None
        rarest = min(_RARE, high // 4)
        for part in parts:
            if isinstance(part, Between) and part.atom == fields.TIME:
                first, last = self._zone_bounds(part)
                low, high = max(low, first), min(high, last)
            branches = self._branches(part)
            if branches is not None and (total := sum(one.count for one in branches)) <= rarest:
                best, rarest = branches, total
        return _Plan(low, max(low, high), best, condition_of(where))

    def _branches(self, part: Node) -> tuple[_Branch, ...] | None:
        """The indexed values that records must have one of to match `part`; None if that cannot be said."""
        match part:
            case Is(atom, value) if atom in COLUMN_OF:
                return self._equal(atom, str(value))
            case Like(atom, pattern) if COLUMN_OF[atom].indexed and COLUMN_OF[atom].store is not Store.INLINE:
                rows = self._database.execute(
                    "SELECT text FROM texts WHERE text GLOB ? LIMIT ?", (glob_of(pattern), _MAX_BRANCHES + 1)
                ).fetchall()
                if len(rows) > _MAX_BRANCHES:
                    return None
                return self._any(self._equal(atom, text) for (text,) in rows)
            case Phrase(atom, all_words, is_prefix):
                return self._with_words(COLUMN_OF[atom], *sought_words(all_words, is_prefix=is_prefix))
            case Or(parts) if len(parts) <= _MAX_BRANCHES:
                return self._any(self._branches(one) for one in parts)
            case _:
                return None

    def _with_words(self, column: Column, *sought: str) -> tuple[_Branch, ...] | None:
        if sought not in self._sentences:  # a word is looked for in several columns: each sentence is looked at once
            rows = self._database.execute(
                f"SELECT id FROM sentences WHERE {HAS_WORDS} LIMIT ?",  # noqa: S608 - fixed pieces
                (*sought, _MAX_BRANCHES + 1),
            )
            self._sentences[sought] = [int(number) for (number,) in rows]
        numbers = self._sentences[sought]
        if len(numbers) > _MAX_BRANCHES:
            return None
        marks = ", ".join("?" * len(numbers))
        rows = self._database.execute(
            f"SELECT id, n FROM tallies WHERE field = ? AND id IN ({marks})",  # noqa: S608 - question marks
            (column.number, *numbers),
        )
        return tuple(_Branch(column, number, n) for number, n in rows)

    def _any(self, each: Iterator[tuple[_Branch, ...] | None]) -> tuple[_Branch, ...] | None:
        found: list[_Branch] = []
        for branches in each:
            if branches is None or len(found) + len(branches) > _MAX_BRANCHES:
                return None
            found += [one for one in branches if one not in found]
        return tuple(found)

    def _equal(self, atom: fields.Atom, text: str) -> tuple[_Branch, ...] | None:
        if atom in NAME_OF_ID:
            atom, text = NAME_OF_ID[atom], text.rpartition("/")[2]
            if not text or len(text) >= MAX_TEXT_CHARS // 2:  # its name may be missing, or cut otherwise
                return None
        column = COLUMN_OF[atom]
        if not column.indexed:
            return None
        if column.store is Store.INLINE:
            return (_Branch(column, text, 1),)  # an id: in a few records only
        if column.store is Store.SET:
            question = "SELECT m.id, n FROM texts t JOIN members m ON m.text = t.id JOIN tallies y ON y.id = m.id"
        else:
            question = "SELECT t.id, n FROM texts t JOIN tallies y ON y.id = t.id"
        rows = self._database.execute(
            f"{question} WHERE t.text = ? AND y.field = ? LIMIT ?", (text, column.number, _MAX_BRANCHES + 1)
        ).fetchall()
        return None if len(rows) > _MAX_BRANCHES else tuple(_Branch(column, number, n) for number, n in rows)

    def _zone_bounds(self, times: Between) -> tuple[int, int]:
        """Positions outside of which no record has such a time."""
        low, high = (
            times.low if times.low is not None else -(2**63),
            times.high if times.high is not None else 2**63 - 1,
        )
        row = self._database.execute(
            "SELECT min(zone), max(zone) FROM zones WHERE high >= ? AND low <= ?", (low, high)
        ).fetchone()
        return (0, 0) if row[0] is None else (row[0] * ZONE_WIDTH, (row[1] + 1) * ZONE_WIDTH)

    def _tally(self, column: Column, text: str) -> int:
        row = self._database.execute(
            "SELECT n FROM tallies WHERE field = ? AND id = (SELECT id FROM texts WHERE text = ?)",
            (column.number, text),
        ).fetchone()
        return 0 if row is None else int(row[0])

    def _texts_of(self, numbers: set[int]) -> dict[int, str]:
        marks = ", ".join("?" * len(numbers))
        rows = self._database.execute(f"SELECT id, text FROM texts WHERE id IN ({marks})", list(numbers))  # noqa: S608
        return dict(rows.fetchall())

    @contextmanager
    def _deadline(self) -> Iterator[None]:
        """Give up when the time is over. Raises QueryRefused."""
        until = time.monotonic() + self._seconds
        self._database.set_progress_handler(lambda: time.monotonic() > until, _STEPS_BETWEEN_LOOKS)
        try:
            yield
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise QueryRefused(
                    f"the query took over {self._seconds:g} s: ask for a shorter time or a rarer value"
                ) from error
            raise
        finally:
            self._database.set_progress_handler(None, 0)


def _selections(
    plan: _Plan, low: int, high: int, columns: str = "position"
) -> Iterator[tuple[str, Sequence[str | int]]]:
    """SELECTs that together give each matching record within [low, high), some perhaps twice."""
    rest = f"position >= ? AND position < ? AND ({plan.condition.sql})"
    values = (low, high, *plan.condition.parameters)
    if low >= high:
        return
    if plan.branches is None:
        yield f"SELECT {columns} FROM records WHERE {rest}", values  # noqa: S608 - fixed pieces
        return
    for one in plan.branches:
        name = one.column.name
        sql = f"SELECT {columns} FROM records INDEXED BY {one.column.index_name} WHERE {name} = ? AND {rest}"  # noqa: S608
        yield sql, (one.value, *values)


def _is_in_time_index(node: Node) -> bool:
    """Whether the index by time has all that the condition looks at, without looking for anything among many texts."""
    match node:
        case All() | Between(fields.TIME):
            return True
        case Is(atom):
            return atom in {fields.KIND, fields.OUTCOME}
        case Not(part):
            return _is_in_time_index(part)
        case And(parts) | Or(parts):
            return all(map(_is_in_time_index, parts))
        case _:
            return False


def _united(selections: Sequence[tuple[str, Sequence[str | int]]]) -> tuple[str, list[str | int]]:
    return " UNION ".join(sql for sql, _ in selections), [value for _, values in selections for value in values]
