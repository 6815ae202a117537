"""A VM that leaves for another site: the story of `gateway.admission`, and then the other gateway's answer.

decide → commit, with the permit's entry → ask the other gateway, showing it that permit → record its answer → hand both
permits to the source relay. Nothing that the other site could say makes up for a denial here, and without its permit
none of its relays, and none of ours, begins.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime
from typing import Any

import structlog

from audit.record import Vm
from gateway.admission import Admission, reserved
from gateway.answering import answer
from gateway.asking import Asked, Facts, collect_facts, make_known
from gateway.deciding import commit, decision_event, remember_refusal
from gateway.errors import Conflict, GatewayError, RequestRefused
from gateway.gate import Gate
from gateway.link_versions import too_early
from gateway.migrations import State
from gateway.people import Presented
from gateway.permitting import make_claims, queue_permit, sealed_permit
from gateway.recording import Event
from gateway.sites.peer import Admitted, RefusedThere, SiteUnreachable, ask_admission, ask_host, envelope
from gateway.sites.request import AdmissionRequest
from gateway.sites.settings import OtherSite
from gateway.sites.told import host_of, told_host, told_person, told_vm
from policy.errors import FactRefused
from policy.facts import HostFacts, Person
from policy.permit import PermitClaims, PermitKey
from transport.errors import OfferRefused
from transport.link_version import SITES

log = structlog.get_logger("gateway.sites")


async def admit_to_site(gate: Gate, site: OtherSite, bearer: Presented | str | None, asked: Asked) -> Admission:
    """As `gateway.admission.admit`, for a destination of another site. Errors: those of it."""
    if asked.break_glass is not None:
        raise RequestRefused(
            "no glass is broken for a move to another site: its own duty officers break it there",
            next_step="ask without --break-glass, or move the VM within this site",
        )
    if asked.named_port is not None:
        raise RequestRefused("no named port is opened to another site", next_step="open it between hosts of this site")
    now = gate.clock.wall()
    person = await gate.people.authenticate(bearer, now, asked.address)
    person = await gate.people.resolve_groups(person, now, asked.address, asked.action)
    await make_known(gate, asked)
    host, unknown = await _host_there(gate, site, asked.destination)
    facts = _facts(gate, site, person, asked, now, host)
    facts, decision = await answer(gate, facts)
    if unknown and not decision.allowed:
        decision = replace(decision, denied_because=f"{decision.denied_because} {unknown}")
    migration_id = gate.new_id()
    hindered = _of_libvirt(facts) or too_early(gate.dispatch, facts.source, SITES, "other sites")
    with reserved(gate, facts, decision, now, hindered) as obstacle:
        claims = make_claims(gate, facts, decision, migration_id, now) if decision.allowed and not obstacle else None
        event = decision_event("migration.decision", facts, decision, obstacle, claims, migration_id)
        committed = await commit(gate, event, claims)
        admission = Admission(migration_id, decision, committed.index, obstacle)
        if claims is None:
            remember_refusal(gate, facts, event, committed.index)
            return admission
        migration, document = sealed_permit(gate, facts, claims, event, committed.index, await gate.prove(committed))
        try:
            admitted = await _ask(gate, site, facts, claims, str(document["permit"]))
        except GatewayError as refused:
            gate.migrations.put(replace(migration, state=State.FAILED, message=refused.detail[:500]))
            return replace(admission, obstacle=refused)
        document |= {"other_permit": admitted.permit, "destination_address": admitted.address}
        queue_permit(gate, claims, migration, document)
        return admission


async def _host_there(gate: Gate, site: OtherSite, host: str) -> tuple[HostFacts | None, str]:
    """What the other site says of its host; else why nothing is known of it, which denies."""
    try:
        told = await ask_host(gate, site, host)
        if told is None:
            return None, f"Site {site.name} knows no host {host}."
        if told.spiffe_id != host:
            return None, f"Site {site.name} speaks of another host than {host}."
        return host_of(told, site), ""
    except SiteUnreachable as error:
        return None, f"{error.detail[:500]}."
    except FactRefused as error:
        return None, f"What site {site.name} says of {host} is refused: {error}."


def _facts(gate: Gate, site: OtherSite, person: Person, asked: Asked, now: datetime, host: HostFacts | None) -> Facts:
    facts = collect_facts(gate, person, asked, now)
    side = {"name": site.name, "trust_domain": site.trust_domain, "role": "source"}
    return replace(facts, destination=host, question=replace(facts.question, destination=host), site=side)


def _of_libvirt(facts: Facts) -> GatewayError | None:
    if "libvirt" not in facts.question.context.ports:
        return None
    return Conflict(
        f"{facts.asked.vm} is a domain of libvirt, and those do not cross to another site yet",
        code="not_across_sites",
        next_step="move it within this site; what crosses is a QEMU that the relay drives by QMP",
    )


async def _ask(gate: Gate, site: OtherSite, facts: Facts, claims: PermitClaims, permit: str) -> Admitted:
    """The other site's permit, verified as both relays will, and on record. Errors: GatewayError; on record, too."""
    assert facts.vm is not None
    assert facts.source is not None
    own_key = PermitKey.from_public_key(gate.terms.private_key.public_key())  # another may count when they answer
    digest = hashlib.sha256(permit.encode()).hexdigest()
    said: dict[str, Any] = {"permit_sha256": digest}
    try:
        request = AdmissionRequest(
            permit_sha256=digest,
            vm=told_vm(facts.vm),
            source=told_host(facts.source),
            person=told_person(facts.question.person, gate.engine.bundle.named_groups),
            reason=facts.asked.reason,
            post_copy=facts.asked.how.may_post_copy,
            **envelope(gate, site),
        )
        answered = await ask_admission(gate, site, request, permit)
        if answered.record_index is not None:
            said["other_record"] = answered.record_index
        if not isinstance(answered, Admitted):
            raise RefusedThere(f"site {site.name} refuses it: {answered.message}")
        said |= _verified(gate, own_key, claims, permit, answered)
    except GatewayError as refused:
        outcome = "denied" if isinstance(refused, RefusedThere) else "failed"
        await _record(gate, site, facts, claims, outcome, {**said, "because": refused.detail[:2000]})
        raise
    await _record(gate, site, facts, claims, "allowed", said)
    return answered


def _verified(gate: Gate, own_key: PermitKey, claims: PermitClaims, permit: str, answered: Admitted) -> dict[str, Any]:
    assert gate.sites is not None
    try:
        desk = replace(gate.sites.desk, permit_keys=(own_key,))
        pair = desk.verify(permit, answered.permit, source=claims.source, destination=claims.destination)
    except OfferRefused as refused:
        raise SiteUnreachable(f"the other site's permit is not good ({refused.code.value}): {refused.detail}") from None
    assert pair.other is not None
    return {
        "other_permit_sha256": hashlib.sha256(answered.permit.encode()).hexdigest(),
        "other_jti": pair.other.claims.jti,
        "other_checkpoint": pair.other.proof.checkpoint,
    }


async def _record(
    gate: Gate, site: OtherSite, facts: Facts, claims: PermitClaims, outcome: str, said: dict[str, Any]
) -> None:
    assert facts.vm is not None
    event = Event(
        "migration.other_site",
        outcome,
        migration_id=claims.migration_id,
        vm=Vm(facts.vm.uuid, facts.vm.name),
        source=claims.source,
        destination=claims.destination,
        details={"site": dict(facts.site or {}), **said},
    )
    log.info("the other site has answered", site=site.name, outcome=outcome, migration=claims.migration_id)
    await gate.recorder.append(event)
