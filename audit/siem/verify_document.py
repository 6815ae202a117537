"""One document as a SIEM returns it, years later and without us: is it what this log's gateway wrote?

With the log's verifier key and nothing else: the entry inside is canonical and signed, has the hash, place and id that
the document claims, and every other field is what that entry says. That proves who wrote it, not that the log still has
it: for that, and for what bears no signature (permit entries, documents without withheld fields), the log is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from audit.errors import AuditError
from audit.siem.document import DOCUMENT_VERSION, LogEntry, document_id, document_of
from audit.siem.mapping import REDACTABLE
from audit.siem.reconcile import differing_fields
from audit.verify_entry import Malformed, parse, record_faults
from audit.verify_group import Signatures
from audit.verify_tree import PinnedKey

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
LogAt = Callable[[int], bytes]


@dataclass(slots=True)
class Verdict:
    """`faults`: why it is refused. `unproven`: what would be needed to believe it. Neither: it is verified."""

    index: int | None = None
    origin: str | None = None
    in_log: bool = False
    record: dict[str, Any] | None = None
    faults: list[str] = field(default_factory=list)
    unproven: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        return "refused" if self.faults else "unproven" if self.unproven else "verified"


def verify_document(data: bytes, keys: Sequence[PinnedKey], entry_at: LogAt | None = None) -> Verdict:
    """`data`: the document, or a search hit with it under `_source`. `entry_at`: the log's entry of an index.

    Never raises for what is in `data`.
    """
    verdict = Verdict()
    try:
        hit = json.loads(data[: MAX_DOCUMENT_BYTES + 1], object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        verdict.faults.append(f"it is not JSON: {error}"[:200])
        return verdict
    body = hit.get("_source", hit) if isinstance(hit, dict) else hit
    match body:
        case {"event": {"sequence": int(index)}, "sealane": {"origin": str(origin)}} if index >= 0:
            verdict.index, verdict.origin = index, origin
        case _:
            verdict.faults.append("it claims no place in a log (event.sequence, sealane.origin)")
            return verdict
    if not any(key.name == origin for key in keys):
        verdict.faults.append(f"it claims to be of the log {origin!r}, for which no key was given")
        return verdict
    _check_ids(hit, body, verdict)
    original = body["event"].get("original")
    entry = _from_log(index, entry_at, verdict)
    if isinstance(original, str):
        _check_original(original, entry, keys, verdict)
        entry = entry or _encoded(original)
    elif original is not None:
        verdict.faults.append("its original is no text")
    elif entry is None:
        verdict.unproven.append("it is without its original, so that only the log (--log) can tell what it should say")
    if entry is not None and not verdict.faults:
        _check_fields(body, LogEntry(origin, index, entry), verdict)
    return verdict


def _check_ids(hit: Mapping[str, Any], body: Mapping[str, Any], verdict: Verdict) -> None:
    assert verdict.origin is not None
    assert verdict.index is not None
    expected = document_id(verdict.origin, verdict.index)
    if body["event"].get("id") != expected or hit.get("_id", expected) != expected:
        verdict.faults.append(f"its id is not that of entry {verdict.index} of this log")


def _check_original(original: str, logged: bytes | None, keys: Sequence[PinnedKey], verdict: Verdict) -> None:
    entry = _encoded(original)
    assert verdict.index is not None
    assert verdict.origin is not None
    try:
        value = parse(entry)
    except Malformed as error:
        verdict.faults.append(f"its original: {error}")
        return
    if logged is not None and logged != entry:
        verdict.faults.append(f"its original is not what the log has at {verdict.index}")
    if value.get("kind") == "sealane-permit":
        if logged is None:
            verdict.unproven.append("it is a permit entry, which bears no signature of its own: give the log (--log)")
    else:
        verdict.faults += record_faults(value, entry, verdict.index, verdict.origin, Signatures(keys))
        record = value.get("record")
        verdict.record = dict(record) if isinstance(record, dict) else None


def _check_fields(body: Mapping[str, Any], entry: LogEntry, verdict: Verdict) -> None:
    if body["event"].get("hash") != hashlib.sha256(b"\x00" + entry.entry).hexdigest():
        verdict.faults.append("its hash is not that of the entry")
    withheld = body["sealane"].get("redacted", [])
    if not isinstance(withheld, list) or not all(isinstance(name, str) and name in REDACTABLE for name in withheld):
        verdict.faults.append("it names fields as withheld that cannot be")
        return
    if body["sealane"].get("document") != DOCUMENT_VERSION:
        verdict.unproven.append(
            f"it was made in form {body['sealane'].get('document')!r}, and this Sealane makes form {DOCUMENT_VERSION}: "
            "only its original was checked"
        )
        return
    try:
        expected = document_of(entry, frozenset(withheld)).body
    except AuditError as error:
        verdict.faults.append(f"its entry cannot be read: {error}")
        return
    if differing := differing_fields(body, expected):
        verdict.faults.append(f"these fields are not what the entry says: {', '.join(differing[:20])}")


def _from_log(index: int, entry_at: LogAt | None, verdict: Verdict) -> bytes | None:
    if entry_at is None:
        return None
    try:
        entry = entry_at(index)
    except (AuditError, OSError, IndexError) as error:
        verdict.faults.append(f"the log does not have it: {error}"[:300])
        return None
    verdict.in_log = True
    return entry


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")  # a lone surrogate: nothing that is canonical


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member occurs twice")
    return found


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no value")
