"""Calls of evacuations: prepared and withdrawn by people, fetched and held by the relay of the host."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from gateway.api.answers import JsonAnswer
from gateway.api.bodies import Body, MigrationId, Name, Reason
from gateway.api.desk import Address, AskingPrivileged, AtDesk, Desk, Relay
from gateway.errors import NotSetUp
from gateway.evacuating import Evacuating
from gateway.evacuation_permits import Wish

router = APIRouter()


class Prepare(Body):
    """`vms`, `to`: only these VMs of the host, only these destinations; all, if left out."""

    host: Name
    hours: Annotated[int, Field(ge=1, le=24)]
    vms: Annotated[list[Name], Field(max_length=2000)] | None = None
    to: Annotated[list[Name], Field(max_length=100)] | None = None
    reason: Reason | None = None


class Withdraw(Body):
    host: Name


class WantedEvacuation(Body):
    evacuation_id: MigrationId


class HeldEvacuation(Body):
    """`problem`: why the host does not hold it; empty if it does."""

    evacuation_id: MigrationId
    problem: Annotated[str, Field(max_length=500)]


def evacuating_of(desk: Desk) -> Evacuating:
    """Errors: NotSetUp where this gateway prepares none."""
    if desk.evacuating is None:
        raise NotSetUp("this gateway prepares no evacuations", "[evacuation]")
    return desk.evacuating


@router.post("/v1/evacuations", status_code=201, summary="Prepare to empty a host while no gateway can be asked")
async def prepare(body: Prepare, desk: AtDesk, person: AskingPrivileged, address: Address) -> Response:
    """Needs Evacuate, of each VM. 201: each permit is decided and logged, and the host's relay holds them. 403: none is
    allowed; recorded."""
    vms, to = tuple(body.vms or ()), tuple(body.to or ())
    wish = Wish(person, body.host, vms, to, body.hours, body.reason, address, desk.now())
    return JsonAnswer(await evacuating_of(desk).prepare(wish), 201)


@router.post("/v1/evacuations/{evacuation_id}/withdraw", status_code=202, summary="Have the host forget its permits")
async def withdraw(
    evacuation_id: str, body: Withdraw, desk: AtDesk, person: AskingPrivileged, address: Address
) -> Response:
    """Who may prepare one for the host may. 202: recorded, and the relay is told."""
    index = await evacuating_of(desk).withdraw(person, evacuation_id, body.host, address, desk.now())
    return JsonAnswer({"evacuation_id": evacuation_id, "record_index": index}, 202)


@router.post("/v1/relay/evacuation", summary="The permits that were prepared for this host's VMs")
async def fetch(body: WantedEvacuation, desk: AtDesk, host: Relay) -> Response:
    return JsonAnswer(evacuating_of(desk).handing_over.fetch(str(host), body.evacuation_id))


@router.post("/v1/relay/evacuation/held", status_code=204, summary="Whether this host holds them, durably")
async def held(body: HeldEvacuation, desk: AtDesk, host: Relay) -> Response:
    evacuating_of(desk).handing_over.held(str(host), body.evacuation_id, body.problem)
    return Response(status_code=204)
