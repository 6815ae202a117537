"""Pruning the log: asked for by a person, done in the background, on record."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from gateway.api.answers import JsonAnswer
from gateway.api.desk import Address, Asking, AskingPrivileged, AtDesk

router = APIRouter()


class Wanted(BaseModel):
    """`check`: only say what would go."""

    model_config = ConfigDict(extra="forbid")

    check: bool = False


@router.post("/v1/log/prune", summary="Take what is old and archived out of the log's folder", status_code=202)
async def prune(wanted: Wanted, desk: AtDesk, person: AskingPrivileged, address: Address) -> Response:
    """Needs PruneLog; asking is recorded, allowed or not. What comes of it: GET, until `state` is not `running`."""
    run = await desk.pruning.ask(person, desk.now(), address, check=wanted.check)
    return JsonAnswer(run.document(), status_code=202)


@router.get("/v1/log/prune", summary="What the latest pruning did")
async def latest(desk: AtDesk, person: Asking) -> Response:
    """Needs PruneLog."""
    desk.pruning.require_allowed(person, desk.now())
    return JsonAnswer(None if desk.pruning.latest is None else desk.pruning.latest.document())
