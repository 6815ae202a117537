"""Where records are read: through the gateway (authorised, and each read recorded), or from a log's folder.

Both give the same pages, so that the commands above them know no difference. Reading a folder proves
nothing about it: `sealane audit verify` does.
"""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gateway.cli.credentials import token_of
from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.log_folder import require_one
from gateway.cli.record_question import Question
from gateway.cli.record_replies import HistogramReply, NumberedRecord, RecordsReply
from gateway.cli.settings import resolve

if TYPE_CHECKING:
    from gateway.cli.client import GatewayClient

PAGE_RECORDS = 100


class RecordSource(Protocol):
    """A place that holds records."""

    def page(self, question: Question, before: int | None, limit: int) -> RecordsReply:
        """At most `limit` records with an index below `before` that match, newest first.

        `next` is the `before` of the page that follows, None if there is none.
        """

    def count(self, question: Question) -> int:
        """How many match in all."""

    def histogram(self, question: Question, width_seconds: int) -> HistogramReply:
        """How many there are, by time and outcome."""

    def entry(self, index: int) -> dict[str, Any]:
        """One entry of the log, whole."""

    def size(self) -> int:
        """How many entries the log has."""


class FromGateway:
    """Through the API."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client

    def page(self, question: Question, before: int | None, limit: int) -> RecordsReply:
        """See RecordSource."""
        parameters: dict[str, str | int] = {**question.parameters(), "limit": limit}
        if before is not None:
            parameters["after"] = before  # in the API's order, newest first, it comes after
        return self._client.records(parameters)

    def count(self, question: Question) -> int:
        """See RecordSource."""
        return self._client.records({**question.parameters(), "limit": 1, "count": "true"}).count or 0

    def histogram(self, question: Question, width_seconds: int) -> HistogramReply:
        """See RecordSource."""
        return self._client.histogram({**question.parameters(), "width_seconds": width_seconds})

    def entry(self, index: int) -> dict[str, Any]:
        """See RecordSource."""
        return self._client.record(index)

    def size(self) -> int:
        """See RecordSource."""
        return self._client.log_size()


def opened(
    log: Path | None, gateway: str | None, ca: Path | None, token_file: Path | None, index: Path | None = None
) -> AbstractContextManager[RecordSource]:
    """The source that the options name; a context manager that closes it."""
    if index is not None and log is None:
        raise BadConfiguration("--index needs --log", REQUESTER, "name the log's folder")
    require_one(log, gateway)
    if log is not None:
        from gateway.cli.record_folder import FromFolder

        if index is not None:
            from gateway.cli.record_index import FromIndexedFolder

            return nullcontext(FromIndexedFolder(log, index))
        return nullcontext(FromFolder(log))
    return _connected(gateway, ca, token_file)


class _Connected:
    def __init__(self, client: GatewayClient) -> None:
        self._client = client

    def __enter__(self) -> RecordSource:
        return FromGateway(self._client.__enter__())

    def __exit__(self, *error: Any) -> None:
        self._client.__exit__(*error)


def _connected(gateway: str | None, ca: Path | None, token_file: Path | None) -> AbstractContextManager[RecordSource]:
    return _Connected(connected(gateway, ca, token_file))


def connected(gateway: str | None, ca: Path | None, token_file: Path | None) -> GatewayClient:
    """A client of the gateway that the options name, with the token that is kept for it."""
    from gateway.cli.client import GatewayClient

    settings = resolve(gateway, ca, token_file, Path.home())
    token = token_of(settings, int(time.time()))
    return GatewayClient(settings, token)


def read_pages(
    source: RecordSource, question: Question, *, before: int | None = None, floor: int = 0, limit: int
) -> RecordsReply:
    """The newest `limit` matching records with an index in [floor, before), told oldest first.

    `next` is the `before` of those that are older.
    """
    found: list[NumberedRecord] = []
    while True:
        page = source.page(question, before, min(PAGE_RECORDS, limit - len(found)))
        found.extend(one for one in page.records if one.index >= floor)
        passed_floor = any(one.index < floor for one in page.records)
        # A server that repeats its cursor must not hold the command for ever.
        moves = page.next is not None and not passed_floor and (before is None or page.next < before)
        if not moves or len(found) >= limit:
            return RecordsReply(tuple(sorted(found[:limit], key=lambda one: one.index)), page.next if moves else None)
        before = page.next
