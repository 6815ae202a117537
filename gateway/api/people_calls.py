"""Calls of people: sign in, ask for a migration or a check, follow it, cancel it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import Response

from audit.siem.turns import ahead_of_deliveries
from gateway.admission import Admission, admit, check
from gateway.api.answers import JsonAnswer, error_document
from gateway.api.bodies import CheckMove, Move, SignIn
from gateway.api.desk import Address, Asking, AskingOfOwn, AtDesk, Bearer, Desk
from gateway.asking import Asked
from gateway.deciding import decision_document
from gateway.errors import NotKnown, RequestRefused
from gateway.migrations import Migration
from gateway.preflight import can_move, findings_document
from gateway.sites.leaving import admit_to_site
from policy.request import facts_of
from transport.hypervisors.moving import AS_CONFIGURED

router = APIRouter()


@router.get("/v1/health", summary="Is the gateway able to permit anything?")
async def health(desk: AtDesk) -> Response:
    """For anyone. 200 when it is, 503 when not."""
    document = desk.health()
    return JsonAnswer(document, 200 if document["status"] == "ok" else 503)


@router.get("/v1/identity", summary="Where people sign in")
async def identity(desk: AtDesk) -> Response:
    """For anyone: whether there are local people, and of each issuer its name, our client id there and the scopes."""
    return JsonAnswer(desk.issuers.public_document())


@router.get("/v1/whoami", summary="Who one is to the gateway, why, and what that allows")
async def whoami(desk: AtDesk, bearer: Bearer, person: Asking) -> Response:
    """`groups` is null where they are unknown, which denies: `groups_unknown_because`. `groups_from` says who tells."""
    decisions = desk.reading.permissions(person, desk.now())
    return JsonAnswer(
        {
            "id": person.id,
            "name": person.name,
            "issuer": person.issuer,
            "authenticated_by": person.authenticated_by,
            "groups": None if person.groups is None else sorted(person.groups),
            "actor": person.actor,
            **desk.issuers.token_facts(person, bearer.bearer),
            "permissions": {
                action: {"allowed": decision.allowed, "denied_because": decision.denied_because or None}
                for action, decision in decisions.items()
            },
        }
    )


@router.post("/v1/token", summary="An access token for a person of the local directory")
async def sign_in(body: SignIn, desk: AtDesk, address: Address) -> Response:
    """Recorded, refused or not; refusals within a rate."""
    sign_in_as = desk.people.sign_in_sealed if body.sealed else desk.people.sign_in
    issued = await sign_in_as(body.username, body.password, desk.now(), address)
    return JsonAnswer({"access_token": issued.access_token, "token_type": "Bearer", "expires_in": issued.expires_in})


@router.post("/v1/migrations", status_code=201, summary="Move a VM, if policy allows it")
async def request_migration(body: Move, desk: AtDesk, bearer: Bearer, address: Address) -> Response:
    """Needs MigrateVm; for a named port, OpenPort. 201: recorded, and the source relay has its permit. 403: denied and
    recorded. 409, 503: allowed, but not now."""
    asked = _asked(desk, body, address)
    sites = desk.gate.sites
    site = sites.of_host(asked.destination) if sites is not None else None
    with ahead_of_deliveries(), desk.gate.bell.again_if_missed():
        if site is None:
            admission = await admit(desk.gate, bearer, asked)
        else:
            admission = await admit_to_site(desk.gate, site, bearer, asked)
    document = {"migration_id": admission.migration_id, **_document(admission)}
    if admission.obstacle is not None:
        return JsonAnswer({**error_document(admission.obstacle), **document}, admission.obstacle.status)
    return JsonAnswer(document, 201 if admission.decision.allowed else 403)


@router.post("/v1/decisions", summary="Would it be allowed? Nothing moves; the question is recorded")
async def check_decision(body: CheckMove, desk: AtDesk, bearer: Bearer, address: Address) -> Response:
    """Needs CheckDecision. `preflight`: also ask both hosts whether it can move, if it may. `explain`: every policy."""
    asked = replace(_asked(desk, body, address), preflight=body.preflight)
    with ahead_of_deliveries():
        admission = await check(desk.gate, bearer, asked)
    found = admission.findings
    told = None if found is None else {"can_move": can_move(found), "findings": findings_document(found)}
    document = {**_document(admission), "preflight": told}
    # Who may not ask for decisions was answered about that, and is told no more.
    if body.explain and admission.decision.request["action"]["id"] != "CheckDecision":
        document["explanation"] = await desk.explaining.lines(desk.gate.engine.bundle, admission.decision)
    return JsonAnswer(document)


@router.get("/v1/migrations/{migration_id}", summary="State, progress and receipts of a migration")
async def show_migration(migration_id: str, desk: AtDesk, person: AskingOfOwn, address: Address) -> Response:
    """One's own needs ReadOwnMigrations; that of others ReadAudit, and is recorded."""
    now = desk.now()
    found = await desk.reading.migration(migration_id, int(now.timestamp()))
    is_own = found is not None and found.requested_by == person.id
    if not is_own or not desk.reading.may_read_own(person, now):
        others = "no migration of yours has that id, and seeing those of others"
        called = "following one's own migration (any more)" if is_own else others
        asked = {"migration": migration_id[:64]}
        await desk.reading.require_read_audit(person, now, address, asked, recorded=True, called=called)
    if found is None:
        raise NotKnown("no such migration")
    return JsonAnswer(_migration_document(found))


