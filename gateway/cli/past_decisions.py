"""The decisions in a log's folder, as they can be made again: what replay, diff and explain go by."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from audit.errors import LogError, LogTruncated
from audit.pruned import read_pruned
from audit.reader import LogReader
from audit.tiles import TILE_WIDTH
from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.moments import parse_moment
from gateway.cli.progress import Progress, counted_on
from gateway.cli.record_folder import FromFolder
from gateway.counted import counted
from policy.authoring.compare import Asked, Side
from policy.decision import is_readable
from transport.errors import UNDECODABLE


class PastDecisions:
    """Those since a time, and what is to be said of them once they were read."""

    def __init__(self, log: Path, since: str) -> None:
        self._log, self._size = log, FromFolder(log).size()
        self._since = parse_moment(since, datetime.now(UTC), "--since")
        self._first: str | None = None
        self._unusable = self._left_out = 0

    def decisions(self, progress: Progress = None) -> Iterator[Asked]:
        try:
            for index, entry in counted_on(self._entries(), progress, self._size):
                record = _record_in(entry)
                if record is None:
                    continue
                self._first = self._first or str(record.get("time"))
                if str(record.get("time")) >= self._since and "policy_request" in record["details"]:
                    asked = decision_in(index, record)
                    self._unusable += asked is None
                    if asked is not None:
                        yield asked
        except (LogError, OSError) as error:
            raise BadConfiguration(str(error), REQUESTER, "run `sealane audit verify`") from error

    def _entries(self) -> Iterator[tuple[int, bytes]]:
        """From the first that can be had: those that were pruned are read in their archive, if it is there."""
        reader = LogReader(self._log)
        pruned = min(read_pruned(self._log).bundles * TILE_WIDTH, self._size)
        try:
            for first in range(0, pruned, TILE_WIDTH):
                reader.entry(first)
        except LogTruncated:
            self._left_out = pruned
        yield from enumerate(reader.entries(self._left_out, self._size), self._left_out)

    def notes(self) -> list[str]:
        """To be asked after the decisions."""
        notes = []
        if self._first is None:
            notes.append("the log holds no record")
        elif self._first > self._since:
            notes.append(f"the log begins at {self._first}, later than {self._since}: nothing is known of before")
        if self._left_out:
            notes.append(
                f"entries 0 to {self._left_out - 1} were pruned, and their archive is not there: mount it to go by them"
            )
        if self._unusable:
            left_out = counted(self._unusable, "record")
            notes.append(f"left out: {left_out} with a decision that cannot be made again: run `sealane audit verify`")
        return notes


def _record_in(entry: bytes) -> dict[str, Any] | None:
    try:
        record = msgspec.json.decode(entry).get("record")
    except (AttributeError, *UNDECODABLE):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("details"), dict) else None


def decision_in(index: int, record: Any) -> Asked | None:
    """The request of a record with what was decided; None if it holds none, or a damaged one.

    An observed yes is the policies' no.
    """
    match record:
        case {
            "details": {
                "policy_request": dict(request),
                "policy_entities": list(entities),
                "decision": {"allowed": bool(allowed), "policies": list(policies), **more},
            }
        }:
            names = tuple(str(each.get("id")) for each in policies if isinstance(each, dict))
            because = str(more.get("denied_because") or "")
            recorded = Side(allowed and not more.get("observed"), names, because)
            return Asked(f"record {index}", request, entities, recorded) if is_readable(request, entities) else None
        case _:
            return None
