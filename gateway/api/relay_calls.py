"""Calls of relays, by client certificate: take assignments, report progress, deliver receipts."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from audit.siem.turns import ahead_of_deliveries
from gateway.address_book import address_book
from gateway.api.answers import JsonAnswer
from gateway.api.bodies import (
    InspectionAnswer,
    KnownHosts,
    KnownTrust,
    LibvirtWish,
    PlacementReport,
    Poll,
    ProgressReport,
    ReceiptReport,
    RefusalReport,
    Renewal,
    ShownPermit,
    ToldMigration,
)
from gateway.api.connected import while_connected
from gateway.api.desk import Address, AtDesk, Relay, host_of, office_of
from gateway.asking import Asked
from gateway.automatic_admission import admit_for_host
from gateway.errors import RelayRefused, RequestRefused
from gateway.host_reports import Report, ReportedGuest
from gateway.migrations import State
from gateway.receipts import SignedReceipt, decode_base64
from transport.hypervisors.preflight_facts import Inspection
from transport.link_version import ROLLOVERS, SITES

router = APIRouter()


@router.post("/v1/relay/poll", summary="What this host is to do; waits for it")
async def poll(body: Poll, desk: AtDesk, host: Relay, request: Request) -> Response:
    desk.reporting.holdings.note(str(host), body.holds)
    wait_seconds = min(body.wait_seconds, desk.poll_seconds)
    waiting = partial(desk.gate.dispatch.poll, str(host), wait_seconds)
    assignments = await while_connected(request, waiting)
    # Said with each assignment: a relay that lacks the newest CRL fetches it before it begins.
    return JsonAnswer({"assignments": assignments or [], "trust_version": desk.reporting.told.version})


@router.post("/v1/relay/assignment", summary="The permit that a poll told of; 403 once it was withdrawn")
async def assignment(body: ToldMigration, desk: AtDesk, host: Relay) -> Response:
    document = desk.gate.dispatch.fetch(str(host), body.migration_id)
    if document is None:
        raise RelayRefused(
            "no permit of that migration waits for this host: it was withdrawn",
            code="withdrawn",
            next_step="nothing to do on this host: whoever asked for it repeats the request",
        )
    return JsonAnswer(document)


@router.post("/v1/relay/trust", summary="Roots and CRLs; null if the relay has them already")
async def trust(body: KnownTrust, desk: AtDesk, host: Relay) -> Response:
    told = desk.reporting.told
    if body.known_version == told.version:
        return JsonAnswer(None)
    document: dict[str, Any] = {"version": told.version, "roots": told.roots, "crls": told.crls}
    if (desk.gate.dispatch.link(str(host)) or 0) >= min(ROLLOVERS, SITES):
        document |= asdict(told.rolling) | {"foreign_crls": told.foreign_crls}
    return JsonAnswer(document)


@router.post("/v1/relay/renewal", summary="Another certificate for this host")
async def renewal(body: Renewal, desk: AtDesk, request: Request, address: Address) -> Response:
    """Whose certificate it is, is judged in the same step in which the office looks for revocations under way."""
    judge = partial(host_of, desk, request)
    shown = request.scope.get("state", {}).get("peer_certificate")
    return JsonAnswer(await office_of(desk).renew(judge, shown, body.request.encode(), address))


@router.post("/v1/relay/progress", status_code=204, summary="How far a migration of this host is")
async def progress(body: ProgressReport, desk: AtDesk, host: Relay) -> Response:
    numbers = body.model_dump(by_alias=True, exclude={"migration_id", "state"})
    await desk.reporting.progress(host, body.migration_id, State(body.state), numbers, body.message)
    return Response(status_code=204)


@router.post("/v1/relay/admission", summary="May a client of libvirt on this host move this VM? Then its permit")
async def admission(body: LibvirtWish, desk: AtDesk, host: Relay, address: Address) -> Response:
    """200 with the permit, or with the words for the client; either is recorded. 401: the token is not accepted."""
    asked = Asked(body.vm, body.destination, body.reason, tuple(body.ports), address, host=str(host))
    with ahead_of_deliveries(), desk.gate.bell.again_if_missed():
        _, document = await admit_for_host(desk.gate, str(host), body.token, asked)
    return JsonAnswer(document)


@router.post("/v1/relay/hosts", summary="The address book; null if the relay has it already")
async def hosts(body: KnownHosts, desk: AtDesk, host: Relay) -> Response:  # noqa: ARG001 - hosts only
    book = address_book(desk.gate.inventory)
    return JsonAnswer(None if body.known_version == book["version"] else book)


@router.post("/v1/relay/placement", summary="Which guests run on this host")
async def placement(body: PlacementReport, desk: AtDesk, host: Relay) -> Response:
    """`resync`: the relay must send a snapshot, because this gateway lost the thread."""
    taken = await desk.placement.take(host, _report(body, desk.gate.placement.now()))
    return JsonAnswer({"resync": not taken})


@router.post("/v1/relay/refusals", status_code=204, summary="Calls of libvirt that this host refused")
async def refusals(body: RefusalReport, desk: AtDesk, host: Relay) -> Response:
    """204 only once they are durable in the log, or counted as left out of it; then the relay may forget them."""
    await desk.refused_calls.take(host, body)
    return Response(status_code=204)


@router.post("/v1/relay/permit", status_code=204, summary="A permit of this site's other gateway, in use on this host")
async def permit(body: ShownPermit, desk: AtDesk, host: Relay) -> Response:
    """204: it is on record, or was known. 403: not one of another gateway that is pinned here, or of other hosts."""
    await desk.elsewhere.take(host, body.permit)
    return Response(status_code=204)


@router.post("/v1/relay/inspection", status_code=204, summary="What this host found out about a VM")
async def inspection(body: InspectionAnswer, desk: AtDesk, host: Relay) -> Response:
    try:
        found = msgspec.convert(body.found, Inspection)
    except msgspec.ValidationError as error:
        raise RequestRefused(f"found: {error}") from error
    desk.gate.inspections.answer(str(host), body.inspection_id, found)
    return Response(status_code=204)


@router.post("/v1/receipts", summary="What this host certifies of a session; as often as need be")
async def receipt(body: ReceiptReport, desk: AtDesk, host: Relay) -> Response:
    """200 only once it is durable in the log; then the relay may forget it."""
    signed = SignedReceipt(
        body.receipt.body,
        decode_base64(body.receipt.signature, "signature"),
        tuple(decode_base64(each, "chain") for each in body.receipt.chain),
    )
    return JsonAnswer({"record_index": await desk.reporting.receipt(host, signed)})


def _report(body: PlacementReport, now: float) -> Report:
    guests = [
        ReportedGuest(
            uuid=each.uuid,
            presence=each.presence,
            run_state=each.run_state,
            arrival=each.arrival,
            is_sure=each.is_sure,
            since=now - each.since_ms_ago / 1000,
            seen=now - each.seen_ms_ago / 1000,
            name=each.name,
            devices=tuple(each.devices),
        )
        for each in body.guests
    ]
    return Report(body.epoch, body.sequence, body.full, body.more, body.confirmed_ms_ago, guests, body.gone)
