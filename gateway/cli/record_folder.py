"""Records out of a log's folder, for reading without a gateway: a copy on an auditor's machine, or a live log.

It only reads. Nothing is verified here, and nothing is hidden either: an entry that cannot be read is given
as a record of kind `unreadable` under every filter, since it may be the very one that is looked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from audit.errors import EntryPruned, LogDamaged, QueryRefused, RecordInvalid
from audit.pruned import read_pruned
from audit.query import Facets, Node, facets_of, fields, matches, parse, terms
from audit.query.facets import PERMIT_KIND, UNREADABLE_KIND
from audit.query.literals import zone_named
from audit.record import Record as WrittenRecord
from audit.record import parse_time
from audit.tiles import MAX_FRAMED_BYTES, TILE_WIDTH, bundle_path, unframe
from gateway.cli.errors import REQUESTER, BadConfiguration, Refused
from gateway.cli.log_folder import MAX_CHECKPOINT_BYTES
from gateway.cli.record_question import Question
from gateway.cli.record_replies import Bucket, HistogramReply, NumberedRecord, RecordsReply
from gateway.cli.serve import needs_gateway_extra
from transport.errors import UNDECODABLE

_MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + MAX_FRAMED_BYTES)

Record = Mapping[str, Any]
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class FromFolder:
    """The RecordSource of one folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.size()  # a folder that is no log is told at once

    def size(self) -> int:
        """How many entries its checkpoint counts."""
        path = self._directory / "checkpoint"
        try:
            with path.open("rb") as file:
                lines = file.read(MAX_CHECKPOINT_BYTES).split(b"\n", 3)
        except OSError as error:
            raise BadConfiguration(
                f"{self._directory} is no log: {path.name}: {error.strerror}", REQUESTER, "name the folder of a log"
            ) from error
        if len(lines) < 3 or not re.fullmatch(rb"0|[1-9][0-9]{0,18}", lines[1]):
            raise BadConfiguration(f"{path} is no checkpoint", REQUESTER, "name the folder of a log")
        return int(lines[1])

    def origin(self) -> str:
        """Which log its checkpoint is of."""
        with (self._directory / "checkpoint").open("rb") as file:
            return file.read(MAX_CHECKPOINT_BYTES).split(b"\n", 1)[0].decode(errors="replace")

    def record(self, index: int) -> Record:
        """One record, or permit entry; of kind `unreadable` if it is not there or cannot be read."""
        number, offset = divmod(index, TILE_WIDTH)
        entries = self._bundle(number)
        return _record(entries[offset]) if offset < len(entries) else _unreadable("it is missing")

    def entry(self, index: int) -> dict[str, Any]:
        """One entry, record or permit, whole, in the shape of the API."""
        size = self.size()
        if index >= size:
            raise Refused(f"there is no entry {index}: the log has {size}", REQUESTER, "check the number", "not_known")
        number, offset = divmod(index, TILE_WIDTH)
        entries = self._bundle(number)
        if offset >= len(entries):
            raise Refused(f"entry {index} is missing in the folder", REQUESTER, "run `sealane audit verify`", "missing")
        text = entries[offset].decode(errors="replace")
        try:
            document = _decode(entries[offset])
        except UNDECODABLE as error:
            document = {"record": _unreadable(str(error))}
        if document.get("kind") == PERMIT_KIND:
            return {"permit_entry": document, "entry": text}
        return {**document, "entry": text}

    def page(self, question: Question, before: int | None, limit: int) -> RecordsReply:
        """See RecordSource."""
        found: list[NumberedRecord] = []
        for index, record, _ in self._matching(question, before):
            if len(found) == limit:
                return RecordsReply(tuple(found), found[-1].index)
            found.append(NumberedRecord(index, dict(record)))
        return RecordsReply(tuple(found))

    def count(self, question: Question) -> int:
        """See RecordSource."""
        return sum(1 for _ in self._matching(question, None))

    def histogram(self, question: Question, width_seconds: int) -> HistogramReply:
        """See RecordSource."""
        counted: Counter[tuple[int, str | None]] = Counter()
        for _, _, values in self._matching(question, None):
            for time in values.get(fields.TIME, ()):
                outcome = next(iter(values.get(fields.OUTCOME, ())), None)
                start = int(time) // 10**6 // width_seconds * width_seconds
                counted[start, None if outcome is None else str(outcome)] += 1
        keys = sorted(counted, key=lambda key: (key[0], key[1] or ""))
        buckets = tuple(Bucket(start, outcome, counted[start, outcome]) for start, outcome in keys)
        return HistogramReply(width_seconds, buckets[0].start if buckets else 0, buckets)

    def _matching(self, question: Question, before: int | None) -> Iterator[tuple[int, Record, Facets]]:
        """Newest first; what cannot be read always matches."""
        where = where_of(question, datetime.now(UTC))
        size = self.size()
        for index, record in self._newest_first(size if before is None else min(size, before)):
            values = facets_of(index, record)
            if record["kind"] == UNREADABLE_KIND or matches(where, values):
                yield index, record, values

    def _newest_first(self, end: int) -> Iterator[tuple[int, Record]]:
        for number in reversed(range(-(-end // TILE_WIDTH))):
            first = number * TILE_WIDTH
            entries = self._bundle(number)
            for index in reversed(range(first, min(end, first + TILE_WIDTH))):
                missing = index - first >= len(entries)
                yield index, _unreadable("it is missing") if missing else _record(entries[index - first])

    def _bundle(self, number: int) -> list[bytes]:
        """The entries of one bundle; fewer than there should be if the file is damaged or gone."""
        sealed, growing = self._directory / bundle_path(number), self._directory / "tail" / str(number)
        # Sealing renames the growing file: looked for in this order, it is found once in any case.
        for path in (sealed, growing, sealed):
            try:
                with path.open("rb") as file:
                    return unframe(file.read(_MAX_BUNDLE_BYTES))[0]
            except FileNotFoundError:
                continue
            except OSError as error:
                raise BadConfiguration(
                    f"{path} cannot be read: {error.strerror}", REQUESTER, "check the folder's permissions"
                ) from error
        return self._pruned(number)

    def _pruned(self, number: int) -> list[bytes]:
        """From the archive what was pruned: an answer without it would be less than was asked for, so there is none."""
        try:
            pruned = read_pruned(self._directory)
            return pruned.read_bundle(number) if number < pruned.bundles else []
        except (EntryPruned, LogDamaged) as error:
            raise Refused(
                str(error), REQUESTER, "mount the archive there, or ask of what is after", "pruned"
            ) from error


def where_of(question: Question, now: datetime) -> Node:
    """The question as a tree. Raises BadConfiguration that says where the text is wrong."""
    try:
        zone = UTC if question.timezone is None else zone_named(question.timezone)
        with needs_gateway_extra():
            return parse(question.text, now, zone, within=terms(question.terms)).where
    except (QueryRefused, ValueError) as error:
        raise BadConfiguration(str(error), REQUESTER, "`sealane audit fields` lists what can be asked") from error


def _record(entry: bytes) -> Record:
    """Strict: what somebody made of one would be hidden by filters on what it lacks, or end whoever reads it."""
    try:
        document = _decode(entry)
        if document.get("kind") == PERMIT_KIND:
            return document
        record = document.get("record")
        parse_time(msgspec.convert(record, WrittenRecord).time)
    except (RecordInvalid, *UNDECODABLE) as error:
        return _unreadable(f"it holds no record: {error}")
    assert isinstance(record, dict)
    return record


def _unreadable(why: str) -> dict[str, Any]:
    return {"kind": UNREADABLE_KIND, "reason": f"{why}: run `sealane audit verify`"}
