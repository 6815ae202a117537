"""Where records are read: through the gateway (authorised, and each read recorded), or from a log's folder.

Both give the same pages, so that the commands above them know no difference. Reading a folder proves
nothing about it: `sealane audit verify` does.
"""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gateway.cli.credentials import read_token
from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.replies import NumberedRecord, RecordsReply
from gateway.cli.settings import resolve

if TYPE_CHECKING:
    from gateway.cli.client import GatewayClient

PAGE_RECORDS = 100


class RecordSource(Protocol):
    """A place that holds records."""

    def page(self, terms: Mapping[str, str], before: int | None, limit: int) -> RecordsReply:
        """At most `limit` records with an index below `before` that match all terms, newest first.

        `next` is the `before` of the page that follows, None if there is none.
        """

    def entry(self, index: int) -> dict[str, Any]:
        """One entry of the log, whole."""

    def size(self) -> int:
        """How many entries the log has."""


class FromGateway:
    """Through the API."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client

    def page(self, terms: Mapping[str, str], before: int | None, limit: int) -> RecordsReply:
        """See RecordSource."""
        parameters: dict[str, str | int] = {**terms, "limit": limit}
        if before is not None:
            parameters["after"] = before  # in the API's order, newest first, it comes after
        return self._client.records(parameters)

    def entry(self, index: int) -> dict[str, Any]:
        """See RecordSource."""
        return self._client.record(index)

    def size(self) -> int:
        """See RecordSource."""
        return self._client.log_size()


def opened(
    log: Path | None, gateway: str | None, ca: Path | None, token_file: Path | None
) -> AbstractContextManager[RecordSource]:
    """The source that the options name; a context manager that closes it."""
    if log is not None:
        if gateway is not None:
            raise BadConfiguration("--log and --gateway exclude each other", REQUESTER, "give one of them")
        from gateway.cli.record_folder import FromFolder

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
    from gateway.cli.client import GatewayClient

    settings = resolve(gateway, ca, token_file, Path.home())
    token = read_token(settings.token_file, settings.gateway, int(time.time()))
    return _Connected(GatewayClient(settings, token))


def read_pages(
    source: RecordSource, terms: Mapping[str, str], *, before: int | None = None, floor: int = 0, limit: int
) -> RecordsReply:
    """The newest `limit` matching records with an index in [floor, before), told oldest first.

    `next` is the `before` of those that are older.
    """
    found: list[NumberedRecord] = []
    while True:
        page = source.page(terms, before, min(PAGE_RECORDS, limit - len(found)))
        found.extend(one for one in page.records if one.index >= floor)
        passed_floor = any(one.index < floor for one in page.records)
        # A server that repeats its cursor must not hold the command for ever.
        moves = page.next is not None and not passed_floor and (before is None or page.next < before)
        if not moves or len(found) >= limit:
            return RecordsReply(tuple(sorted(found[:limit], key=lambda one: one.index)), page.next if moves else None)
        before = page.next
