"""A VM that comes from another site: that gateway has decided and logged, shows its permit, and asks for ours.

verify its permit, proof included → take its word for VM, source and person as what it is → decide by our policy →
commit, with the permit's entry → seal the permit. The other site's permit is what makes the request its own: a gateway
that has not logged its decision cannot ask.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from gateway.admission import reserved
from gateway.answering import answer
from gateway.asking import Asked, Facts, collect_facts
from gateway.deciding import commit, decision_event, remember_refusal
from gateway.errors import Conflict, GatewayError, RequestRefused
from gateway.gate import Gate
from gateway.link_versions import too_early
from gateway.permitting import make_claims, sealed_permit
from gateway.placement import Location
from gateway.sites.request import AdmissionRequest, SiteRefused
from gateway.sites.settings import OtherSite
from gateway.sites.told import host_of, person_of, vm_of
from policy.engine import Decision
from policy.errors import FactRefused
from policy.facts import Provenance
from policy.permit import VerifiedPermit, trust_domain_of
from transport.errors import OfferRefused
from transport.link_version import SITES


async def admit_from_site(
    gate: Gate, site: OtherSite, request: AdmissionRequest, permit: str, address: str
) -> dict[str, Any]:
    """What goes back: our permit, or the words of the refusal; recorded. Errors: SiteRefused (nothing recorded),
    LogUnavailable, Overloaded, NoCosignature."""
    theirs = _their_permit(gate, site, request, permit)
    now = gate.clock.wall()
    claims_there = theirs.claims
    try:
        facts = await _facts(gate, site, request, theirs, address)
    except (FactRefused, RequestRefused) as error:
        return {"kind": "denied", "message": f"what is said of the VM, its host or the person is refused: {error}"}
    facts, decision = await answer(gate, facts)
    migration_id = claims_there.migration_id
    known = gate.migrations.get(migration_id, int(now.timestamp())) is not None
    hindered = too_early(gate.dispatch, facts.destination, SITES, "other sites")
    with reserved(gate, facts, decision, now, hindered) as reservation:
        obstacle = reservation or (_once() if known else None) or _here_already(gate, facts, decision)
        claims = make_claims(gate, facts, decision, migration_id, now) if decision.allowed and not obstacle else None
        event = decision_event("migration.decision", facts, decision, obstacle, claims, migration_id)
        committed = await commit(gate, event, claims)
        if claims is None:
            if gate.migrations.heard(migration_id) is None:  # else it was asked for twice at once, and is under way
                remember_refusal(gate, facts, event, committed.index)
            words = _words(decision, obstacle, committed.index)
            return {"kind": "denied", "message": words, "record_index": committed.index}
        migration, document = sealed_permit(gate, facts, claims, event, committed.index, await gate.prove(committed))
        gate.migrations.put(migration)
        assert facts.destination is not None
        return {
            "kind": "permit",
            "permit": document["permit"],
            "address": facts.destination.addresses[0].address,
            "record_index": committed.index,
        }


def _their_permit(gate: Gate, site: OtherSite, request: AdmissionRequest, permit: str) -> VerifiedPermit:
    """The other gateway's permit, good by all that is pinned for it, and what the request is about. SiteRefused."""
    assert gate.sites is not None
    try:
        theirs = gate.sites.desk.verify_other(permit, site.trust_domain)
    except OfferRefused as refused:
        raise SiteRefused(f"the other site's permit is refused ({refused.code.value}: {refused.detail})") from None
    claims = theirs.claims
    if not claims.moves_guest:
        raise SiteRefused("no named port is opened to another site")
    agrees = (
        hashlib.sha256(permit.encode()).hexdigest() == request.permit_sha256
        and (claims.vm, claims.source) == (request.vm.uuid, request.source.spiffe_id)
        and trust_domain_of(claims.source) == site.trust_domain
        and trust_domain_of(claims.destination) == gate.sites.own
    )
    if not agrees:
        raise SiteRefused("the permit is of another migration than the request")
    return theirs


async def _facts(gate: Gate, site: OtherSite, request: AdmissionRequest, theirs: VerifiedPermit, address: str) -> Facts:
    """What our inventory knows of the VM counts before what the other site says. FactRefused, RequestRefused."""
    claims = theirs.claims
    asked = Asked(claims.vm, claims.destination, request.reason, tuple(claims.ports), address)
    person, source = person_of(request.person, site), host_of(request.source, site)
    facts = collect_facts(gate, person, asked, gate.clock.wall())
    vm = facts.vm or (None if claims.vm in gate.inventory.unknown else vm_of(request.vm, site))
    if vm is not None:
        devices = None if request.vm.devices is None else frozenset(request.vm.devices)
        vm = replace(vm, host=source.name, devices=devices)
    context = replace(
        facts.question.context, placement=Provenance(site.source_of_facts, 0), post_copy=request.post_copy
    )
    side = {
        "name": site.name,
        "trust_domain": site.trust_domain,
        "role": "destination",
        "other_permit_sha256": request.permit_sha256,
        "other_jti": claims.jti,
        "other_checkpoint": theirs.proof.checkpoint,
    }
    question = replace(facts.question, vm=vm, source=source, context=context)
    location = Location(source, site.source_of_facts, 0)
    return replace(facts, question=question, vm=vm, source=source, location=location, relay_reachable=True, site=side)


def _once() -> GatewayError:
    return Conflict("this migration was asked for before", code="known", next_step="ask for another one")


def _here_already(gate: Gate, facts: Facts, decision: Decision) -> GatewayError | None:
    """A VM that fresh reports show running here does not come from elsewhere: one of the two is another."""
    if not decision.allowed or facts.vm is None or not (here := gate.placement.active(facts.vm.uuid)):
        return None
    names = " and ".join(sorted(host.rpartition("/")[2] for host in here))
    return Conflict(
        f"a VM of this UUID runs here already, on {names}",
        code="already_here",
        next_step="let the operators of both sites find out which is which",
    )


def _words(decision: Decision, obstacle: GatewayError | None, index: int) -> str:
    if obstacle is not None:
        return f"{obstacle.detail}; {obstacle.next_step} (its record {index})"
    return f"{decision.denied_because} (its record {index})"
