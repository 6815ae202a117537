"""One line as a receiver returns it (entry, OCSF, CEF, LEEF), by the log's key: is it what this log's gateway wrote?

The entry is taken out of the line, its signature verified, and the line made of it once more: both must be the same,
as values for JSON, since SIEMs write it anew, and byte by byte for the rest. ECS documents: `verify_document.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from audit.errors import UNDECODABLE, AuditError
from audit.siem.document import LogEntry, document_id, document_of
from audit.siem.formats import Format, line_of
from audit.siem.formats.leef import SEPARATOR
from audit.siem.formats.parse import MAX_LINE_BYTES, LineError, parse_line
from audit.siem.verify_document import LogAt, Verdict, verify_document
from audit.verify_tree import PinnedKey

_RAW_EVENT: Final = re.compile(r" rawEvent=((?:[^\\=]|\\[\\=])*)\Z")


def verify_stored(data: bytes, keys: Sequence[PinnedKey], entry_at: LogAt | None = None) -> Verdict:
    """A document or a line, whichever it is. Never raises for what is in `data`."""
    try:
        value = msgspec.json.decode(data)
    except UNDECODABLE:
        value = None
    match value:
        case {"hash": str(), "id": str(claimed), "sequence": int(), "entry": dict(inner)}:
            original = msgspec.json.encode(inner, order="sorted")
            return _verify(Format.ENTRY, claimed, original, value, keys, entry_at)
        case {"class_uid": int(), "metadata": {"uid": str(claimed)}}:
            raw = value.get("raw_data")
            return _verify(Format.OCSF, claimed, _encoded(raw), value, keys, entry_at)
        case None:
            return _verify_text(data, keys, entry_at)
        case _:
            return verify_document(data, keys, entry_at)


def _verify_text(data: bytes, keys: Sequence[PinnedKey], entry_at: LogAt | None) -> Verdict:
    try:
        held = parse_line(data.rstrip(b"\r\n"))
    except LineError as error:
        return Verdict(faults=[f"it is neither a document nor a line of ours: {error}"])
    text = held.line.decode()
    if text.startswith("LEEF:"):
        found = [each.partition("=")[2] for each in text.split(SEPARATOR) if each.startswith("original=")]
        original = _canonical(found[0]) if len(found) == 1 else None
        return _verify(Format.LEEF, held.id, original, held.line, keys, entry_at)
    raw = _RAW_EVENT.search(text)
    original = None if raw is None else _canonical(re.sub(r"\\(.)", r"\1", raw[1]))
    return _verify(Format.CEF, held.id, original, held.line, keys, entry_at)


def _verify(
    form: Format, claimed: str, original: bytes | None, found: Any, keys: Sequence[PinnedKey], entry_at: LogAt | None
) -> Verdict:
    index = int(number) if (number := claimed.rpartition("-")[2]).isdecimal() and len(number) < 19 else -1
    origin = next((key.name for key in keys if document_id(key.name, index) == claimed), None)
    if origin is None:
        return Verdict(faults=["its id is not that of an entry of a log for which a key was given"])
    if original is None:
        return Verdict(index, origin, unproven=["it is without its original: compare it with the log (reconcile-file)"])
    try:
        document = document_of(LogEntry(origin, index, original))
    except AuditError as error:
        return Verdict(index, origin, faults=[f"its original: {error}"])
    verdict = verify_document(msgspec.json.encode(document.body), keys, entry_at)
    expected: Any = line_of(form)(document, MAX_LINE_BYTES)
    if form in {Format.ENTRY, Format.OCSF}:
        expected, found = (msgspec.json.encode(each, order="sorted") for each in (msgspec.json.decode(expected), found))
    if expected != found:
        verdict.faults.append("the line is not what its entry makes: something in it was changed")
    return verdict


def _canonical(original: str) -> bytes | None:
    """The log's bytes: in a line, what is not ASCII is escaped."""
    try:
        return msgspec.json.encode(msgspec.json.decode(original), order="sorted")
    except UNDECODABLE:
        return None


def _encoded(raw: object) -> bytes | None:
    return raw.encode("utf-8", "replace") if isinstance(raw, str) else None
