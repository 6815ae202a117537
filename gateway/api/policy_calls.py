"""Calls of policy authors: publish a bundle, try one beside the live one, see what is and was in force."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from gateway.api.answers import JsonAnswer
from gateway.api.desk import Address, Asking, AskingPrivileged, AtDesk, Desk
from gateway.publishing import Arrive
from policy.facts import Person

router = APIRouter()
Version = Annotated[int, Path(ge=1, le=9_999_999_999)]


@router.get("/v1/policy", summary="The policy in force, earlier versions, and the candidate that is being tried")
async def policy(desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs PublishPolicy."""
    return JsonAnswer(await desk.publishing.state(person, address))


@router.get("/v1/policy/versions/{version}", summary="A bundle that was published, with its signatures")
async def version(version: Version, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs PublishPolicy."""
    return Response(await desk.publishing.version(person, version, address), media_type="application/json")


@router.post("/v1/policy/publications", status_code=201, summary="Put a signed and approved bundle in force")
async def publish(request: Request, desk: AtDesk, person: AskingPrivileged, address: Address) -> Response:
    """Needs PublishPolicy. The body is a publication (docs/policy-publishing.md). Recorded, refused or not."""
    return JsonAnswer(await desk.publishing.publish(person, _arriving(request, desk, person, address), address), 201)


@router.post("/v1/policy/shadow", status_code=201, summary="Evaluate a bundle beside the one in force")
async def begin_shadow(request: Request, desk: AtDesk, person: AskingPrivileged, address: Address) -> Response:
    """Needs PublishPolicy. Differences are recorded with each decision, and none is enforced."""
    return JsonAnswer(
        await desk.publishing.begin_shadow(person, _arriving(request, desk, person, address), address), 201
    )


@router.delete("/v1/policy/shadow", summary="End the trial")
async def end_shadow(desk: AtDesk, person: AskingPrivileged, address: Address) -> Response:
    """Needs PublishPolicy. Answers with what was counted."""
    return JsonAnswer(await desk.publishing.end_shadow(person, address))


def _arriving(request: Request, desk: Desk, person: Person, address: str) -> Arrive:
    """Who is removed, or loses a group, while their body is on its way has lost it when it is there."""

    async def arrive() -> tuple[bytes, Person]:
        data = await request.body()
        return data, await desk.people.resolve_groups(person, desk.now(), address, fresh=True)

    return arrive
