"""Records out of a log's folder, for reading without a gateway: a copy on an auditor's machine, or a live log.

It only reads. Nothing is verified here, and nothing is hidden either: an entry that cannot be read is given
as a record of kind `unreadable` under every filter, since it may be the very one that is looked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from audit.record import PERMIT_KIND
from audit.tiles import MAX_FRAMED_BYTES, TILE_WIDTH, bundle_path, unframe
from gateway.cli.errors import REQUESTER, BadConfiguration, Refused
from gateway.cli.replies import NumberedRecord, RecordsReply

_MAX_CHECKPOINT_BYTES = 64 * 1024
_MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + MAX_FRAMED_BYTES)

Record = Mapping[str, Any]


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
                lines = file.read(_MAX_CHECKPOINT_BYTES).split(b"\n", 3)
        except OSError as error:
            raise BadConfiguration(
                f"{self._directory} is no log: {path.name}: {error.strerror}", REQUESTER, "name the folder of a log"
            ) from error
        if len(lines) < 3 or not re.fullmatch(rb"0|[1-9][0-9]{0,18}", lines[1]):
            raise BadConfiguration(f"{path} is no checkpoint", REQUESTER, "name the folder of a log")
        return int(lines[1])

    def entry(self, index: int) -> dict[str, Any]:
        """One entry, record or permit, whole, in the shape of the API."""
        size = self.size()
        if index >= size:
            raise Refused(f"there is no entry {index}: the log has {size}", REQUESTER, "check the number", "not_known")
        number, offset = divmod(index, TILE_WIDTH)
        entries = self._bundle(number)
        if offset >= len(entries):
            raise Refused(f"entry {index} is missing in the folder", REQUESTER, "run `sealane audit verify`", "missing")
        document = _document(entries[offset])
        text = entries[offset].decode(errors="replace")
        if document.get("kind") == PERMIT_KIND:
            return {"permit_entry": document, "entry": text}
        return {**document, "entry": text}

    def page(self, terms: Mapping[str, str], before: int | None, limit: int) -> RecordsReply:
        """See RecordSource."""
        wanted = matcher(terms)
        found: list[NumberedRecord] = []
        size = self.size()
        for index, record in self._newest_first(size if before is None else min(size, before)):
            if record["kind"] == "unreadable" or wanted(record):
                if len(found) == limit:
                    return RecordsReply(tuple(found), found[-1].index)
                found.append(NumberedRecord(index, dict(record)))
        return RecordsReply(tuple(found))

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
        return []


def matcher(terms: Mapping[str, str]) -> Callable[[Record], bool]:
    """The filter of the API for one record: all terms must hold; names and ids both count."""

    def matches(record: Record) -> bool:
        if record.get("kind") == PERMIT_KIND and terms.get("kind") != PERMIT_KIND:
            return False  # its decision's record stands right before it
        # Times all have one form, in which the order of text is the order of time.
        if "since" in terms or "until" in terms:
            time = record.get("time")
            if not isinstance(time, str) or not terms.get("since", "") <= time < terms.get("until", "\uffff"):
                return False
        subject = _subject(record)
        return all(terms[name] in values(subject) for name, values in _VALUES.items() if name in terms)

    return matches


def _subject(record: Record) -> Record:
    """Where a record says what it is about; a permit entry says it in its claims."""
    claims = record.get("claims")
    if record.get("kind") != PERMIT_KIND or not isinstance(claims, Mapping):
        return record
    names = ("migration_id", "source", "destination")
    return {"kind": PERMIT_KIND, "vm": {"uuid": claims.get("vm")}} | {name: claims.get(name) for name in names}


def _members(value: object, *names: str) -> set[object]:
    return {value[name] for name in names if isinstance(value.get(name), str)} if isinstance(value, Mapping) else set()


def _hosts(record: Record) -> set[object]:
    ids = [str(one) for one in _members(record, "source", "destination")]
    return {*ids, *(one.rpartition("/")[2] for one in ids)}


_VALUES: dict[str, Callable[[Record], set[object]]] = {
    "migration": lambda record: _members(record, "migration_id"),
    "vm": lambda record: _members(record.get("vm"), "uuid", "name"),
    "host": _hosts,
    "actor": lambda record: _members(record.get("actor"), "id", "name"),
    "outcome": lambda record: _members(record, "outcome"),
    "kind": lambda record: _members(record, "kind"),
}


def _record(entry: bytes) -> Record:
    document = _document(entry)
    record = document if document.get("kind") == PERMIT_KIND else document.get("record")
    if isinstance(record, dict) and isinstance(record.get("kind"), str):
        return record
    return _unreadable("it holds no record")


def _document(entry: bytes) -> dict[str, Any]:
    try:
        document = msgspec.json.decode(entry)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return {"record": _unreadable(f"{error}")}
    return document if isinstance(document, dict) else {"record": _unreadable("it is no JSON object")}


def _unreadable(why: str) -> dict[str, Any]:
    return {"kind": "unreadable", "reason": f"{why}: run `sealane audit verify`"}
