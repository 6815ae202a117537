"""The admission story: authenticate → resolve groups → collect facts → decide → commit the record → issue the permit.

`admit` tells it. Whatever goes wrong in identity, policy or the log is a denial with a reason; a permit exists only
after the record of its decision, and its own entry, are durable in the log, because only the commit gives the proof
that the permit is sealed with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from gateway.answering import answer
from gateway.asking import Asked, Facts, collect_facts, decide, make_known
from gateway.deciding import commit, decision_event, remember_refusal
from gateway.errors import Conflict, GatewayError, RelayUnreachable
from gateway.gate import Gate
from gateway.people import Presented
from gateway.permitting import issue_permit, make_claims
from gateway.preflight import findings_document, hindrance, preflight
from gateway.preflight_findings import Finding
from gateway.sites.own_only import require_own
from policy.engine import Decision


@dataclass(frozen=True, slots=True)
class Admission:
    """The outcome. `obstacle`: allowed by policy, but not now; then no permit was issued.

    `findings`: what the hosts say against it, of a check that asked them; None where they were not asked.
    """

    migration_id: str
    decision: Decision
    record_index: int
    obstacle: GatewayError | None = None
    findings: list[Finding] | None = None


async def admit(gate: Gate, bearer: Presented | str | None, asked: Asked) -> Admission:
    """Decide on a migration and, if it is allowed, hand the permit to the source relay.

    Errors: Unauthenticated (recorded), RequestRefused (malformed), LogUnavailable and Overloaded (nothing decided,
    nothing permitted), NoCosignature (decided, nothing permitted). A denial is no error. Cancellation issues no permit,
    but may leave a record.
    """
    now = gate.clock.wall()
    person = await gate.people.authenticate(bearer, now, asked.address)
    person = await gate.people.resolve_groups(person, now, asked.address, asked.action)
    await make_known(gate, asked)
    facts, decision = await answer(gate, collect_facts(gate, person, asked, now))
    migration_id = gate.new_id()
    hindered = await hindrance(gate, facts, allowed=decision.allowed)
    with reserved(gate, facts, decision, now, hindered) as obstacle:
        claims = make_claims(gate, facts, decision, migration_id, now) if decision.allowed and not obstacle else None
        event = decision_event("migration.decision", facts, decision, obstacle, claims, migration_id)
        committed = await commit(gate, event, claims)
        # From here on the decision is durable, and the permit entry with it: only now can a permit be sealed.
        if claims is not None:
            issue_permit(gate, facts, claims, event, committed.index, await gate.prove(committed))
        else:
            remember_refusal(gate, facts, event, committed.index)
        return Admission(migration_id, decision, committed.index, obstacle)


async def check(gate: Gate, bearer: Presented | str | None, asked: Asked) -> Admission:
    """The same question without a permit: decided alike and recorded as a check. Errors: those of `admit`.

    RequestRefused for a host of another site: what that would say, only its answer to a request tells.
    """
    now = gate.clock.wall()
    person = await gate.people.authenticate(bearer, now, asked.address)
    person = await gate.people.resolve_groups(person, now, asked.address, asked.action)
    require_own(gate, asked.destination, "a check knows")
    await make_known(gate, asked)
    facts = collect_facts(gate, person, asked, now)
    may_ask = decide(
        gate.engine, replace(facts.question, action="CheckDecision", source=None, destination=None, vm=None)
    )
    decision = may_ask
    if may_ask.allowed:
        facts, decision = await answer(gate, facts, recorded=False)
    # Only who may move it is told whether it can be moved.
    found = await _can_it_move(gate, facts, now) if asked.preflight and decision.allowed else None
    event = decision_event("decision.check", facts, decision, None, None, None)
    if found is not None:
        event = replace(event, details={**event.details, "preflight": findings_document(found)})
    committed = await commit(gate, event, None)
    return Admission("", decision, committed.index, findings=found)


def host_revoked(gate: Gate, facts: Facts) -> Conflict | None:
    """Why nothing is permitted that relays would refuse for a CRL: the log must not show a permit of it."""
    for host in (facts.source, facts.destination):
        if host is not None and gate.is_revoked(host.spiffe_id):
            return Conflict(
                f"the certificate of {host.name} has been revoked",
                code="host_revoked",
                next_step="ask who revoked it; a host that is to come back enrols with a new key",
            )
    return None


async def _can_it_move(gate: Gate, facts: Facts, now: datetime) -> list[Finding]:
    """What a request would be refused for at once; else what both hosts say."""
    obstacle = obstacle_of(gate, facts)
    vm = facts.vm
    if obstacle is None and vm is not None and gate.migrations.active_of(vm.uuid, int(now.timestamp())) is not None:
        obstacle = Conflict(f"{vm.name} is being migrated")  # and its monitor is the relay's
    if obstacle is None:
        return await preflight(gate, facts)
    return [Finding(obstacle.code, "cannot", obstacle.who_must_act, obstacle.detail)]


def obstacle_of(gate: Gate, facts: Facts) -> Conflict | None:
    """Why an allowed migration is none, by what the gateway itself knows."""
    if facts.vm is None:
        return None
    if facts.location.problem is not None:
        return Conflict(
            facts.location.detail,
            code=facts.location.problem,
            next_step="have the operators of both hosts end the wrong one, then repeat the request",
        )
    if facts.source == facts.destination:
        return Conflict(
            f"{facts.vm.name} is on {facts.asked.destination} already",
            code="already_there",
            next_step="nothing to do; or name another host",
        )
    return host_revoked(gate, facts)


@contextmanager
def reserved(
    gate: Gate, facts: Facts, decision: Decision, now: datetime, hindered: GatewayError | None = None
) -> Iterator[GatewayError | None]:
    """Keep the VM for this request until it is committed; yields why an allowed migration cannot begin now.

    Looked at only after the decision, so that who may not move a VM does not learn that somebody else does.
    """
    if not decision.allowed or facts.vm is None:
        yield None
    elif (obstacle := obstacle_of(gate, facts)) is not None:
        yield obstacle
    elif facts.source is not None and not facts.relay_reachable:
        yield RelayUnreachable(f"the relay on the source host {facts.source.name} has not been heard of lately")
    elif hindered is not None:
        yield hindered
    elif not gate.migrations.reserve(facts.vm.uuid, int(now.timestamp())):
        yield Conflict(f"{facts.vm.name} is being migrated")
    else:
        try:
            yield None
        finally:
            gate.migrations.release(facts.vm.uuid)
