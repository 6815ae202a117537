"""The permit: its claims from facts and terms, its entry in the log, and the token that the source relay gets."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
import trio

from certs.errors import CertificateError
from gateway.asking import Facts
from gateway.dispatch import Assignment, QueueFull
from gateway.errors import OperatorError, RelayUnreachable
from gateway.gate import Gate
from gateway.migrations import Migration, State
from gateway.recording import EntryAfter, Event, Recorded, document_of
from gateway.standing import standing_of
from gateway.witnessing import Witnessing
from policy.engine import Decision
from policy.permit import (
    MAX_PROOF_CHECKPOINT_CHARS,
    Limits,
    PermitClaims,
    PermitProof,
    Requirements,
    permit_entry,
    seal_permit,
)
from transport.hypervisors.moving import AS_CONFIGURED, how_document


class PermitKeyFails(OperatorError):
    """A key in a token that does not sign: what was decided stays on record, and nothing was permitted."""

    code = "permit_key_fails"
    next_step = "look at the token of [permits] signing_key"


def make_claims(gate: Gate, facts: Facts, decision: Decision, migration_id: str, now: datetime) -> PermitClaims:
    """What the permit says. The engine allows nothing with an unknown VM or host, so all three are known."""
    assert facts.vm is not None
    assert facts.source is not None
    assert facts.destination is not None
    terms, issued = gate.terms, int(now.timestamp())
    expires = issued + terms.lifetime_seconds
    session_until = issued + max(terms.session_seconds, terms.lifetime_seconds)
    if facts.grant_seconds is not None:
        # No relay begins or goes on with it past the grant's end, whether or not the gateway can still be heard.
        expires, session_until = (min(each, issued + facts.grant_seconds) for each in (expires, session_until))
    return PermitClaims(
        iss=terms.issuer,
        aud=facts.destination.spiffe_id,
        jti=gate.new_id(),
        iat=issued,
        nbf=issued,
        exp=expires,
        session_until=session_until,
        recover_until=issued + max(terms.recover_seconds, terms.session_seconds, terms.lifetime_seconds),
        migration_id=migration_id,
        vm=facts.vm.uuid,
        source=facts.source.spiffe_id,
        destination=facts.destination.spiffe_id,
        ports=tuple(sorted(facts.question.context.ports)),
        limits=_limits(terms.limits, facts.asked.how.bandwidth_bytes_per_second),
        requirements=_requirements(terms.requirements, facts),
        minimum_crl_number=gate.minimum_crl_number,
        bundle=decision.bundle_digest,
        seal=terms.seal,
    )


def _limits(limits: Limits, wish: int) -> Limits:
    """Nobody may ask for more than the site gives; 0 is no limit."""
    bandwidth = min((each for each in (limits.bandwidth_bytes_per_second, wish) if each), default=0)
    return Limits(limits.max_channels, bandwidth)


def _requirements(usual: Requirements, facts: Facts) -> Requirements:
    """The VM is checked as the policy was told: of a named port it cannot be."""
    return msgspec.structs.replace(usual, vm_binding=facts.question.context.protection.vm_binding)


def permit_entry_after(claims: PermitClaims | None) -> EntryAfter | None:
    """The permit entry that follows the decision record in the same commit."""
    if claims is None:
        return None
    return partial(permit_entry, claims)


def sealed_permit(
    gate: Gate, facts: Facts, claims: PermitClaims, event: Event, record_index: int, proof: PermitProof
) -> tuple[Migration, dict[str, Any]]:
    """The migration, and what its source relay gets: the permit, sealed with the proof of its entry.

    `event`: the decision's.
    """
    terms = gate.terms
    try:
        token = seal_permit(claims, proof, terms.private_key, terms.key_id)
    except CertificateError as error:
        raise PermitKeyFails(f"the permit cannot be sealed: {error}") from error
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
        record_index=record_index,
        jti=claims.jti,
        decided=claims.iat,
        begin_until=claims.exp,
        end_until=claims.session_until,
        recover_until=claims.recover_until,
        permit_sha256=hashlib.sha256(token.encode()).hexdigest(),
        break_glass=facts.asked.break_glass,
        standing=standing_of(document_of(event)),
        site_role=str(facts.site["role"]) if facts.site is not None else None,
        moves_guest=claims.moves_guest,
    ).expecting_silence()
    document = {
        "kind": "migrate",
        "migration_id": claims.migration_id,
        "permit": token,
        "destination_address": facts.destination.address,
        "deadline_seconds": claims.session_until - claims.iat,
        "downtime_limit_ms": gate.terms.downtime_limit_ms,
    }
    if facts.asked.how != AS_CONFIGURED:  # so that a relay of an earlier version takes what asks for nothing more
        document["how"] = how_document(facts.asked.how)
    return migration, document


def issue_permit(
    gate: Gate, facts: Facts, claims: PermitClaims, event: Event, record_index: int, proof: PermitProof
) -> None:
    """Seal the permit and queue it for the source relay. `event`: the decision's."""
    migration, document = sealed_permit(gate, facts, claims, event, record_index, proof)
    queue_permit(gate, claims, migration, document)


def queue_permit(gate: Gate, claims: PermitClaims, migration: Migration, document: dict[str, Any]) -> None:
    """For the source relay, until the permit expires. Errors: RelayUnreachable; the migration has failed then."""
    expires = trio.current_time() + claims.exp - claims.iat
    try:
        gate.dispatch.assign(claims.source, Assignment(claims.migration_id, "migrate", document, expires))
    except QueueFull as error:
        gate.migrations.put(replace(migration, state=State.FAILED, message="the source relay takes no assignments"))
        name = claims.source.rpartition("/")[2]
        raise RelayUnreachable(f"the relay on {name} does not take its assignments") from error
    gate.migrations.put(migration)


async def prove(committed: Recorded) -> PermitProof:
    """The proof of the permit entry, which follows its decision in the log, from the commit itself."""
    index = committed.index + 1
    return _proof(committed, committed.commit.checkpoint_text, committed.commit.inclusion_path(index))


async def prove_cosigned(witnessing: Witnessing, committed: Recorded) -> PermitProof:
    """The same under a checkpoint that the required witnesses cosigned. Errors: NoCosignature, LogUnavailable."""
    index = committed.index + 1
    cosigned = await witnessing.covering(index)
    size = cosigned.checkpoint.size
    path = await witnessing.committer.read(lambda log: log.inclusion_path(index, size))
    return _proof(committed, cosigned.text_within(MAX_PROOF_CHECKPOINT_CHARS), path)


def _proof(committed: Recorded, checkpoint: str, path: Sequence[bytes]) -> PermitProof:
    return PermitProof(
        decision_index=committed.index,
        decision_leaf_hash=_base64(committed.leaf_hash),
        index=committed.index + 1,
        checkpoint=checkpoint,
        path=tuple(map(_base64, path)),
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
