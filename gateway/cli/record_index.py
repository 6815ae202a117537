"""A log's folder with a query index of it beside: the same answers, without reading the whole log for each question."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from audit.errors import QueryRefused
from audit.index_questions import MAX_BUCKETS, Questions
from audit.index_schema import INDEX_VERSION
from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration
from gateway.cli.record_folder import FromFolder, where_of
from gateway.cli.record_question import Question
from gateway.cli.record_replies import Bucket, HistogramReply, NumberedRecord, RecordsReply

Answer = TypeVar("Answer")
REBUILD = "make it with `sealane audit index rebuild --log DIR --index FILE`"


class FromIndexedFolder(FromFolder):
    """The RecordSource of a folder and its index. Records come from the folder: the index only says which."""

    def __init__(self, directory: Path, index: Path) -> None:
        super().__init__(directory)
        if not index.is_file():
            raise BadConfiguration(f"{index} is no file", REQUESTER, REBUILD)
        self._questions = self._ask(lambda: Questions(index))
        version, origin, size = self._ask(lambda: self._questions.state)
        if (version, origin, size) != (INDEX_VERSION, self.origin(), self.size()):
            raise BadConfiguration(f"{index} is not the index of this log as it stands", REQUESTER, REBUILD)

    def page(self, question: Question, before: int | None, limit: int) -> RecordsReply:
        """See RecordSource."""
        where = where_of(question, datetime.now(UTC))
        wanted = self._ask(lambda: self._questions.page(where, after=before, limit=limit + 1, newest_first=True))
        found = tuple(NumberedRecord(index, dict(self.record(index))) for index in wanted[:limit])
        return RecordsReply(found, wanted[limit - 1] if len(wanted) > limit else None)

    def count(self, question: Question) -> int:
        """See RecordSource."""
        where = where_of(question, datetime.now(UTC))
        return self._ask(lambda: self._questions.count(where))

    def histogram(self, question: Question, width_seconds: int) -> HistogramReply:
        """See RecordSource."""
        where = where_of(question, datetime.now(UTC))
        width = width_seconds * 10**6
        low, high = self._ask(self._questions.span) or (0, 0)
        start = low // width * width
        buckets = (high - start) // width + 1
        if buckets > MAX_BUCKETS:
            raise BadConfiguration(f"that makes more than {MAX_BUCKETS} bars", REQUESTER, "use a larger width")
        found = self._ask(lambda: self._questions.histogram(where, start, width, buckets))
        told = tuple(Bucket(one.start // 10**6, one.outcome, one.count) for one in found)
        return HistogramReply(width_seconds, told[0].start if told else 0, told)

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        try:
            return question()
        except QueryRefused as error:
            raise BadConfiguration(str(error), REQUESTER, "ask for less at once") from error
        except sqlite3.Error as error:
            raise BadConfiguration(f"the index cannot be used: {error}", OPERATOR, REBUILD) from error
