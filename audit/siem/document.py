"""One log entry as one document of the Elastic Common Schema (ECS 8.17), searchable and self-proving.

`event.original` is the entry itself, byte for byte: its leaf hash and signature can be checked from the document
alone, years later. Everything else is derived from it by this module and by nothing else, so that a reader can
derive it again and see whether somebody changed what people search. Only fields with a mapping are written: what a
record's `details` hold beyond them stays within the original, unindexed, and can cause no mapping conflict.

A receiver may be denied fields (`redact`). The original holds them all, so such a document goes without it, says what
it lacks in `sealane.redacted`, and is checked against the log by its leaf hash: alone it proves nothing. The words of
why something was denied name people and VMs: they go with any field.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import msgspec

from audit.errors import RecordInvalid
from audit.proof import leaf_hash
from audit.query import Facets, facets_of
from audit.query.fields import WHY
from audit.query.text import fold
from audit.record import PERMIT_KIND, PermitEntry, Record, decode_entry, format_time, record_within
from audit.siem.mapping import REDACTABLE, facet_name

ECS_VERSION: Final = "8.17.0"
DOCUMENT_VERSION: Final = 1  # rises when the same entry makes another document: who checks an old one must know
DATASET: Final = "sealane.audit"
_ORIGIN_DIGITS: Final = 16

# Kind of record → ECS categories. What allows or denies is of `api`: `iam` lists neither.
_CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = {
    "migration.receipt": ("host", "network"),
    "token.issued": ("authentication",),
    "token.refused": ("authentication",),
    "breakglass.sealed_sign_in": ("authentication",),
    "placement.unpermitted": ("intrusion_detection",),
    "placement.duplicate": ("intrusion_detection",),
    PERMIT_KIND: ("api",),
}
# These say that something is wrong; all others tell what happened.
_ALERTS: Final = frozenset(
    {
        *("placement.unpermitted", "placement.duplicate", "witness.disagrees", "breakglass.seal_broken"),
        *("siem.degraded", "siem.stopped", "siem.quarantined"),
    }
)
_DECIDED: Final = {"allowed": "success", "completed": "success", "running": "success", "would_deny": "success"}
_FAILED: Final = frozenset({"denied", "failed", "aborted", "cancelled", "refused"})

_MAY_BE_EMPTY: Final = frozenset({dict, list})
_RELATED: Final = frozenset({"related.user", "related.hosts"})


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of the log of `origin` and its index there. `entry`: its exact bytes."""

    origin: str
    index: int
    entry: bytes

    @property
    def id(self) -> str:
        """The same for each delivery of the same entry, and for no other: what a receiver may deduplicate by."""
        return document_id(self.origin, self.index)


def document_id(origin: str, index: int) -> str:
    return f"{_origin_digest(origin)}-{index}"


@lru_cache(16)
def _origin_digest(origin: str) -> str:
    return hashlib.sha256(origin.encode()).hexdigest()[:_ORIGIN_DIGITS]


@dataclass(frozen=True, slots=True)
class Head:
    """What is told of an entry before all else. `outcome` is ECS's; `leaf_hash` hexadecimal."""

    time: str
    kind: str
    outcome: str
    leaf_hash: str


class Document:
    """What a sink delivers: an entry's document under the entry's id.

    `original`: the entry, or None where the sink is denied a part of it (`redact`).
    """

    __slots__ = ("_entry", "_redact", "head", "id", "index", "original")

    def __init__(self, entry: LogEntry, head: Head, redact: frozenset[str] = frozenset()) -> None:
        self.index = entry.index
        self.id = entry.id
        self.head = head
        self.original = None if redact else entry.entry
        self._entry = entry
        self._redact = redact

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Document) and (self.id, self.body) == (other.id, other.body)

    @property
    def body(self) -> dict[str, Any]:
        """JSON without nulls or empty members. Made each time that it is asked for: most of the work is in it, and
        most of the memory, and a batch may have to be kept for as long as its receiver is down.
        """
        body = _body(self._entry, self.head)
        return redacted(body, self._redact) if self._redact else body


Render = Callable[[LogEntry], Document | None]
"""How one sink sees an entry: None is not for it. Raises RecordError for what is no entry."""


