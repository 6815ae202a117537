"""The admission story: authenticate → resolve groups → collect facts → decide → commit the record → issue the permit.

`admit` tells it. Whatever goes wrong in identity, policy or the log is a denial with a reason; a permit exists only
after the record of its decision, and its own entry, are durable in the log, because only the commit gives the proof
that the permit is sealed with.
"""

from __future__ import annotations

import base64
import hashlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import msgspec
import structlog
import trio
from cryptography.hazmat.primitives.asymmetric import ec

from audit.errors import RecordTooLarge
from audit.record import Vm
from gateway.dispatch import Assignment, Dispatch, QueueFull
from gateway.errors import Conflict, GatewayError, RelayUnreachable, RequestRefused, TooLargeToRecord
from gateway.migrations import Migration, Migrations, State
from gateway.people import People
from gateway.placement import Placement
from gateway.recording import Clock, Event, Recorded, Recorder, actor_of, identity_of
from policy.engine import Decision, Engine
from policy.errors import FactRefused, PermitTooLarge
from policy.facts import Context, HostFacts, Person, Protection, Question, VmFacts, check_text
from policy.inventory import Inventory
from policy.permit import (
    Limits,
    PermitClaims,
    PermitProof,
    Requirements,
    permit_entry,
    seal_permit,
)

log = structlog.get_logger("gateway.admission")

DEFAULT_PORTS: Final = ("memory",)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the requester said: names as they wrote them, nothing of it a fact. `address`: where they came from."""

    vm: str
    destination: str
    reason: str | None
    ports: tuple[str, ...]
    address: str


@dataclass(frozen=True, slots=True)
class PermitTerms:
    """What every permit of this site says. Durations in seconds, from the moment of the decision."""

    issuer: str
    private_key: ec.EllipticCurvePrivateKey
    key_id: str
    lifetime_seconds: int
    session_seconds: int
    recover_seconds: int
    downtime_limit_ms: int
    limits: Limits
    requirements: Requirements


@dataclass(slots=True)
class Gate:
    """All that admission works with. `inventory` and `minimum_crl_number` are replaced as a whole at a reload."""

    people: People
    engine: Engine
    inventory: Inventory
    placement: Placement
    migrations: Migrations
    dispatch: Dispatch
    recorder: Recorder
    terms: PermitTerms
    clock: Clock
    new_id: Callable[[], str]
    relay_silence_seconds: float
    minimum_crl_number: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What the gateway knows about what was asked."""

    question: Question
    asked: Asked
    vm: VmFacts | None
    source: HostFacts | None
    destination: HostFacts | None
    relay_reachable: bool


@dataclass(frozen=True, slots=True)
class Admission:
    """The outcome. `obstacle`: allowed by policy, but not now; then no permit was issued."""

    migration_id: str
    decision: Decision
    record_index: int
    obstacle: GatewayError | None = None


async def admit(gate: Gate, bearer: str | None, asked: Asked) -> Admission:
    """Decide on a migration and, if it is allowed, hand the permit to the source relay.

    Errors: Unauthenticated (recorded), RequestRefused (malformed), LogUnavailable and Overloaded (nothing decided,
    nothing permitted). A denial is no error. Cancellation issues no permit, but may leave a record.
    """
    now = gate.clock.wall()
    person = await gate.people.authenticate(bearer, now, asked.address)
    person = await gate.people.resolve_groups(person, now, asked.address, "MigrateVm")
    facts = collect_facts(gate, person, asked, now)
    decision = decide(gate.engine, facts.question)
    migration_id = gate.new_id()
    with reserved(gate, facts, decision, now) as obstacle:
        claims = make_claims(gate, facts, decision, migration_id, now) if decision.allowed and not obstacle else None
        event = decision_event("migration.decision", facts, decision, obstacle, claims, migration_id)
        committed = await commit(gate, event, claims)
        # From here on the decision is durable, and the permit entry with it: only now can a permit be sealed.
        if claims is not None:
            issue_permit(gate, facts, claims, committed)
        else:
            remember_refusal(gate, facts, event, committed.index)
        return Admission(migration_id, decision, committed.index, obstacle)


async def check(gate: Gate, bearer: str | None, asked: Asked) -> Admission:
    """The same question without a permit: decided alike and recorded as a check. Errors: those of `admit`."""
    now = gate.clock.wall()
    person = await gate.people.authenticate(bearer, now, asked.address)
    person = await gate.people.resolve_groups(person, now, asked.address, "MigrateVm")
    facts = collect_facts(gate, person, asked, now)
    may_ask = decide(
        gate.engine, replace(facts.question, action="CheckDecision", source=None, destination=None, vm=None)
    )
    decision = decide(gate.engine, facts.question) if may_ask.allowed else may_ask
    event = decision_event("decision.check", facts, decision, None, None, None)
    committed = await commit(gate, event, None)
    return Admission("", decision, committed.index)


