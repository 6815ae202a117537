"""A record, a migration, a VM's moves, told as a person would: who asked, what they were, who said yes and why.

Pure: from records as JSON to lines of (what, text). Any member may be missing or of another type, and what is there was
written by requesters and hosts: nothing here formats, escapes or trusts it; who prints the lines makes them harmless.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from gateway.cli.record_replies import NumberedRecord
from gateway.counted import counted
from gateway.times import to_the_second

# What a migration begins with: decided when it was asked for, hours before, or by the other gateway of the site.
BEGINNINGS: Final = frozenset({"migration.decision", "evacuation.decision", "migration.elsewhere"})
# What tells how it ended.
ENDS: Final = ("migration.receipt", "migration.withdrawn")

MAX_GROUPS = 40


class Line(NamedTuple):
    """One line of a story."""

    what: str
    text: str


@dataclass(frozen=True, slots=True)
class Move:
    """One request to move a VM, or for a lane to another program (`port`, else ""), and what became of it."""

    index: int
    time: str
    migration: str
    who: str
    source: str
    destination: str
    port: str
    decided: str
    ended: str
    downtime_ms: int | None
    reason: str

    def document(self) -> dict[str, Any]:
        """For `--json`."""
        return {name: getattr(self, name) for name in self.__slots__}


def story_of(one: NumberedRecord, related: Sequence[NumberedRecord] = ()) -> list[Line]:
    """One record; `related` are the other records of its migration, in the order of the log."""
    record = one.record
    if "claims" in record:
        return list(_permit_entry(one))
    lines = [Line("what", f"{_text(record, 'kind')}: {_text(record, 'outcome')}".rstrip(": "))]
    lines += _when(record)
    lines += _who(record)
    lines += _asked(record)
    lines += _decision(_object(_object(record, "details"), "decision"))
    lines += _permit(record)
    if record.get("kind") in {*BEGINNINGS, *ENDS}:
        lines += _outcome_of([each for each in (one, *related) if each.record.get("kind") in ENDS])
    lines += _rest(record)
    return lines


def life_of(found: Sequence[NumberedRecord]) -> list[Line]:
    """A migration from its request to its last receipt: the decision as a story, then what followed, by time."""
    begun = next((one for one in found if one.record.get("kind") in BEGINNINGS), None)
    lines: list[Line] = story_of(begun, [one for one in found if one is not begun]) if begun is not None else []
    for one in found:
        if one is not begun and "claims" not in one.record:
            lines.append(Line(f"record {one.index}", _in_one_line(one.record)))
    return lines


def moves_of(decisions: Iterable[NumberedRecord], ends: Iterable[NumberedRecord]) -> list[Move]:
    """Each request to move, with the outcome that the receipts of its migration certify, or its permit's withdrawal.

    Of what was prepared for an evacuation only what was used: nobody has asked for the rest to move.
    """
    of_migration: dict[str, list[NumberedRecord]] = {}
    for one in ends:
        of_migration.setdefault(_text(one.record, "migration_id"), []).append(one)
    decisions = [
        one
        for one in decisions
        if one.record.get("kind") != "evacuation.decision" or _text(one.record, "migration_id") in of_migration
    ]
    return [_move(one, of_migration.get(_text(one.record, "migration_id"), [])) for one in decisions]


def ended(ends: Sequence[NumberedRecord]) -> str:
    """What both hosts certify, in words."""
    records = [one.record for one in ends if one.record.get("kind") != "migration.withdrawn"]
    receipts = [(_object(record, "details"), _text(record, "outcome")) for record in records]
    said = {(_text(details, "role"), outcome) for details, outcome in receipts}
    each_says = ", ".join(f"{role} certifies {outcome}" for role, outcome in sorted(said))
    at_destination = said & {("destination", "running"), ("destination", "completed")}
    at_source = ("source", "completed") in said
    running = [details for details, outcome in receipts if outcome == "running"]
    lacks = bool(running) and all(details.get("lacks_memory") is True for details in running)
    if at_source and lacks:
        return "the source certifies the end; the destination certifies that it runs there and that memory had not come"
    if at_destination and at_source:
        return "completed: both hosts certify it"
    if any(details.get("moves_guest") is False for details, _ in receipts):
        return each_says  # "it runs there" would be of a guest
    if at_destination and (lacks or ("source", "handed-over") in said):
        return "the destination certifies that it runs there; the source has part of its memory"
    if at_destination:
        return "the destination certifies that it runs there; the source has not certified the end"
    if at_source:
        return "the source certifies the end; the destination has not certified that it runs there"
    if not said and ends:
        return f"{_text(ends[-1].record, 'outcome')} before it began: the permit was withdrawn"
    if not said:
        return "no receipt"
    return each_says


def _move(one: NumberedRecord, ends: Sequence[NumberedRecord]) -> Move:
    record = one.record
    asked = _object(_object(record, "details"), "asked")
    downtimes = [_object(each.record, "details").get("downtime_ms") for each in ends]
    known = [each for each in downtimes if type(each) is int]
    outcome = _text(record, "outcome")
    permitted = _object(_object(record, "details"), "permit")
    return Move(
        index=one.index,
        time=_text(record, "time"),
        migration=_text(record, "migration_id"),
        who=_named(record.get("actor")),
        source=_host(record.get("source")),
        destination=_host(record.get("destination")) or _text(asked, "destination"),
        port=_named_port(record),
        decided=outcome,
        ended=ended(ends) if permitted or ends else "",
        downtime_ms=max(known) if known else None,
        reason=_text(record, "reason"),
    )


def _when(record: Mapping[str, Any]) -> Iterator[Line]:
    error = record.get("clock_error_us")
    known = f" (its clock was known to be right within {error / 1000:g} ms)" if type(error) is int else ""
    yield Line("when", f"{_text(record, 'time')}{known}")


def _who(record: Mapping[str, Any]) -> Iterator[Line]:
    actor, details = _object(record, "actor"), _object(record, "details")
    if not actor:
        return
    how = f", authenticated by {_text(actor, 'authenticated_by')}" if actor.get("authenticated_by") else ""
    vouched = f", vouched for by {_text(actor, 'issuer')}" if actor.get("issuer") else ""
    where = f", from {_text(details, 'client_address')}" if details.get("client_address") else ""
    yield Line("who", f"{_text(actor, 'name')} ({_text(actor, 'id')}){how}{vouched}{where}")
    if details.get("on_behalf_of"):
        yield Line("on behalf of", _text(details, "on_behalf_of"))
    groups = actor.get("groups")
    if isinstance(groups, list):
        more = f" and {len(groups) - MAX_GROUPS} more" if len(groups) > MAX_GROUPS else ""
        yield Line("groups then", (", ".join(map(str, groups[:MAX_GROUPS])) or "none") + more)
    elif not str(actor.get("authenticated_by")).startswith("client-certificate"):
        yield Line("groups then", "unknown, which is not none")


def _asked(record: Mapping[str, Any]) -> Iterator[Line]:
    vm, details = _object(record, "vm"), _object(record, "details")
    asked = _object(details, "asked")
    if vm:
        uuid = f" ({_text(vm, 'uuid')})" if vm.get("uuid") else ": nobody knows such a VM"
        yield Line("VM", f"{_text(vm, 'name')}{uuid}")
    if record.get("source") and not record.get("destination") and not asked.get("destination"):
        if details.get("host") is None:  # which is told with the details
            yield Line("host", _text(record, "source"))
    elif record.get("source") or record.get("destination") or asked.get("destination"):
        unknown = f"{_text(asked, 'destination')}: nobody knows such a host"
        destination = _text(record, "destination") or unknown
        yield Line("from → to", f"{_text(record, 'source') or '?'} → {destination}")
    if port := _named_port(record):
        yield Line("named port", f"{port}: another program's stream; the VM stays where it is")
    if record.get("reason"):
        yield Line("reason given", _text(record, "reason"))
    if ticket := asked.get("ticket") or details.get("ticket"):
        yield Line("ticket", str(ticket))


def _named_port(record: Mapping[str, Any]) -> str:
    """Of a decision, or of one of the other gateway; "" where a VM was to move."""
    details = _object(record, "details")
    if details.get("action") != "OpenPort":
        return _text(details, "named_port")
    ports = _object(details, "asked").get("ports")
    return ", ".join(map(str, ports)) if isinstance(ports, list) else "?"


def _decision(decision: Mapping[str, Any]) -> Iterator[Line]:
    if not decision:
        return
    if decision.get("observed"):
        yield Line("decision", "would be denied, and was let through since its zones were observed only")
    else:
        yield Line("decision", "allowed" if decision.get("allowed") is True else "denied")
    if decision.get("denied_because"):
        yield Line("because", _text(decision, "denied_because"))
    policies = decision.get("policies")
    for policy in policies if isinstance(policies, list) else ():
        if isinstance(policy, Mapping):
            reason = f": {_text(policy, 'reason')}" if policy.get("reason") else ""
            yield Line("policy", f"{_text(policy, 'id')} ({_text(policy, 'effect')}){reason}")
    errors = decision.get("errors")
    for error in errors if isinstance(errors, list) else ():
        yield Line("policy error", str(error))
    if decision.get("bundle_digest"):
        yield Line("policy bundle", _text(decision, "bundle_digest"))


def _permit(record: Mapping[str, Any]) -> Iterator[Line]:
    details = _object(record, "details")
    permit = _object(details, "permit")
    if details.get("not_admitted"):
        yield Line("not admitted", _text(details, "not_admitted"))
    if permit:
        yield Line("permit", f"{_text(permit, 'jti')}, to begin until {_moment(permit.get('exp'))}")
    if record.get("migration_id"):
        yield Line("migration", _text(record, "migration_id"))


def _moment(unix: object) -> str:
    return to_the_second(unix) if type(unix) is int else "no time"


def _outcome_of(ends: Sequence[NumberedRecord]) -> Iterator[Line]:
    for one in ends:
        if one.record.get("kind") == "migration.withdrawn":
            continue
        details = _object(one.record, "details")
        body = _body(details)
        role = _text(details, "role")
        told = [f"certifies: {_text(one.record, 'outcome')}"]
        if (downtime := details.get("downtime_ms")) is not None:
            told.append(f"the guest stood still for {downtime} ms")
        carried = {name: details.get(f"{name}_bytes") for name in ("sent", "received")}
        told += [f"{name} {amount} bytes" for name, amount in carried.items() if type(amount) is int]
        if details.get("recovery") is True:
            told.insert(0, "went on with interrupted post-copy")
        if details.get("lacks_memory") is True:
            told.append("part of its memory had not come")
        if details.get("lacks_counts") is True:
            told.append("its relay was restarted, so that it does not know what it carried")
        if body.get("resumptions"):
            told.append(f"resumed {counted(body['resumptions'], 'time')}")
        told.append("signed by its certificate" if details.get("chain") else "NOT signed by a host")
        yield Line(f"{role} host", f"{', '.join(told)} (record {one.index})")
        tls = _object(details, "tls")
        if tls:
            lanes = f", lanes {body['lane_cipher']}" if body.get("lane_cipher") else ""
            words = (_text(tls, name) for name in ("version", "group", "cipher"))
            yield Line("protection", f"{', '.join(words)}{lanes} (as the {role} host certifies)")
    yield Line("outcome", ended(ends))


def _permit_entry(one: NumberedRecord) -> Iterator[Line]:
    claims, decision = _object(one.record, "claims"), _object(one.record, "decision")
    yield Line("what", "permit entry: the permit that was issued for the decision before it")
    yield Line("decision", f"record {decision.get('index')}")
    for name in ("migration_id", "jti", "vm", "source", "destination", "ports", "exp", "session_until"):
        if claims.get(name) is not None:
            yield Line(name, str(claims[name]))


def _rest(record: Mapping[str, Any]) -> Iterator[Line]:
    """Of kinds that have no story of their own: their details, so that nothing is left out."""
    details = _object(record, "details")
    if record.get("kind") not in {*BEGINNINGS, "migration.receipt", "decision.check"}:
        for name, value in details.items():
            if name not in {"decision", "client_address", "policy_request", "policy_entities", "identity"}:
                shown = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
                yield Line(str(name), shown)
    yield Line("written by", f"{_text(record, 'origin')}, boot {_text(record, 'boot_id')}")


def _in_one_line(record: Mapping[str, Any]) -> str:
    parts = [_text(record, "time"), _text(record, "kind"), _text(record, "outcome"), _named(record.get("actor"))]
    return "  ".join(part for part in parts if part)


def _body(details: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        body = json.loads(details.get("body") or "null")
    except (ValueError, TypeError, RecursionError):
        return {}
    return body if isinstance(body, Mapping) else {}


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}


def _text(parent: Mapping[str, Any], name: str) -> str:
    value = parent.get(name)
    return "" if value is None else str(value)


def _named(value: object) -> str:
    return str(value.get("name") or value.get("id") or "") if isinstance(value, Mapping) else ""


def _host(value: object) -> str:
    return str(value).rpartition("/host/")[2] if value else ""