def document_of(entry: LogEntry, redact: frozenset[str] = frozenset()) -> Document:
    """The document of an entry, without the fields of REDACTABLE that `redact` names. Raises RecordError."""
    read = decode_entry(entry.entry)
    leaf = leaf_hash(entry.entry).hex()
    if isinstance(read, PermitEntry):
        head = Head(_issued(read), PERMIT_KIND, "success", leaf)
    else:
        head = Head(read.record.time, read.record.kind, _outcome(read.record.outcome), leaf)
    return Document(entry, head, redact)


def body_of(entry: LogEntry) -> dict[str, Any]:
    """The whole document. Raises RecordError for what is no entry."""
    return document_of(entry).body


def _body(entry: LogEntry, head: Head) -> dict[str, Any]:
    told, searched = _told(entry.entry, head.kind)
    kind = told["sealane"]["kind"]
    document: dict[str, Any] = {
        **told,
        "message": _message(told),
        "ecs": {"version": ECS_VERSION},
        "event": {
            **told.get("event", {}),
            "id": entry.id,
            "sequence": entry.index,
            "kind": "alert" if kind in _ALERTS else "event",
            "category": list(_categories(kind, told["sealane"].get("outcome"))),
            "action": kind,
            "module": "sealane",
            "dataset": DATASET,
            "hash": head.leaf_hash,
            "original": entry.entry.decode(),
        },
    }
    document["sealane"] |= {"origin": entry.origin, "document": DOCUMENT_VERSION}
    document = _without_nothing(document)
    document["sealane"]["facets"] = facets_document(facets_of(entry.index, searched))  # never empty
    return document


