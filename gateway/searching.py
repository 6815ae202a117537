"""The query index of a running gateway: kept up with the log in a thread of its own, asked in a few others.

None ever waits for a commit nor holds one up: committed entries are read from the log's files. Before it is asked
the index catches up, so that who has just acted finds it. What is found is read from the log itself, hash checked.

A question may take QUESTION_SECONDS. So several are answered at once; people take `turns`, which leave a thread for
what the gateway itself must know, and no one person has them all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
import trio

from audit.errors import LogError, QueryRefused
from audit.index import Index
from audit.index_arrivals import Arrival
from audit.index_digest import document_of
from audit.index_questions import MAPPED_BYTES, Bucket, Questions
from audit.query import Node
from audit.reader import CommittedLog, LogReader
from gateway.committer import Committer
from gateway.errors import GatewayError, RequestRefused, SearchUnavailable
from gateway.turns import WAIT_SECONDS, Turns

FOLLOW_SECONDS: Final = 1.0
QUESTION_SECONDS: Final = 20.0
AT_ONCE: Final = 4
OF_PEOPLE: Final = 3
OF_A_PERSON: Final = 2

log = structlog.get_logger("gateway.searching")
Answer = TypeVar("Answer")
Numbered = tuple[int, dict[str, Any]]


class Search:
    """Of the log in `directory`. The index is the caller's to close, after `close`."""

    def __init__(
        self,
        index: Index,
        origin: str,
        committer: Committer,
        directory: Path,
        turn_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._index = index
        self._origin = origin
        self._committer = committer
        self._reader = LogReader(directory)
        self._writing = trio.CapacityLimiter(1)
        # An index in memory has one connection.
        self._asking = trio.CapacityLimiter(AT_ONCE if isinstance(index.path, Path) else 1)
        self._idle: list[Questions] = []
        self.turns = Turns(OF_PEOPLE, OF_A_PERSON, turn_seconds)

    async def follow(self) -> None:
        """Keep up with the log until cancelled, so that a question finds little left to read."""
        while True:
            try:
                await self.catch_up()
            except GatewayError as error:
                log.warning("the query index does not keep up", error=error.detail)
            await trio.sleep(FOLLOW_SECONDS)

    async def catch_up(self) -> None:
        """Bring the index up to what is committed now. Errors: SearchUnavailable."""
        committed = CommittedLog(self._origin, self._committer.size, self._reader)
        await self._in_thread(self._writing, lambda: self._index.catch_up(committed))

    async def page(
        self, where: Node, *, after: int | None = None, limit: int, newest_first: bool = True
    ) -> list[Numbered]:
        """Up to `limit` records (as JSON) with their index. Errors: RequestRefused, SearchUnavailable."""
        return await self._ask(
            lambda questions: self._read(
                questions.page(where, after=after, limit=limit, newest_first=newest_first),
            )
        )

    async def count(self, where: Node) -> int:
        """How many match. Errors: RequestRefused, SearchUnavailable."""
        return await self._ask(lambda questions: questions.count(where))

    async def span(self) -> tuple[int, int] | None:
        """The earliest and the latest time of all records, in microseconds. Errors: SearchUnavailable."""
        return await self._ask(lambda questions: questions.span())

    async def histogram(self, where: Node, start: int, width: int, buckets: int) -> list[Bucket]:
        """See Questions. Errors: RequestRefused, SearchUnavailable."""
        return await self._ask(lambda questions: questions.histogram(where, start, width, buckets))

    async def arrivals(self) -> dict[str, Arrival]:
        """Where each VM was last certified, or shown, to run. Errors: SearchUnavailable."""
        return await self._ask(lambda questions: questions.arrivals())

    def close(self) -> None:
        """Let go of the index. Nothing may be asked any more."""
        while self._idle:
            self._idle.pop().close()

    async def _ask(self, question: Callable[[Questions], Answer]) -> Answer:
        await self.catch_up()
        return await self._in_thread(self._asking, lambda: self._answered(question))

    def _answered(self, question: Callable[[Questions], Answer]) -> Answer:
        try:
            questions = self._idle.pop()  # the one used last: the others are for when it is busy
        except IndexError:
            questions = self._opened()
        try:
            return question(questions)
        finally:
            self._idle.append(questions)

    def _opened(self) -> Questions:
        path = self._index.path
        source = path if isinstance(path, Path) else self._index.database
        return Questions(source, seconds=QUESTION_SECONDS, mapped_bytes=MAPPED_BYTES // AT_ONCE)

    def _read(self, positions: Sequence[int]) -> list[Numbered]:
        return [(position, document_of(self._reader.entry(position))) for position in positions]

    async def _in_thread(self, limiter: trio.CapacityLimiter, work: Callable[[], Answer]) -> Answer:
        try:
            return await trio.to_thread.run_sync(work, limiter=limiter)
        except QueryRefused as error:
            raise RequestRefused(str(error)) from error
        except (sqlite3.Error, OSError) as error:
            raise SearchUnavailable(f"the query index cannot be used: {error}") from error
        except LogError as error:
            raise SearchUnavailable(
                f"the log cannot be read: {error}", next_step="run `sealane audit verify`; restore what is missing"
            ) from error