@router.post("/v1/migrations/{migration_id}/cancel", status_code=202, summary="Ask for the end of a migration")
async def cancel_migration(migration_id: str, desk: AtDesk, person: AskingOfOwn, address: Address) -> Response:
    """Needs CancelMigration. 202: recorded, and the source relay is told. Its outcome shows in the migration."""
    await desk.reporting.cancel(person, migration_id, desk.now(), address)
    return JsonAnswer({"migration_id": migration_id}, 202)


def _asked(desk: Desk, body: Move, address: str) -> Asked:
    """Errors: RequestRefused for wishes that contradict each other."""
    how = desk.gate.terms.how
    if body.how is not None:
        how = msgspec.structs.replace(how, **body.how.model_dump(exclude_none=True))
    if (problem := how.problem()) is not None:
        raise RequestRefused(f"how: {problem}")
    asked = Asked(body.vm, body.destination, body.reason, tuple(body.ports or ()), address, body.break_glass, how=how)
    if asked.named_port is None:
        return asked
    # How guests are moved here is not about a program's stream, but how much it may take is.
    plain = msgspec.structs.replace(AS_CONFIGURED, bandwidth_bytes_per_second=how.bandwidth_bytes_per_second)
    return replace(asked, how=plain)


def _document(admission: Admission) -> dict[str, Any]:
    decision = admission.decision
    return {
        "record_index": admission.record_index,
        "decision": {**decision_document(decision), "facts": facts_of(decision.request, decision.entities)},
    }


def _migration_document(migration: Migration) -> dict[str, Any]:
    return {
        "migration_id": migration.migration_id,
        "state": migration.state.value,
        "outcome": migration.state.value if migration.is_final else None,
        "vm": {"uuid": migration.vm_uuid, "name": migration.vm_name},
        "source": migration.source,
        "destination": migration.destination,
        "requested_by": migration.requested_by,
        "record_index": migration.record_index,
        "cancel_requested": migration.cancel_requested,
        "revoked": None
        if migration.obligation is None
        else {"obligation": migration.obligation, "because": migration.revoked_because},
        "progress": migration.progress,
        "message": migration.message,
        "receipts": [
            {
                "role": receipt.role,
                "outcome": receipt.outcome,
                "record_index": receipt.record_index,
                "body": msgspec.json.decode(receipt.body),
            }
            for receipt in migration.receipts
        ],
    }
