"""One breaking of glass as a value, and how the records of the log make it: pure.

    pending ─► approved ─► ended (by a person, used up, or its time is up)
       └─────────────────► ended (refused, taken back, or nobody answered)

Times are unix seconds by `gateway.steady`: they never go back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from audit.record import parse_time
from policy.facts import Person

REQUESTED: Final = "breakglass.requested"
APPROVED: Final = "breakglass.approved"
USED: Final = "breakglass.used"
ENDED: Final = "breakglass.ended"
KINDS: Final = (REQUESTED, APPROVED, ENDED)


class State(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Grant:
    """`marks`: by what the requester is recognised as a human. `until`: end of what was approved, None while pending.

    `source` and `destination` are SPIFFE ids. `ended_because` is a word: see `ENDINGS`.
    """

    id: str
    vm_uuid: str
    vm_name: str
    source: str
    destination: str
    requester: Person
    marks: frozenset[str]
    ticket: str
    reason: str
    minutes: int
    ports: tuple[str, ...]
    requested_at: int
    answer_until: int
    record_index: int
    state: State = State.PENDING
    approved_by: str | None = None
    until: int | None = None
    ended_by: str | None = None
    ended_because: str | None = None

    def at(self, now: int) -> Grant:
        """The same, given that it is `now`."""
        if self.state is State.PENDING and now >= self.answer_until:
            return replace(self, state=State.ENDED, ended_because="unanswered")
        if self.state is State.APPROVED and now >= (self.until or 0):
            return replace(self, state=State.ENDED, ended_because="expired")
        return self

    def document(self) -> dict[str, Any]:
        """For the API; marks stay with us."""
        return {
            "id": self.id,
            "state": self.state.value,
            "vm": {"uuid": self.vm_uuid, "name": self.vm_name},
            "source": self.source,
            "destination": self.destination,
            "requested_by": {"id": self.requester.id, "name": self.requester.name},
            "requested_at": self.requested_at,
            "ticket": self.ticket,
            "reason": self.reason,
            "minutes": self.minutes,
            "ports": list(self.ports),
            "answer_until": self.answer_until,
            "approved_by": self.approved_by,
            "until": self.until,
            "ended_by": self.ended_by,
            "ended_because": self.ended_because,
            "record_index": self.record_index,
        }


ENDINGS: Final[Mapping[str, str]] = {
    "unanswered": "nobody approved it in time",
    "expired": "its time is up",
    "used": "the move that it was for is done",
    "ended": "it was ended",
    "refused": "it was refused",
    "withdrawn": "it was taken back",
}


def problem_of(grant: Grant, now: int) -> str | None:
    """Why nothing may be moved under it now, whoever asks; None if something may."""
    match grant.at(now):
        case Grant(state=State.PENDING):
            return "nobody has approved it yet"
        case Grant(state=State.ENDED, ended_because=because):
            return ENDINGS.get(because or "", "it has ended")
        case _:
            return None


def requested(index: int, record: Mapping[str, Any]) -> Grant:
    """The grant that a `breakglass.requested` record (as JSON, outcome allowed) asks for."""
    said, actor = record["details"]["break_glass"], record["actor"]
    return Grant(
        id=said["id"],
        vm_uuid=record["vm"]["uuid"],
        vm_name=record["vm"]["name"],
        source=record["source"],
        destination=record["destination"],
        requester=Person(
            actor["id"],
            actor["issuer"],
            actor["name"],
            frozenset(actor["groups"]) if actor["groups"] is not None else None,
            actor["authenticated_by"],
        ),
        marks=frozenset(said["marks"]),
        ticket=said["ticket"],
        reason=record["reason"] or "",
        minutes=said["minutes"],
        ports=tuple(said["ports"]),
        requested_at=said["at"],
        answer_until=said["answer_until"],
        record_index=index,
    )


def derive(records: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[str, Grant]:
    """All grants of these records (as JSON, in order), by id; the same as if it happened now."""
    found: dict[str, Grant] = {}
    for index, record in records:
        if record["kind"] == REQUESTED and record.get("outcome") == "allowed":
            grant = requested(index, record)
            found[grant.id] = grant
        elif (grant_id := _grant_id(record)) in found:
            found[grant_id] = apply(found[grant_id], record)
    return found


def apply(grant: Grant, record: Mapping[str, Any]) -> Grant:
    """What a later record (as JSON) makes of it. What was refused changes nothing."""
    said = record.get("details", {}).get("break_glass", {})
    match record["kind"], record.get("outcome"), grant.state:
        case "breakglass.approved", "allowed", State.PENDING:
            return replace(grant, state=State.APPROVED, approved_by=_actor_id(record), until=said["until"])
        case "breakglass.ended", "completed", State.PENDING | State.APPROVED:
            return replace(grant, state=State.ENDED, ended_by=_actor_id(record), ended_because=said["because"])
        case _:
            return grant


def steady_since(record: Mapping[str, Any], wall: datetime) -> int:
    """What the time of grants was at a record, and what has passed by the wall clock since; 0 where it does not say.

    The wall clock may have been ahead for a moment before: time for grants, which stayed ahead, must not fall back to
    it at a restart.
    """
    at = record.get("details", {}).get("break_glass", {}).get("at")
    passed = (wall - parse_time(record["time"])).total_seconds()
    return 0 if at is None else int(at + max(0.0, passed))


def _grant_id(record: Mapping[str, Any]) -> str:
    said = record.get("details", {}).get("break_glass")
    return str(said["id"]) if isinstance(said, Mapping) and "id" in said else ""


def _actor_id(record: Mapping[str, Any]) -> str | None:
    return (record.get("actor") or {}).get("id")