def collect_facts(gate: Gate, person: Person, asked: Asked, now: datetime) -> Facts:
    """Turn the requester's words into what the inventory, the log and the relays say. Errors: RequestRefused."""
    try:
        for what, text in (("vm", asked.vm), ("destination", asked.destination), ("reason", asked.reason)):
            if text is not None:
                check_text(what, text)
        ports = frozenset(asked.ports or DEFAULT_PORTS)
        context = Context(
            time=now,
            reason_given=bool(asked.reason and asked.reason.strip()),
            protection=Protection(vm_binding=gate.terms.requirements.vm_binding),
            ports=ports,
        )
    except FactRefused as error:
        raise RequestRefused(str(error)) from error
    vm = gate.inventory.vm(asked.vm)
    source = gate.placement.host_of(vm, gate.inventory) if vm is not None else None
    destination = gate.inventory.host(asked.destination)
    if vm is not None:
        # The policy must see the VM where it is, not where the inventory file last placed it.
        vm = replace(vm, host=source.name if source is not None else None)
    question = Question("MigrateVm", person, vm, source, destination, context)
    reachable = source is not None and gate.dispatch.is_reachable(source.spiffe_id, gate.relay_silence_seconds)
    return Facts(question, asked, vm, source, destination, reachable)


def decide(engine: Engine, question: Question) -> Decision:
    """Ask the policy. Any error in it is a denial that says so."""
    try:
        return _explained(engine.decide(question), question.person)
    except Exception as error:  # noqa: BLE001 - fails closed, see below
        # Fail closed at the one place where the engine is asked: an unforeseen error must not become an answer
        # of another kind, and the attempt must still be recorded.
        log.error("policy engine failed", action=question.action, traceback=traceback.format_exc())
        return Decision(
            allowed=False,
            reasons=(),
            errors=(f"{type(error).__name__}: the policy engine failed",),
            denied_because="the policy could not be evaluated",
            bundle_digest=engine.bundle.digest,
            request={},
            entities=[],
        )


def _explained(decision: Decision, person: Person) -> Decision:
    """Unknown groups deny whatever was asked; where the directory says why, people are told that."""
    if person.groups is not None or person.directory is None or person.directory.problem is None:
        return decision
    return replace(decision, denied_because=f"The requester's groups are not known: {person.directory.problem}.")


@contextmanager
def reserved(gate: Gate, facts: Facts, decision: Decision, now: datetime) -> Iterator[GatewayError | None]:
    """Keep the VM for this request until it is committed; yields why an allowed migration cannot begin now.

    Looked at only after the decision, so that who may not move a VM does not learn that somebody else does.
    """
    if not decision.allowed or facts.vm is None:
        yield None
    elif facts.source == facts.destination:
        yield Conflict(
            f"{facts.vm.name} is on {facts.asked.destination} already",
            code="already_there",
            next_step="nothing to do; or name another host",
        )
    elif facts.source is not None and not facts.relay_reachable:
        yield RelayUnreachable(f"the relay on the source host {facts.source.name} has not been heard of lately")
    elif not gate.migrations.reserve(facts.vm.uuid, int(now.timestamp())):
        yield Conflict(f"{facts.vm.name} is being migrated")
    else:
        try:
            yield None
        finally:
            gate.migrations.release(facts.vm.uuid)


def make_claims(gate: Gate, facts: Facts, decision: Decision, migration_id: str, now: datetime) -> PermitClaims:
    """What the permit says. The engine allows nothing with an unknown VM or host, so all three are known."""
    assert facts.vm is not None
    assert facts.source is not None
    assert facts.destination is not None
    terms, issued = gate.terms, int(now.timestamp())
    return PermitClaims(
        iss=terms.issuer,
        aud=facts.destination.spiffe_id,
        jti=gate.new_id(),
        iat=issued,
        nbf=issued,
        exp=issued + terms.lifetime_seconds,
        session_until=issued + max(terms.session_seconds, terms.lifetime_seconds),
        recover_until=issued + max(terms.recover_seconds, terms.session_seconds, terms.lifetime_seconds),
        migration_id=migration_id,
        vm=facts.vm.uuid,
        source=facts.source.spiffe_id,
        destination=facts.destination.spiffe_id,
        ports=tuple(sorted(facts.question.context.ports)),  # type: ignore[arg-type] # the API admits only these words
        limits=terms.limits,
        requirements=terms.requirements,
        minimum_crl_number=gate.minimum_crl_number,
        bundle=decision.bundle_digest,
    )


