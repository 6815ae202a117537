"""Calls of auditors: records (recorded reads), checkpoints and proofs."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from audit.errors import QueryRefused
from audit.index_questions import MAX_BUCKETS
from audit.query import Node, parse, terms
from audit.query.literals import zone_named
from audit.query.parse import MAX_CHARS
from audit.query.terms import NAMES
from gateway.api.answers import JsonAnswer
from gateway.api.desk import Address, Asking, AtDesk
from gateway.api.long_answers import LongAnswer
from gateway.errors import RequestRefused
from gateway.reading import MAX_PAGE

router = APIRouter()

Text = Annotated[str, Field(min_length=1, max_length=1024)]
Index = Annotated[int, Field(ge=0, le=2**62)]


class Wanted(BaseModel):
    """Filters, all of which must hold; an unknown one is refused, because ignoring it would show too much."""

    model_config = ConfigDict(extra="forbid")

    query: Annotated[str, Field(min_length=1, max_length=MAX_CHARS)] | None = None
    timezone: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    migration: Text | None = None
    vm: Text | None = None
    host: Text | None = None
    actor: Text | None = None
    outcome: Text | None = None
    kind: Text | None = None
    since: Text | None = None
    until: Text | None = None

    def where(self, now: datetime) -> Node:
        """What is asked for. Errors: RequestRefused, with the position where the text of the query is wrong."""
        named = {name: getattr(self, name) for name in NAMES}
        try:
            zone = zone_named(self.timezone) if self.timezone is not None else UTC
            return parse(self.query or "", now, zone, within=terms(named)).where
        except (QueryRefused, ValueError) as error:
            raise RequestRefused(
                str(error), next_step="correct the query; docs/audit-queries.md has the language"
            ) from error


class WantedPage(Wanted):
    """A page of it. `count`: also say how many there are in all. `on`: as the SIEM of that name holds them."""

    after: Index | None = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 50
    count: bool = False
    on: Text | None = None


class WantedHistogram(Wanted):
    """A histogram of it: `buckets` of `width_seconds` from `start` (unix seconds); by default of all, by days.

    `on`: as the SIEM of that name counts them.
    """

    start: Annotated[int, Field(ge=0, le=2**40)] | None = None
    width_seconds: Annotated[int, Field(ge=1, le=366 * 86_400)] = 86_400
    buckets: Annotated[int, Field(ge=1, le=MAX_BUCKETS)] | None = None
    on: Text | None = None


@router.get("/v1/records", summary="Records, newest first")
async def records(wanted: Annotated[WantedPage, Query()], desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadAudit. The read is recorded before anything is shown. `next` is the `after` of the next page."""
    now = desk.now()
    where = wanted.where(now)
    asked = wanted.model_dump(exclude_none=True, exclude_defaults=True) | {"limit": wanted.limit}
    await desk.reading.require_read_audit(person, now, address, {"records": asked}, recorded=True)
    if wanted.on is not None:
        page = await desk.oversight.page(wanted.on, where, wanted.after, wanted.limit)
        count = await desk.oversight.count(wanted.on, where) if wanted.count else None
    else:
        async with desk.reading.search.turns.of(person.id):
            page = await desk.reading.page(where, wanted.after, wanted.limit)
            count = await desk.reading.search.count(where) if wanted.count else None
    document: dict[str, Any] = {"records": page.records, "next": page.next}
    if count is not None:
        document["count"] = count
    return LongAnswer(document, desk.long_answer_seconds)


@router.get("/v1/records/histogram", summary="How many records there are, by time and outcome")
async def histogram(
    wanted: Annotated[WantedHistogram, Query()], desk: AtDesk, person: Asking, address: Address
) -> Response:
    """Needs ReadAudit; recorded. Times are unix seconds; buckets without a record are left out."""
    now = desk.now()
    where = wanted.where(now)
    asked = wanted.model_dump(exclude_none=True, exclude_defaults=True)
    await desk.reading.require_read_audit(person, now, address, {"histogram": asked}, recorded=True)
    search = desk.reading.search
    width = wanted.width_seconds
    async with search.turns.of(person.id):
        low, high = await search.span() or (0, 0)
        start = wanted.start if wanted.start is not None else max(0, low // 10**6) // width * width
        needed = max(1, -(-(high // 10**6 + 1 - start) // width))
        range_ = (start * 10**6, width * 10**6, wanted.buckets or min(needed, MAX_BUCKETS))
        if wanted.on is None:
            found = await search.histogram(where, *range_)
    if wanted.on is not None:
        found = await desk.oversight.histogram(wanted.on, where, *range_)
    buckets = [{"start": one.start // 10**6, "outcome": one.outcome, "count": one.count} for one in found]
    return JsonAnswer({"width_seconds": width, "start": start, "buckets": buckets})


@router.get("/v1/records/{index}", summary="One entry of the log, as it is there")
async def record(index: Index, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadAudit; recorded. `entry` is the text whose hash is the leaf."""
    await desk.reading.require_read_audit(person, desk.now(), address, {"record": index}, recorded=True)
    return JsonAnswer(await desk.reading.entry(index))


@router.get("/v1/checkpoint", summary="The newest signed checkpoint")
async def checkpoint(desk: AtDesk, person: Asking) -> Response:  # noqa: ARG001 - anyone who is authenticated
    """For whoever is signed in."""
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
