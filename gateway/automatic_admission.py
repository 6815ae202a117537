"""Automatic admission: a relay asks for what a client of libvirt on its host wants.

The story is that of `gateway.admission`, with three differences: the host asks, on behalf of whoever a token names; the
policy is asked for opening libvirt, too; and the permit is the answer instead of an assignment. Whether the guest can
run there libvirt finds out by itself in its Prepare; a site that wants it in better words has both hosts asked before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gateway.admission import Admission, reserved
from gateway.answering import answer
from gateway.asking import Asked, Facts, collect_facts, decide, make_known
from gateway.deciding import commit, decision_event, remember_refusal
from gateway.errors import Conflict, GatewayError
from gateway.gate import Gate
from gateway.permitting import make_claims, sealed_permit
from gateway.placement_judging import may_be_of
from gateway.preflight import hindrance
from gateway.sites.own_only import another_sites
from policy.engine import Decision
from policy.facts import nobody


async def admit_for_host(gate: Gate, host: str, token: str | None, asked: Asked) -> tuple[Admission, dict[str, Any]]:
    """The outcome, and what goes to the relay: the permit, or the words for the client of libvirt.

    The person is whom `token` names, else nobody, which policies may refuse. Beside the move itself the policy must
    allow to open libvirt's port. The permit goes back at once. Errors: those of `admit`.
    """
    now = gate.clock.wall()
    person = nobody(host)
    if token is None:
        await gate.people.patience.require(person, asked.address)
    else:
        person = await gate.people.authenticate(token, now, asked.address)
        person = await gate.people.resolve_groups(person, now, asked.address, "OpenLibvirt")
    await make_known(gate, asked)
    facts, decision = await answer(gate, collect_facts(gate, person, asked, now))
    facts = replace(facts, relay_reachable=True)  # it asks
    if decision.allowed:
        opening = decide(gate.engine, replace(facts.question, action="OpenLibvirt"))
        decision = decision if opening.allowed else opening
    if (foreign := another_sites(gate, asked.destination, "the front of libvirt leads to")) is not None:
        decision = replace(decision, allowed=False, denied_because=f"{foreign.detail}; {foreign.next_step}")
    migration_id = gate.new_id()
    misplaced = _elsewhere(facts, host, decision) or _unexplained(gate, facts, host, decision)
    hindered = await hindrance(gate, facts, allowed=decision.allowed and misplaced is None)
    with reserved(gate, facts, decision, now, hindered) as reservation:
        obstacle = misplaced or reservation
        claims = make_claims(gate, facts, decision, migration_id, now) if decision.allowed and not obstacle else None
        event = decision_event("migration.decision", facts, decision, obstacle, claims, migration_id)
        committed = await commit(gate, event, claims)
        admission = Admission(migration_id, decision, committed.index, obstacle)
        if claims is None:
            remember_refusal(gate, facts, event, committed.index)
            return admission, {"kind": "denied", "message": _words(admission)}
        proof = await gate.prove(committed)
        migration, document = sealed_permit(gate, facts, claims, event, committed.index, proof)
        gate.migrations.put(migration)
        return admission, document


def _elsewhere(facts: Facts, host: str, decision: Decision) -> GatewayError | None:
    """A host may move what is on it, and not lend its name to a guest that it made up."""
    if not decision.allowed or (facts.source is not None and facts.source.spiffe_id == host):
        return None
    where = facts.source.name if facts.source else "no host that is known"
    return Conflict(
        f"{facts.asked.vm} is on {where} by what is known ({facts.location.source}), not on the host that asks",
        code="not_here",
        next_step="let the relay report placement, or correct the inventory",
    )


def _unexplained(gate: Gate, facts: Facts, host: str, decision: Decision) -> GatewayError | None:
    """A host's own report alone does not make it the source, where another host is expected to have the VM.

    Else a host could draw a VM to itself while the other one is silent, and ask for a permit in the same breath.
    """
    if not decision.allowed or facts.vm is None or facts.location.source != "report":
        return None
    expected = gate.placement.expected(facts.vm, gate.inventory)
    seen = gate.placement.active(facts.vm.uuid).get(host)
    if expected is None or expected.host == host or seen is None:
        return None
    wall = int(gate.clock.wall().timestamp())
    last = gate.migrations.latest_of(facts.vm.uuid, wall)
    if last is not None and may_be_of(last, host, seen[1], gate.placement.now(), wall):
        return None
    name = expected.host.rpartition("/")[2]
    return Conflict(
        f"{facts.vm.name} is expected on {name} ({expected.source}), and came to the host that asks without a permit",
        code="placement_unpermitted",
        next_step=f"let the relay of {name} report, or give the VM its host in the inventory; "
        "see placement.unpermitted in the log",
    )


def _words(admission: Admission) -> str:
    """What the client of libvirt prints."""
    record = f"(record {admission.record_index})"
    if admission.obstacle is not None:
        return f"{admission.obstacle.detail}; {admission.obstacle.next_step} {record}"
    ids = ", ".join(reason.id for reason in admission.decision.reasons)
    policies = f" by policy {ids}" if ids else ""
    return f"denied{policies}: {admission.decision.denied_because} {record}"