async def commit(gate: Gate, event: Event, claims: PermitClaims | None) -> Recorded:
    """Make the decision, and the permit entry, durable. Errors: LogUnavailable, Overloaded, TooLargeToRecord.

    A decision that cannot be recorded completely permits nothing; that it was asked for is recorded all the same.
    """
    try:
        return await gate.recorder.append(event, permit_entry_after(claims))
    except (RecordTooLarge, PermitTooLarge) as error:
        actor = msgspec.structs.replace(event.actor, groups=None) if event.actor else None
        asked = {name: event.details[name] for name in ("action", "asked", "client_address")}
        details = {**asked, "not_admitted": TooLargeToRecord.code, "too_large": str(error)}
        refusal = await gate.recorder.append(replace(event, outcome="denied", actor=actor, details=details))
        raise TooLargeToRecord(f"{error} (record {refusal.index}): nothing was permitted") from error


def permit_entry_after(claims: PermitClaims | None) -> Callable[[int, bytes], Sequence[bytes]] | None:
    """The permit entry that follows the decision record in the same commit."""
    if claims is None:
        return None
    return lambda index, leaf_hash: [permit_entry(claims, index, leaf_hash)]


def issue_permit(gate: Gate, facts: Facts, claims: PermitClaims, committed: Recorded) -> None:
    """Seal the permit with the proof that the commit gave and queue it for the source relay."""
    proof = prove(committed)
    token = seal_permit(claims, proof, gate.terms.private_key, gate.terms.key_id)
    assert facts.source is not None
    assert facts.destination is not None
    migration = Migration(
        migration_id=claims.migration_id,
        vm_uuid=claims.vm,
        vm_name=facts.vm.name if facts.vm else None,
        source=claims.source,
        destination=claims.destination,
        requested_by=facts.question.person.id,
        state=State.ASSIGNED,
        record_index=committed.index,
        jti=claims.jti,
        decided=claims.iat,
        begin_until=claims.exp,
        end_until=claims.session_until,
        permit_sha256=hashlib.sha256(token.encode()).hexdigest(),
    )
    document = {
        "kind": "migrate",
        "migration_id": claims.migration_id,
        "permit": token,
        "destination_address": facts.destination.address,
        "deadline_seconds": claims.session_until - claims.iat,
        "downtime_limit_ms": gate.terms.downtime_limit_ms,
    }
    expires = trio.current_time() + claims.exp - claims.iat
    try:
        gate.dispatch.assign(claims.source, Assignment(claims.migration_id, "migrate", document, expires))
    except QueueFull as error:
        gate.migrations.put(replace(migration, state=State.FAILED, message="the source relay takes no assignments"))
        raise RelayUnreachable(f"the relay on {facts.source.name} does not take its assignments") from error
    gate.migrations.put(migration)


def prove(committed: Recorded) -> PermitProof:
    """The proof of the permit entry, which follows its decision in the log."""
    decision_index, index = committed.index, committed.index + 1
    return PermitProof(
        decision_index=decision_index,
        decision_leaf_hash=_base64(committed.leaf_hash),
        index=index,
        checkpoint=committed.commit.checkpoint_text,
        path=tuple(_base64(node) for node in committed.commit.inclusion_path(index)),
    )


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
        outcome="denied" if not decision.allowed else "failed" if obstacle else "allowed",
        migration_id=migration_id,
        actor=actor_of(question.person),
        vm=Vm(facts.vm.uuid, facts.vm.name) if facts.vm else Vm(None, asked.vm),
        source=facts.source.spiffe_id if facts.source else None,
        destination=facts.destination.spiffe_id if facts.destination else None,
        reason=asked.reason,
        details={
            "action": "MigrateVm",
            "asked": {"vm": asked.vm, "destination": asked.destination, "ports": sorted(question.context.ports)},
            "client_address": asked.address,
            "decision": decision_document(decision),
            "not_admitted": obstacle.code if obstacle else None,
            "permit": permit,
            "policy_request": decision.request,
            "policy_entities": decision.entities,
            **identity_of(question.person),
        },
    )


def decision_document(decision: Decision) -> dict[str, Any]:
    """The decision as the API and the records show it."""
    return {
        "allowed": decision.allowed,
        "denied_because": decision.denied_because or None,
        "policies": [{"id": r.id, "effect": r.effect, "reason": r.reason} for r in decision.reasons],
        "errors": list(decision.errors),
        "bundle_digest": decision.bundle_digest,
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
