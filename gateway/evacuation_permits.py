"""Which evacuation permits somebody gets: each VM and destination is decided as for a move now, sealed for hours."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import msgspec
import trio

from gateway.admission import host_revoked
from gateway.asking import Asked, Facts, collect_facts, decide
from gateway.deciding import commit, decision_event
from gateway.draining import vms_on
from gateway.errors import Conflict
from gateway.gate import Gate
from gateway.permitting import make_claims, sealed_permit
from gateway.recording import Event
from policy.engine import Decision
from policy.facts import HostFacts, Person, VmFacts
from policy.permit import MAX_RECOVER_SECONDS, PermitClaims

ACTION: Final = "Evacuate"
MAX_LOOKED_AT: Final = 64  # pairs of VM and host, to see whether somebody may empty a host at all


@dataclass(frozen=True, slots=True)
class Wish:
    """Who wants to be able to empty `host`, for so many hours. `vms`, `to`: only these; empty: all. As it was said."""

    person: Person
    host: str
    vms: Sequence[str]
    to: Sequence[str]
    hours: int
    reason: str | None
    address: str
    now: datetime


async def orders_of(
    gate: Gate, wish: Wish, evacuation_id: str, vm: VmFacts, hosts: Sequence[HostFacts], destinations: int
) -> tuple[list[dict[str, Any]], str]:
    """The permits of one VM, to `destinations` at most, best first; else why there is none to the likeliest host, which
    is on record then."""
    found: list[dict[str, Any]] = []
    because = "there is no other host"
    first: tuple[Decision, Facts, Conflict | None] | None = None
    for host in hosts:
        if len(found) == destinations:
            break
        await trio.lowlevel.checkpoint()  # a decision holds the loop for a millisecond, and there may be many
        decision, facts = _decide(gate, wish, vm, host)
        obstacle = host_revoked(gate, facts) if decision.allowed else None
        if decision.allowed and obstacle is None:
            found.append(await _permit(gate, wish, evacuation_id, decision, facts))
        elif first is None:
            first = decision, facts, obstacle
            because = decision.denied_because if obstacle is None else obstacle.detail
    if not found and first is not None:
        event = decision_event("evacuation.decision", first[1], first[0], first[2], None, None)
        await commit(gate, _of(event, evacuation_id), None)
    return found, because


def _decide(gate: Gate, wish: Wish, vm: VmFacts, host: HostFacts) -> tuple[Decision, Facts]:
    asked = Asked(vm.uuid, host.spiffe_id, wish.reason, (), wish.address)
    facts = collect_facts(gate, wish.person, asked, wish.now, ACTION)
    return decide(gate.engine, facts.question), facts


async def _permit(gate: Gate, wish: Wish, evacuation_id: str, decision: Decision, facts: Facts) -> dict[str, Any]:
    migration_id = gate.new_id()
    claims = _claims(gate, make_claims(gate, facts, decision, migration_id, wish.now), wish.hours)
    event = _of(decision_event("evacuation.decision", facts, decision, None, claims, migration_id), evacuation_id)
    committed = await commit(gate, event, claims)
    # Not put among the migrations: until somebody uses it, nothing is under way.
    _, document = sealed_permit(gate, facts, claims, event, committed.index, await gate.prove(committed))
    return {
        "permit": document["permit"],
        "vm": claims.vm,
        "vm_name": facts.vm.name if facts.vm is not None else None,
        "destination": claims.destination,
        "destination_address": document["destination_address"],
        "downtime_limit_ms": document["downtime_limit_ms"],
        "session_seconds": claims.session_until - claims.exp,
    }


def _claims(gate: Gate, claims: PermitClaims, hours: int) -> PermitClaims:
    """The same, to begin for hours; a session that begins at the last moment lasts as long as any other."""
    terms = gate.terms
    expires = claims.iat + hours * 3600
    session_until = min(expires + terms.session_seconds, claims.iat + MAX_RECOVER_SECONDS)
    return msgspec.structs.replace(claims, exp=expires, session_until=session_until, recover_until=session_until)


async def may_prepare(gate: Gate, wish: Wish, host: HostFacts) -> bool:
    """Whether any move off this host would be allowed; of an empty host nobody knows that, which denies."""
    hosts = [each for each in gate.inventory.hosts.values() if each.spiffe_id != host.spiffe_id]
    pairs = ((vm, each) for vm in vms_on(gate, host) for each in hosts)
    for vm, each in itertools.islice(pairs, MAX_LOOKED_AT):
        await trio.lowlevel.checkpoint()
        if _decide(gate, wish, vm, each)[0].allowed:
            return True
    return False


def _of(event: Event, evacuation_id: str) -> Event:
    return replace(event, details={**event.details, "evacuation": evacuation_id})
