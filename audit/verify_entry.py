"""Of the offline verifier: what a single entry must be. Shares no code with the writer, on purpose.

Canonical form is checked with Python's json module, which the writer does not use, and the shape of records
is written down here a second time.
"""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from json.scanner import make_scanner
from typing import Any, Final

from audit.verify_group import Signatures
from audit.verify_tree import exact_base64

ENTRY_LIMIT = 61440

# In the order of canonical form, which is the only one that there is.
_ALONE: Final = ["key", "record", "signature"]
_GROUPED: Final = ["group", *_ALONE]
_PERMIT: Final = ["claims", "decision", "kind"]
_LINK: Final = ["index", "leaf_hash"]
_RECORD_KEYS: Final = [
    "actor",
    "boot_id",
    "destination",
    "details",
    "kind",
    "migration_id",
    "monotonic_ns",
    "origin",
    "outcome",
    "reason",
    "sequence",
    "source",
    "time",
    "version",
    "vm",
]
_KEYS_OF_2: Final = sorted([*_RECORD_KEYS, "clock_error_us"])
PERMITTING: Final = frozenset({"allowed", "would_deny"})  # the latter in zones that are being observed
_ACTOR_KEYS: Final = ["authenticated_by", "groups", "id", "issuer", "name"]
_VM_KEYS: Final = ["name", "uuid"]
_TEXTS = ("kind", "boot_id")
_OPTIONAL_TEXTS = ("migration_id", "outcome", "source", "destination", "reason")
_TIME_FORM = re.compile(r"\d\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d\d\d\d\d\dZ", re.ASCII)


class Malformed(Exception):
    """The entry is not what the format allows; the words say why."""


def parse(entry: bytes) -> Mapping[str, Any]:
    """The JSON object of a canonical entry. Raises Malformed."""
    if len(entry) > ENTRY_LIMIT:
        raise Malformed(f"it is {len(entry)} bytes long, over {ENTRY_LIMIT}")
    try:
        text = entry.decode("utf-8")
        value, _ = _decode(text, 0)
        # A key that occurs twice is one key in `value`, so that it does not encode back to the same either; nor does
        # what goes on after its value.
        same = "".join(_encode(value, 0)) == text
    except StopIteration:
        raise Malformed("it is not JSON of this log's kind: no value is there") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"it is not JSON of this log's kind: {error}") from error
    if not same:
        raise Malformed("it is not in canonical form")
    if not isinstance(value, dict):
        raise Malformed("it is not an object")
    return value


def record_faults(
    value: Mapping[str, Any],
    entry: bytes,
    index: int,
    origin: str,
    signatures: Signatures,
    *,
    signature: bool = True,
) -> Iterator[str]:
    """Everything that is wrong with a record entry taken by itself; `entry` is what `value` was parsed from.

    Without `signature` that of the record is not checked: the tree's, which covers the record, then stands for it.
    """
    record = value.get("record")
    members = [*value]
    if members not in (_GROUPED, _ALONE) or not isinstance(record, dict):
        yield "it is neither a record nor a permit entry"
        return
    candidates = signatures.candidates(origin, value["key"])
    if not candidates:
        yield f"it is signed with key {str(value['key'])[:64]!r}, which was not given"
    elif fault := signatures.fault(value, entry, candidates, check=signature):
        yield fault
    version = record.get("version")
    if type(version) is not int or version not in {1, 2}:
        yield f"its version {version!r} is unknown"
        return
    expected = _RECORD_KEYS if version == 1 else _KEYS_OF_2
    if [*record] != expected:
        yield f"its fields are not those of a record: {sorted(set(record) ^ set(expected))}"
        return
    if record["sequence"] != index or isinstance(record["sequence"], bool):
        yield f"it says that it is number {record['sequence']!r}"
    if record["origin"] != origin:
        yield f"it is a record of another log, {record['origin']!r}"
    if time_of(record) is None:
        yield f"its time {record['time']!r} is malformed"
    yield from _shape_faults(record)


def permit_faults(
    value: Mapping[str, Any], index: int, decision: Mapping[str, Any] | None, decision_hash: bytes | None
) -> Iterator[str]:
    """Everything that is wrong with a permit entry at `index` that follows `decision` (None: no record)."""
    claims, link = value.get("claims"), value.get("decision")
    if [*value] != _PERMIT or value["kind"] != "sealane-permit":
        yield "it is neither a record nor a permit entry"
        return
    if not isinstance(claims, dict) or not isinstance(link, dict) or [*link] != _LINK:
        yield "it is a malformed permit entry"
        return
    if decision is None or decision_hash is None:
        yield "it is a permit that does not follow a decision"
        return
    if link["index"] != index - 1 or isinstance(link["index"], bool):
        yield f"it is a permit for decision {link['index']!r}, which is not the entry before it"
    if not _is_base64_of(link["leaf_hash"], decision_hash):
        yield f"it is a permit for another decision than the one at {index - 1}"
    outcome = decision.get("outcome")
    if type(outcome) is not str or outcome not in PERMITTING:
        yield f"it is a permit for a decision whose outcome is {outcome!r}"
    if not claims.get("migration_id") or claims["migration_id"] != decision.get("migration_id"):
        yield "it is a permit for another migration than its decision"
    vm = decision.get("vm")
    for name in ("vm", "source", "destination"):
        what = decision.get(name) if name != "vm" else vm.get("uuid") if isinstance(vm, dict) else None
        if what is not None and claims.get(name) != what:
            yield f"it is a permit for another {name} than its decision"


def time_of(record: Mapping[str, Any]) -> datetime | None:
    """The wall-clock time of a record, or None if it is malformed."""
    text = record.get("time")
    return _moment(text) if isinstance(text, str) else None


@lru_cache(4)  # each is asked for by itself, and beside the record after it
def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if _TIME_FORM.fullmatch(text) else None
    except ValueError:
        return None


def _shape_faults(record: Mapping[str, Any]) -> Iterator[str]:
    for name in _TEXTS:
        if type(record[name]) is not str or not record[name]:
            yield f"its {name} is not a text"
    for name in _OPTIONAL_TEXTS:
        if (text := record[name]) is not None and type(text) is not str:
            yield f"its {name} is neither null nor a text"
    if type(record["monotonic_ns"]) is not int or record["monotonic_ns"] < 0:
        yield "its monotonic_ns is not a count"
    error_us = record.get("clock_error_us")
    if error_us is not None and (type(error_us) is not int or error_us < 0):
        yield "its clock_error_us is neither null nor a count"
    if type(record["details"]) is not dict:
        yield "its details are not an object"
    actor, vm = record["actor"], record["vm"]
    if actor is not None and (type(actor) is not dict or [*actor] != _ACTOR_KEYS):
        yield "its actor is malformed"
    if vm is not None and (type(vm) is not dict or [*vm] != _VM_KEYS):
        yield "its vm is malformed"


def _is_base64_of(text: object, expected: bytes) -> bool:
    try:
        return isinstance(text, str) and exact_base64(text) == expected
    except ValueError:
        return False


def _refuse_number(text: str) -> object:
    raise ValueError(f"the number {text[:40]} is not an integer")


_decode = make_scanner(json.JSONDecoder(parse_float=_refuse_number, parse_constant=_refuse_number))  # type: ignore[arg-type]
# JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False), without making one anew
# for each entry. What was decoded holds no circles to look for, and nothing that needs a default.
_encode = json.encoder.c_make_encoder(  # type: ignore[attr-defined]  # CPython's, which is all that we run on
    None, None, json.encoder.encode_basestring, None, ":", ",", True, False, True
)
