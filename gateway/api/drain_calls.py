"""The call behind `sealane drain`: which VMs of a host may go where."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from gateway.api.bodies import Body, Name, Reason
from gateway.api.desk import Address, Asking, AtDesk
from gateway.api.long_answers import LongAnswer
from gateway.draining import Wish, prospects

router = APIRouter()


class Drain(Body):
    """`to`: only these destinations; all others of the inventory if left out."""

    host: Name
    to: Annotated[list[Name], Field(max_length=1000)] | None = None
    reason: Reason | None = None


@router.post("/v1/drain/check", summary="Which VMs of a host may go where, and why others may not")
async def check_drain(body: Drain, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs CheckDecision, and shows what the same person would be allowed. Nothing moves; the question is recorded."""
    wish = Wish(person, body.host, tuple(body.to or ()), body.reason, address, desk.now())
    return LongAnswer(await prospects(desk.gate, wish), desk.long_answer_seconds)
