"""Calls of other sites' gateways, by requests signed with their permit keys, and what this site publishes for them."""

from __future__ import annotations

from typing import Annotated, Any, assert_never

import trio
from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from audit.errors import RecordInvalid
from audit.record import parse_time
from gateway.api.answers import JsonAnswer
from gateway.api.bodies import Body
from gateway.api.desk import Address, AtDesk, Desk
from gateway.api.long_answers import LongAnswer
from gateway.errors import NotKnown, NotSetUp, RequestRefused
from gateway.recording import Event
from gateway.sites.arriving import admit_from_site
from gateway.sites.publishing import site_document
from gateway.sites.reconcile import KINDS, brief, shared_with
from gateway.sites.request import AdmissionRequest, HostQuestion, RecordsWanted, SiteRefused, open_request
from gateway.sites.settings import OtherSite
from gateway.sites.told import told_host

router = APIRouter()
Token = Annotated[str, Field(min_length=1, max_length=16 * 1024)]


class FromSite(Body):
    """`request`: signed by the other gateway. `permit`: its permit, where it asks for ours."""

    request: Token
    permit: Token | None = None


@router.get("/v1/site", summary="What other sites pin and trust of this one")
async def site(desk: AtDesk) -> Response:
    """For anyone; nothing of it is secret. Compare the digests out of band: `sealane sites trust` shows them."""
    if not desk.gate.own_trust_domain:
        raise NotKnown(
            "the root CA of this site's hosts does not say its trust domain",
            next_step="ask the operator: tls.client_trust_bundle needs a root like that of `sealane certs init`",
        )
    return JsonAnswer(site_document(desk.gate, desk.reporting.trust, desk.rollovers.pinned))


@router.post("/v1/sites/ask", summary="What another site's gateway wants to know, or to bring here")
async def ask(body: FromSite, desk: AtDesk, address: Address) -> Response:
    """200 with the answer, a denial included. 403: not a request of a site that is configured here."""
    gate = desk.gate
    if gate.sites is None:
        raise NotSetUp("this gateway exchanges VMs with no other site", "[[sites]]")
    now = int(desk.now().timestamp())
    request = open_request(body.request, gate.sites.keys, gate.sites.own, now)
    site = gate.sites.by_domain[request.iss]
    match request:
        case HostQuestion(host=name):
            host = gate.inventory.host(name)
            return JsonAnswer(None if host is None else told_host(host))
        case AdmissionRequest():
            if body.permit is None:
                raise SiteRefused("a request for admission without the permit that it stands on")
            with gate.bell.again_if_missed():
                return JsonAnswer(await admit_from_site(gate, site, request, body.permit, address))
        case RecordsWanted(since=since):
            return LongAnswer(await _records(desk, site, since, address), desk.long_answer_seconds)
        case _:
            assert_never(request)


async def _records(desk: Desk, site: OtherSite, since: str, address: str) -> dict[str, Any]:
    """Of migrations between us two and no other; that they were given out is on record."""
    try:
        parse_time(since)
    except RecordInvalid as error:
        raise RequestRefused("since must be like 2026-11-22T21:42:21.123456Z") from error
    async with desk.reading.spans.of(site.trust_domain):
        records = await desk.reading.some_since(KINDS, since, brief)
        shared = await trio.to_thread.run_sync(shared_with, site.trust_domain, records)
        del records
    details = {"site": site.name, "since": since, "records": len(shared), "client_address": address}
    await desk.gate.recorder.append(Event("site.records_read", "allowed", details=details))
    return {"log": desk.log_verifier.origin, "records": shared}
