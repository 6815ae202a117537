"""The record of a decision, complete in itself, and its commit together with the permit's entry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from audit.errors import RecordTooLarge
from audit.record import Vm
from gateway.asking import Facts
from gateway.errors import GatewayError, TooLargeToRecord
from gateway.gate import Gate
from gateway.migrations import Migration, State
from gateway.permitting import permit_entry_after
from gateway.recording import Event, Recorded, actor_of, identity_of
from policy.engine import Decision, PolicyReason
from policy.errors import PermitTooLarge
from policy.facts import NOT_AUTHENTICATED, Person
from policy.many_groups import compact_entities
from policy.permit import PermitClaims
from transport.hypervisors.moving import AS_CONFIGURED, how_document


def decision_event(
    kind: str,
    facts: Facts,
    decision: Decision,
    obstacle: GatewayError | None,
    claims: PermitClaims | None,
    migration_id: str | None,
) -> Event:
    """The decision, complete in itself: who, what, where from, the answer and why, and all that it was built on."""
    asked, question = facts.asked, facts.question
    permit = None
    if claims is not None:
        permit = {
            "jti": claims.jti,
            "iat": claims.iat,
            "exp": claims.exp,
            "session_until": claims.session_until,
            "recover_until": claims.recover_until,
        }
    return Event(
        kind=kind,
        outcome=_outcome(decision, obstacle),
        migration_id=migration_id,
        actor=actor_of(question.person),
        vm=Vm(facts.vm.uuid, facts.vm.name) if facts.vm else Vm(None, asked.vm),
        source=facts.source.spiffe_id if facts.source else None,
        destination=facts.destination.spiffe_id if facts.destination else None,
        reason=asked.reason,
        details={
            "action": question.action,
            "asked": _asked(facts),
            "client_address": asked.address,
            "placement": {"source": facts.location.source, "age_seconds": facts.location.age_seconds},
            "decision": decision_document(decision),
            "not_admitted": obstacle.code if obstacle else None,
            "permit": permit,
            "policy_request": decision.request,
            "policy_entities": compact_entities(decision.entities),
            **({"shadow": dict(decision.otherwise)} if decision.otherwise is not None else {}),
            **({"account": question.person.account} if question.person.account is not None else {}),
            **({"token_until": question.person.told_until} if question.person.told_until is not None else {}),
            **({"asked_by": asked.host, "on_behalf_of": _on_behalf_of(question.person)} if asked.host else {}),
            **({"site": dict(facts.site)} if facts.site is not None else {}),
            **identity_of(question.person),
        },
    )


def decision_document(decision: Decision) -> dict[str, Any]:
    """The decision as the API and the records show it."""
    return {
        "allowed": decision.allowed,
        **({"observed": True} if decision.observed else {}),
        "denied_because": decision.denied_because or None,
        "policies": [_policy(reason) for reason in decision.reasons],
        "errors": list(decision.errors),
        "bundle_digest": decision.bundle_digest,
    }


async def commit(gate: Gate, event: Event, claims: PermitClaims | None) -> Recorded:
    """Make the decision, and the permit entry, durable. Errors: LogUnavailable, Overloaded, TooLargeToRecord.

    A decision that cannot be recorded completely permits nothing; that it was asked for is recorded all the same.
    """
    try:
        return await gate.recorder.append(event, permit_entry_after(claims))
    except (RecordTooLarge, PermitTooLarge) as error:
        actor = msgspec.structs.replace(event.actor, groups=None) if event.actor else None
        asked = {name: event.details[name] for name in ("action", "asked", "client_address") if name in event.details}
        details = {**asked, "not_admitted": TooLargeToRecord.code, "too_large": str(error)}
        refusal = await gate.recorder.append(replace(event, outcome="denied", actor=actor, details=details))
        raise TooLargeToRecord(f"{error} (record {refusal.index}): nothing was permitted") from error


def remember_refusal(gate: Gate, facts: Facts, event: Event, index: int) -> None:
    """So that whoever asked can look it up by its id."""
    gate.migrations.put(
        Migration(
            migration_id=event.migration_id or "",
            vm_uuid=facts.vm.uuid if facts.vm else None,
            vm_name=facts.vm.name if facts.vm else facts.asked.vm,
            source=event.source,
            destination=event.destination,
            requested_by=facts.question.person.id,
            state=State.DENIED if event.outcome == "denied" else State.FAILED,
            record_index=index,
            message=event.details.get("not_admitted"),
        )
    )


def _on_behalf_of(person: Person) -> str:
    return "unknown" if person.authenticated_by == NOT_AUTHENTICATED else person.id


def _policy(reason: PolicyReason) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": reason.id, "effect": reason.effect, "reason": reason.reason}
    if reason.on_revocation is not None:
        shown["on_revocation"] = reason.on_revocation
    return {**shown, "baseline": True} if reason.is_baseline else shown


def _asked(facts: Facts) -> dict[str, Any]:
    asked = facts.asked
    ports = sorted(facts.question.context.ports)
    words: dict[str, Any] = {"vm": asked.vm, "destination": asked.destination, "ports": ports}
    if asked.how != AS_CONFIGURED:
        words["how"] = how_document(asked.how)
    return words if asked.break_glass is None else {**words, "break_glass": asked.break_glass}


def _outcome(decision: Decision, obstacle: GatewayError | None) -> str:
    """One word. `would_deny`: let through only because the zones are being observed."""
    if not decision.allowed:
        return "denied"
    if obstacle is not None:
        return "failed"
    return "would_deny" if decision.observed else "allowed"
