"""What somebody may see or order, where no VM or host decides: asked of the policy, and on record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gateway.asking import decide
from gateway.deciding import decision_document
from gateway.errors import NotAllowed
from gateway.gate import Gate
from gateway.recording import Event, actor_of, identity_of
from policy.facts import Context, Person, Question


@dataclass(frozen=True, slots=True)
class Wanted:
    """`called`: in words, for a denial. `kind`: of the record; `details`: what it says beside who and why."""

    action: str
    called: str
    kind: str
    details: Mapping[str, Any]


async def require(
    gate: Gate, wanted: Wanted, person: Person, now: datetime, address: str, *, recorded: bool
) -> int | None:
    """The index of the record, which is made of each denial, and where `recorded` of what is allowed.

    Errors: NotAllowed (recorded), TooManyRefusals; LogUnavailable, Overloaded: what cannot be recorded is not shown.
    """
    decision = decide(gate.engine, Question(wanted.action, person, None, None, None, Context(time=now)))
    if not decision.allowed:
        await gate.people.patience.require(person, address)
    elif not recorded:
        return None
    details = {"client_address": address, **wanted.details, "decision": decision_document(decision)}
    event = Event(
        wanted.kind,
        "allowed" if decision.allowed else "denied",
        actor=actor_of(person),
        details=details | identity_of(person),
    )
    index = (await gate.recorder.append(event)).index
    if not decision.allowed:
        raise NotAllowed(f"{wanted.called} is denied", decision.denied_because, index)
    return index
