"""OCSF 1.9 (Open Cybersecurity Schema Framework), profile `record_integrity`.

    6003 API Activity         somebody asked for something: decisions, permits, tokens, reading the log
    3004 Entity Management    a VM moved, or did not: receipts
    1008 Event Log Activity   the log's own life: starts, stops, heartbeats, clock steps, delivery to SIEMs

`raw_data` is the log's entry. The attestation's fingerprint is over this event in canonical JSON (RFC 8785) without
that fingerprint, as the profile wants it: it finds what was altered by accident. What finds forgery is the entry's own
signature in `raw_data`, and the leaf hash in `unmapped`, which the log's checkpoints cover.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from audit.siem.formats.cef import address
from audit.siem.formats.severity import severity_of
from audit.siem.formats.text import as_ascii, member, milliseconds, printable

OCSF_VERSION: Final = "1.9.0"
_SHA256: Final = 3
_HEX: Final = 1
_FLAT, _JCS = 1, 2
_OTHER: Final = 99
_MOVE: Final = 5

_STATUS: Final = {"success": 1, "failure": 2}
_LOG_ACTIVITIES: Final = {"gateway.started": 6, "gateway.stopped": 7, "log.started": 6, "log.stopped": 7}
_LOG_KINDS: Final = frozenset({"gateway", "log", "heartbeat", "clock-step", "siem", "config"})
# Create, read, update, delete; what is none of them is Other, and says which.
_API_ACTIVITIES: Final = {
    "migration.decision": 1,
    "evacuation.decision": 1,
    "sealane-permit": 1,
    "token.issued": 1,
    "token.refused": 1,
    "audit.read": 2,
    "migration.cancel_requested": 3,
}


def ocsf(body: Mapping[str, Any]) -> bytes:
    """Of a document's body, as ASCII JSON."""
    event = _without_none(_event(body))
    # No floats, no integer over 2^53, keys in ASCII: msgspec's sorted form is RFC 8785's.
    attested = hashlib.sha256(msgspec.json.encode(event, order="sorted")).hexdigest()
    event["attestation_list"][0]["fingerprint"] = {**_fingerprint(attested), "serialization_id": _JCS}
    return as_ascii(msgspec.json.encode(event))


def _event(body: Mapping[str, Any]) -> dict[str, Any]:
    kind = body["event"]["action"]
    if kind.partition(".")[0] in _LOG_KINDS:
        event = _log_activity(body, kind)
    elif kind == "migration.receipt":
        event = _entity_management(body)
    else:
        event = _api_activity(body, kind)
    event["type_uid"] = event["class_uid"] * 100 + event["activity_id"]
    return {**_base(body), **event}


def _base(body: Mapping[str, Any]) -> dict[str, Any]:
    event, own = body["event"], body["sealane"]
    original: str | None = event.get("original")
    omitted = own.get("omitted")
    outcome = event.get("outcome")
    return {
        "time": milliseconds(body["@timestamp"]),
        "message": _text(body.get("message")),
        "severity_id": int(severity_of(body["event"]["action"], body["event"].get("outcome"))),
        "status_id": _STATUS.get(outcome, 0),
        "status_detail": _text(event.get("reason")),
        "metadata": {
            "version": OCSF_VERSION,
            "product": {"name": "Sealane", "vendor_name": "Sealane"},
            "profiles": ["record_integrity"],
            "uid": event["id"],
            "sequence": event["sequence"],
            "event_code": kind_of(event),
            "log_name": _text(own["origin"]),
            "original_time": body["@timestamp"],
            "correlation_uid": _text(own.get("migration_id")),
            "is_truncated": True if omitted else None,
        },
        "raw_data": original,
        "raw_data_hash": {
            **_fingerprint(hashlib.sha256(original.encode()).hexdigest()),
            "serialization_id": _FLAT,
        }
        if original is not None
        else None,
        "attestation_list": [{"chain_uid": _text(own["origin"]), "uid": event["id"]}],
        "unmapped": {
            "leaf_hash": event["hash"],
            "outcome": own.get("outcome"),
            "source": _text(own.get("source")),
            "destination": _text(own.get("destination")),
            "omitted": omitted,
            "redacted": own.get("redacted"),
        },
    }


def _api_activity(body: Mapping[str, Any], kind: str) -> dict[str, Any]:
    activity = _API_ACTIVITIES.get(kind, _OTHER)
    source = member(body, "source", "address")
    vm = _vm(body)
    return {
        "class_uid": 6003,
        "category_uid": 6,
        "activity_id": activity,
        "activity_name": kind if activity == _OTHER else None,
        "actor": _actor(body),
        "api": {"operation": kind, "service": {"name": "Sealane gateway"}},
        "src_endpoint": _endpoint(source) or {"svc_name": "Sealane gateway"},
        "dst_endpoint": _endpoint(member(body, "destination", "address")),
        "resources": [{**vm, "type": "virtual machine"}] if vm else None,
    }


def _entity_management(body: Mapping[str, Any]) -> dict[str, Any]:
    moved = {**(_vm(body) or {"name": "unknown"}), "type": "virtual machine"}
    return {
        "class_uid": 3004,
        "category_uid": 3,
        "activity_id": _MOVE,
        "actor": _actor(body),
        "entity": moved,
        "src_endpoint": _endpoint(member(body, "source", "address")),
        "comment": _text(member(body, "event", "reason")),
    }


def _log_activity(body: Mapping[str, Any], kind: str) -> dict[str, Any]:
    activity = _LOG_ACTIVITIES.get(kind, _OTHER)
    return {
        "class_uid": 1008,
        "category_uid": 1,
        "activity_id": activity,
        "activity_name": kind if activity == _OTHER else None,
        "actor": _actor(body),
        "log_name": _text(body["sealane"]["origin"]),
        "log_provider": "Sealane",
        "src_endpoint": _endpoint(member(body, "source", "address")),
    }


def _actor(body: Mapping[str, Any]) -> dict[str, Any]:
    user, own = body.get("user"), body["sealane"]
    rule = body.get("rule", {})
    policies = [{"policy": {"name": _text(name), "version": rule.get("version")}} for name in rule.get("name", ())]
    if not user:
        return {"app_name": "Sealane gateway", "authorizations": policies or None}
    if "id" not in user and "name" not in user:
        user = {**user, "name": "(withheld)"}  # the schema wants one of them
    groups = [{"uid": _text(group)} for group in member(own, "actor", "groups") or ()]
    return {
        "user": {
            "uid": _text(user.get("id")),
            "name": _text(user.get("name")),
            "domain": _text(user.get("domain")),
            "groups": groups or None,
        },
        "authorizations": policies or None,
    }


def _vm(body: Mapping[str, Any]) -> dict[str, Any] | None:
    vm = member(body, "sealane", "vm") or {}
    return {"uid": vm.get("uuid"), "name": _text(vm.get("name"))} if vm else None


def _endpoint(value: str | None) -> dict[str, Any] | None:
    """An IP address as such; a SPIFFE id is an id, and its last part the host's name."""
    found = address("ip", "uid", _text(value))
    if "uid" in found and found["uid"].startswith("spiffe://"):
        found["hostname"] = found["uid"].rpartition("/")[2]
    return dict(found) or None


def _fingerprint(value: str) -> dict[str, Any]:
    return {"algorithm_id": _SHA256, "encoding_id": _HEX, "value": value}


def kind_of(event: Mapping[str, Any]) -> str:
    """The record's kind, which ECS calls its action."""
    kind: str = event["action"]
    return kind


def _text(value: str | None) -> str | None:
    return None if value is None else printable(value, 8192)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(each) for name, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value
