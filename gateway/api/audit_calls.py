"""Calls of auditors: records (recorded reads), checkpoints and proofs."""

from __future__ import annotations

import base64
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from audit.index import Filter
from gateway.api.answers import JsonAnswer
from gateway.api.desk import Address, Asking, AtDesk
from gateway.reading import MAX_PAGE

router = APIRouter()

Text = Annotated[str, Field(min_length=1, max_length=1024)]
Index = Annotated[int, Field(ge=0, le=2**62)]


class Wanted(BaseModel):
    """Filters, all of which must hold; an unknown one is refused, because ignoring it would show too much."""

    model_config = ConfigDict(extra="forbid")

    migration: Text | None = None
    vm: Text | None = None
    host: Text | None = None
    actor: Text | None = None
    outcome: Text | None = None
    kind: Text | None = None
    since: Text | None = None
    until: Text | None = None
    after: Index | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 50


@router.get("/v1/records", summary="Records, newest first")
async def records(wanted: Annotated[Wanted, Query()], desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadAudit. The read is recorded before anything is shown. `next` is the `after` of the next page."""
    asked = wanted.model_dump(exclude_none=True)
    await desk.reading.require_read_audit(person, desk.now(), address, {"records": asked}, recorded=True)
    where = Filter(
        migration_id=wanted.migration,
        vm=wanted.vm,
        host=wanted.host,
        actor=wanted.actor,
        outcome=wanted.outcome,
        kind=wanted.kind,
        since=wanted.since,
        until=wanted.until,
    )
    page = await desk.reading.page(where, wanted.after, wanted.limit)
    return JsonAnswer({"records": page.records, "next": page.next})


@router.get("/v1/records/{index}", summary="One entry of the log, as it is there")
async def record(index: Index, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadAudit; recorded. `entry` is the text whose hash is the leaf."""
    await desk.reading.require_read_audit(person, desk.now(), address, {"record": index}, recorded=True)
    return JsonAnswer(await desk.reading.entry(index))


@router.get("/v1/checkpoint", summary="The newest signed checkpoint")
async def checkpoint(desk: AtDesk, person: Asking) -> Response:  # noqa: ARG001 - anyone who is authenticated
    return JsonAnswer({"checkpoint": await desk.reading.checkpoint()})


@router.get("/v1/proofs/inclusion", summary="RFC 6962 proof that entry `index` is in the tree of `size`")
async def inclusion(index: Index, size: Index, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadAudit. Hashes only, so only a refusal is recorded."""
    asked = {"inclusion": {"index": index, "size": size}}
    await desk.reading.require_read_audit(person, desk.now(), address, asked, recorded=False)
    return JsonAnswer({"index": index, "size": size, "path": _base64(await desk.reading.inclusion(index, size))})


@router.get("/v1/proofs/consistency", summary="RFC 6962 proof that the tree only grew between two sizes")
async def consistency(
    from_size: Annotated[Index, Query(alias="from")],
    to_size: Annotated[Index, Query(alias="to")],
    desk: AtDesk,
    person: Asking,
    address: Address,
) -> Response:
    """Needs ReadAudit. Hashes only, so only a refusal is recorded."""
    asked = {"consistency": {"from": from_size, "to": to_size}}
    await desk.reading.require_read_audit(person, desk.now(), address, asked, recorded=False)
    path = await desk.reading.consistency(from_size, to_size)
    return JsonAnswer({"from": from_size, "to": to_size, "path": _base64(path)})


def _base64(hashes: list[bytes]) -> list[str]:
    return [base64.b64encode(each).decode() for each in hashes]