def _told(entry: bytes, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the fields are, and the JSON that the facets are of. `entry` was decoded before, and is one."""
    if kind == PERMIT_KIND and isinstance(read := decode_entry(entry), PermitEntry):
        return _of_permit(read), {"kind": PERMIT_KIND, "claims": read.claims}
    record, record_bytes = record_within(entry)
    return _of_record(record), msgspec.json.decode(record_bytes)


def redacted(body: Mapping[str, Any], redact: frozenset[str]) -> dict[str, Any]:
    """`body` without those fields, without their values in the fields beside them, and without the original."""
    hidden = {value for path in redact for value in _values(body, path)}
    document = _without_nothing(_without_values(body, "", hidden))
    del document["event"]["original"]
    facets, folded = document["sealane"]["facets"], {fold(value) for value in hidden}
    for atom in {WHY, *(atom for path in redact for atom in REDACTABLE[path])}:
        facets.pop(facet_name(atom), None)
    document["sealane"]["facets"] = {name: kept for name, kept in facets.items() if not _tells(kept, folded)}
    document["message"] = _message(document)
    document["sealane"]["redacted"] = sorted(redact)
    return document


def _tells(facet: Any, hidden: set[str]) -> bool:
    return not hidden.isdisjoint(facet if isinstance(facet, list) else [facet])


def facets_document(facets: Facets) -> dict[str, Any]:
    """The values that queries compare, under their names; one value by itself, as most are."""
    return {facet_name(atom): values[0] if len(values) == 1 else list(values) for atom, values in facets.items()}


def _values(body: Mapping[str, Any], path: str) -> list[str]:
    found: Any = body
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, list) else [] if found is None else [found]


def _without_values(value: Any, path: str, hidden: set[str]) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_values(member, f"{path}.{name}".lstrip("."), hidden) for name, member in value.items()}
    if path not in REDACTABLE and path not in _RELATED:
        return value
    return [each for each in value if each not in hidden] if isinstance(value, list) else _unless(value, hidden)


def _unless(value: str, hidden: set[str]) -> str | None:
    return None if value in hidden else value


def _of_record(record: Record) -> dict[str, Any]:
    actor = record.actor
    decision = record.details.get("decision")
    decision = decision if isinstance(decision, dict) else {}
    policies = decision.get("policies")
    named = [_text(each.get("id")) for each in policies if isinstance(each, dict)] if isinstance(policies, list) else []
    hosts = [host for host in (record.source, record.destination) if host is not None]
    return {
        "@timestamp": record.time,
        "event": {
            "outcome": _outcome(record.outcome),
            "type": _types(record.kind, record.outcome),
            "reason": record.reason,
        },
        "user": {"id": actor.id, "name": actor.name, "domain": actor.issuer} if actor else None,
        "source": {"address": _text(record.details.get("client_address")) or record.source},
        "destination": {"address": record.destination},
        "rule": {
            "name": [name for name in named if name is not None],
            "version": _text(decision.get("bundle_digest")),
        },
        "related": {"user": [actor.id, actor.name] if actor else [], "hosts": hosts},
        "sealane": {
            "kind": record.kind,
            "outcome": record.outcome,
            "migration_id": record.migration_id,
            "source": record.source,
            "destination": record.destination,
            "vm": {"uuid": record.vm.uuid, "name": record.vm.name} if record.vm else None,
            "jurisdiction": _jurisdictions(record),
            "actor": {"groups": list(actor.groups or ()), "authenticated_by": actor.authenticated_by}
            if actor
            else None,
        },
    }


def _of_permit(permit: PermitEntry) -> dict[str, Any]:
    claims = permit.claims
    hosts = [_text(claims.get("source")), _text(claims.get("destination"))]
    return {
        "@timestamp": _issued(permit),
        "event": {"outcome": "success", "type": ["allowed"]},
        "source": {"address": hosts[0]},
        "destination": {"address": hosts[1]},
        "rule": {"version": _text(claims.get("bundle"))},
        "related": {"hosts": [host for host in hosts if host is not None]},
        "sealane": {
            "kind": PERMIT_KIND,
            "migration_id": _text(claims.get("migration_id")),
            "source": hosts[0],
            "destination": hosts[1],
            "vm": {"uuid": _text(claims.get("vm"))},
        },
    }


def _issued(permit: PermitEntry) -> str:
    issued = permit.claims.get("iat")
    if type(issued) is not int:
        raise RecordInvalid("a permit entry without the time of its issue")
    try:
        return format_time(datetime.fromtimestamp(issued, UTC))
    except (ValueError, OverflowError, OSError) as error:
        raise RecordInvalid("a permit entry of an impossible time") from error


def _jurisdictions(record: Record) -> dict[str, Any]:
    """Under which law the VM was and would be, as the decision knew the hosts."""
    known: dict[str, str] = {}
    entities = record.details.get("policy_entities")
    for entity in entities if isinstance(entities, list) else ():
        match entity:
            case {"uid": {"id": str(host)}, "attrs": {"jurisdiction": str(jurisdiction)}}:
                known[host] = jurisdiction
    source, destination = known.get(record.source or ""), known.get(record.destination or "")
    crossed = source != destination if source and destination else None
    return {"source": source, "destination": destination, "crossed": crossed}


def _message(told: Mapping[str, Any]) -> str:
    """One line for people, made of what the document says: what it is denied is not in it."""
    own = told["sealane"]
    outcome, vm, user = own.get("outcome"), own.get("vm") or {}, told.get("user") or {}
    named, who = vm.get("name") or vm.get("uuid"), user.get("name")
    said = [f": {outcome}" if outcome else "", f", VM {named}" if named else "", f" by {who}" if who else ""]
    return "".join((own["kind"], *said))


def _outcome(outcome: str | None) -> str:
    if outcome in _FAILED:
        return "failure"
    return _DECIDED.get(outcome or "", "unknown")


def _categories(kind: str, outcome: str | None) -> tuple[str, ...]:
    return _CATEGORIES.get(kind) or (("api",) if outcome in {"allowed", "denied"} else ("configuration",))


def _types(kind: str, outcome: str | None) -> list[str]:
    """ECS lists for each category which types go with it: `allowed` and `denied` with `api` only."""
    if kind == "migration.receipt":
        return ["end"]
    return [outcome] if outcome in {"allowed", "denied"} and _categories(kind, outcome) == ("api",) else ["info"]


def _text(value: object) -> str | None:
    """What a record's `details` hold may be of any type, and a field has one."""
    return value if isinstance(value, str) else None


def _without_nothing(value: dict[str, Any]) -> dict[str, Any]:
    """`value` itself, freed of empty members: a receiver must not have to tell them from absent ones. Called once a
    dict, not a value, and nearly all values pass one test: it was a third of a document's making.
    """
    empty = []
    for name, member in value.items():
        if type(member) is dict:
            _without_nothing(member)
        if not member and (member is None or type(member) in _MAY_BE_EMPTY):
            empty.append(name)
    for name in empty:
        del value[name]
    return value
