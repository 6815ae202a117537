"""Calls for breaking glass: ask, approve, end, see. Each step is decided by policy and recorded before it counts."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gateway.answering import no_break_glass
from gateway.api.answers import JsonAnswer
from gateway.api.bodies import AskToBreakGlass, StepOfBreakGlass
from gateway.api.desk import Address, AtDesk, Authenticated, Desk
from gateway.break_glass.glass import BreakGlass, Step
from gateway.break_glass.wish import Wish
from policy.facts import APPROVAL, Person

router = APIRouter()


@router.post("/v1/break-glass", status_code=201, summary="Ask to break glass for one VM and one destination")
async def ask(body: AskToBreakGlass, desk: AtDesk, person: Authenticated, address: Address) -> Response:
    """201: recorded, and it waits for a second person's approval. Needs BreakGlass."""
    glass = _glass(desk)
    step = await _step(desk, person, address, body.reason, "BreakGlass")
    wish = Wish(body.vm, body.destination, body.ticket, body.minutes, body.reason, tuple(body.ports or ()))
    return JsonAnswer((await glass.request(step, wish)).document(), 201)


@router.get("/v1/break-glass", summary="What was asked for, approved and ended in the last days, newest first")
async def show(desk: AtDesk, person: Authenticated, address: Address) -> Response:
    """All of it needs ReadBreakGlass; one's own is always shown."""
    glass = _glass(desk)
    step = await _step(desk, person, address, None, "ReadBreakGlass")
    return JsonAnswer({"break_glass": [grant.document() for grant in await glass.seen_by(step.person)]})


@router.post("/v1/break-glass/{grant_id}/approve", summary="The second person's yes")
async def approve(
    grant_id: str, body: StepOfBreakGlass, desk: AtDesk, person: Authenticated, address: Address
) -> Response:
    """200: durable in the log, and in force from now on. Needs ApproveBreakGlass; refused to the requester."""
    glass = _glass(desk)
    step = await _step(desk, person, address, body.reason, APPROVAL)
    return JsonAnswer((await glass.approve(step, grant_id)).document())


@router.post("/v1/break-glass/{grant_id}/end", summary="End it, refuse it, or take it back")
async def end(grant_id: str, body: StepOfBreakGlass, desk: AtDesk, person: Authenticated, address: Address) -> Response:
    """200: ended; a migration under it is looked at now, as the policy obliges. Needs EndBreakGlass."""
    glass = _glass(desk)
    step = await _step(desk, person, address, body.reason, "EndBreakGlass")
    return JsonAnswer((await glass.end(step, grant_id)).document())


def _glass(desk: Desk) -> BreakGlass:
    if desk.gate.break_glass is None:
        raise no_break_glass()
    return desk.gate.break_glass


async def _step(desk: Desk, person: Person, address: str, reason: str | None, action: str) -> Step:
    """With groups that are read anew for it. Errors: IdentityUnavailable."""
    return Step(await desk.people.resolve_groups(person, desk.now(), address, action), address, reason)
