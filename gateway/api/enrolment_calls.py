"""Calls by which hosts come and go. Enrolling needs a token and no certificate; the rest are people's."""

from __future__ import annotations

from typing import Annotated

from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import APIRouter, Path
from starlette.responses import Response

from gateway.api.answers import JsonAnswer
from gateway.api.bodies import Enrolment, HostRevocation, RolloverStep, TokenWish
from gateway.api.desk import Address, Asking, AskingPrivileged, AtDesk, office_of
from gateway.rollover.steps import Step

router = APIRouter()
HostName = Annotated[str, Path(min_length=1, max_length=63)]


@router.get("/v1/enrolment/root", summary="The CA that vouches for this gateway; a token says which one is right")
async def root(desk: AtDesk) -> Response:
    """For anyone, and not to be believed: whoever asks compares it with the hash in the token."""
    return JsonAnswer({"root": office_of(desk).terms.root.public_bytes(Encoding.PEM).decode()})


@router.post("/v1/enrolment/tokens", summary="A one-time token with which a host of the inventory enrols")
async def new_token(body: TokenWish, desk: AtDesk, person: AskingPrivileged, address: Address) -> Response:
    """Needs EnrolHost. It is shown once; a token of the same host that still waits is withdrawn."""
    made = await office_of(desk).new_token(person, body.host, body.minutes, address)
    return JsonAnswer({"host": str(made.host), "token": made.token.text(), "expires": made.expires})


@router.post("/v1/enrolment", summary="The first certificate of a host, for a token")
async def enrol(body: Enrolment, desk: AtDesk, address: Address) -> Response:
    """For whoever has a token that waits. `request` is a PKCS#10 request in PEM, of which the key alone counts."""
    document = await office_of(desk).enrol(body.token, body.request.encode(), address)
    told = desk.reporting.told
    return JsonAnswer({**document, "trust_bundle": told.roots, "crls": told.crls})


@router.post("/v1/hosts/{name}/revocation", summary="End all certificates of a host")
async def revoke(
    name: HostName, body: HostRevocation, desk: AtDesk, person: AskingPrivileged, address: Address
) -> Response:
    """Needs RevokeHost. In force at this gateway once it answers, and at relays once their poll has returned."""
    return JsonAnswer(await office_of(desk).revoke(person, name, body.reason, address))


@router.get("/v1/rollovers", summary="Which keys are rolled over, and how far it is")
async def rollovers(desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs RollKey."""
    return JsonAnswer({"rollovers": await desk.rollovers.status(person, address)})


@router.post("/v1/rollovers/{what}/{step}", summary="The next step of a rollover")
async def roll_over(
    what: HostName, step: Step, body: RolloverStep, desk: AtDesk, person: AskingPrivileged, address: Address
) -> Response:
    """Needs RollKey. 409 while hosts are not ready for it, unless it is forced."""
    return JsonAnswer(await desk.rollovers.take(person, what, step, body.reason, body.force, address))
