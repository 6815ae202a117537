"""Calls about delivery to SIEMs, and the metrics of the gateway."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from gateway.api.answers import JsonAnswer
from gateway.api.desk import Address, Asking, AtDesk, Bearer
from gateway.metrics import CONTENT_TYPE
from gateway.siem.jobs import Job

router = APIRouter()

MAX_QUARANTINE_PAGE = 100
MAX_LISTED = 20
Index = Annotated[int, Field(ge=0, le=2**62)]


class Range(BaseModel):
    """Entries [from, to): by default from as far back as the sink is to hold, to all that was delivered."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    start: Index | None = Field(None, alias="from")
    end: Index | None = Field(None, alias="to")


class Reconciliation(Range):
    """`repair`: deliver what is missing, which needs ManageSiem."""

    repair: bool = False


class FileFindings(Range):
    """What comparing a receiver's own files with the log has found (`sealane siem reconcile-file --record`)."""

    start: Index = Field(alias="from")
    end: Index = Field(alias="to")
    compared: Index
    missing_count: Index
    altered_count: Index
    added_count: Index
    missing: Annotated[list[Index], Field(max_length=MAX_LISTED)] = []
    altered: Annotated[list[Index], Field(max_length=MAX_LISTED)] = []
    added: Annotated[list[Annotated[str, Field(max_length=512)]], Field(max_length=MAX_LISTED)] = []


@router.get("/v1/siem", summary="Every sink: lag, rate, last error, quarantine")
async def sinks(desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadSiem."""
    return JsonAnswer({"sinks": await desk.oversight.statuses(person, desk.now(), address)})


@router.get("/v1/siem/{name}", summary="One sink, and what is under way there")
async def sink(name: str, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadSiem."""
    return JsonAnswer(await desk.oversight.status(name, person, desk.now(), address))


@router.post("/v1/siem/{name}/reconcile", status_code=202, summary="Compare what the sink holds with the log")
async def reconcile(name: str, body: Reconciliation, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadSiem. 202: begun, and recorded; its state is `job` of the sink, its result a record."""
    job = Job(name, "reconcile", body.start, body.end, body.repair)
    return JsonAnswer(await desk.oversight.begin(job, person, desk.now(), address), 202)


@router.post("/v1/siem/{name}/file-findings", status_code=201, summary="Record what files were found to hold")
async def file_findings(name: str, body: FileFindings, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadSiem. 201: `siem.reconciled` is in the log, as the word of who compared."""
    found = body.model_dump(by_alias=True)
    return JsonAnswer(await desk.oversight.file_compared(name, found, person, desk.now(), address), 201)


@router.post("/v1/siem/{name}/resend", status_code=202, summary="Send entries once more")
async def resend(name: str, body: Range, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ManageSiem. 202: begun, and recorded. What the receiver has already stays as it is."""
    job = Job(name, "resend", body.start, body.end)
    return JsonAnswer(await desk.oversight.begin(job, person, desk.now(), address), 202)


@router.get("/v1/siem/{name}/quarantine", summary="Entries that the receiver refuses for ever, with its reasons")
async def quarantine(
    name: str,
    desk: AtDesk,
    person: Asking,
    address: Address,
    after: Annotated[int, Query(ge=-1, le=2**62)] = -1,
    limit: Annotated[int, Query(ge=1, le=MAX_QUARANTINE_PAGE)] = 20,
) -> Response:
    """Needs ReadAudit, because it shows records; recorded."""
    asked = {"quarantine": name[:64], "after": after}
    await desk.reading.require_read_audit(person, desk.now(), address, asked, recorded=True)
    return JsonAnswer(await desk.oversight.quarantine(name, after, limit))


@router.get("/metrics", summary="Metrics for Prometheus, with the token of [metrics]")
async def metrics(desk: AtDesk, bearer: Bearer) -> Response:
    return Response(desk.metrics.text(bearer.bearer), media_type=CONTENT_TYPE, headers={"cache-control": "no-store"})
