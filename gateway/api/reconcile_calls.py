"""Comparing what hosts certified: by an auditor's order, with its result on record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import trio
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from audit.errors import RecordInvalid
from audit.record import parse_time
from gateway.api.desk import Address, Asking, AtDesk
from gateway.api.long_answers import LongAnswer
from gateway.errors import NotKnown, NotSetUp, RequestRefused
from gateway.host_receipts import KINDS, MAX_RECORDED_FINDINGS, Finding, brief, compare_receipts
from gateway.recording import Event, actor_of
from gateway.sites.peer import ask_records
from gateway.sites.reconcile import KINDS as SITE_KINDS
from gateway.sites.reconcile import SiteFinding, compare_sites, shared_with
from gateway.sites.reconcile import brief as site_brief

router = APIRouter()


class Span(BaseModel):
    """From when on decisions are looked at: a time in a record's form."""

    model_config = ConfigDict(extra="forbid")

    since: Annotated[str, Field(min_length=1, max_length=64)]


@router.post("/v1/reconcile/hosts", summary="Which migrations have one receipt, none, or two that differ")
async def reconcile_hosts(span: Span, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadAudit. What was found goes on record as `audit.reconciled`, all counts and the first findings."""
    try:
        parse_time(span.since)
    except RecordInvalid as error:
        raise RequestRefused("since must be like 2026-11-22T21:42:21.123456Z") from error
    asked = {"reconcile_hosts": {"since": span.since}}
    await desk.reading.require_read_audit(person, desk.now(), address, asked, recorded=True)
    async with desk.reading.spans.of(person.id):
        records = await desk.reading.some_since(KINDS, span.since, brief)
        report = await trio.to_thread.run_sync(compare_receipts, records, int(desk.now().timestamp()))
        del records
    findings = await trio.to_thread.run_sync(_documents, report.findings)
    details = {"what": "hosts", "since": span.since, "counts": report.counts()}
    event = Event(
        "audit.reconciled",
        "failed" if findings else "completed",
        actor=actor_of(person),
        details=details | {"findings": [_short(one) for one in findings[:MAX_RECORDED_FINDINGS]]},
    )
    recorded = await desk.gate.recorder.append(event)
    return LongAnswer({**details, "findings": findings, "record_index": recorded.index}, desk.long_answer_seconds)


class SiteSpan(Span):
    """With which other site, by its name in the configuration."""

    site: Annotated[str, Field(min_length=1, max_length=64)]


@router.post("/v1/reconcile/sites", summary="What this log and another site's say of the migrations between both")
async def reconcile_sites(span: SiteSpan, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadAudit. The other gateway is asked for its half; what was found goes on record as `audit.reconciled`."""
    try:
        parse_time(span.since)
    except RecordInvalid as error:
        raise RequestRefused("since must be like 2026-11-22T21:42:21.123456Z") from error
    asked = {"reconcile_sites": {"since": span.since, "site": span.site}}
    await desk.reading.require_read_audit(person, desk.now(), address, asked, recorded=True)
    if desk.gate.sites is None:
        raise NotSetUp("this gateway exchanges VMs with no other site", "[[sites]]")
    sites = {each.name: each for each in desk.gate.sites.by_domain.values()}
    if (site := sites.get(span.site)) is None:
        known = ", ".join(sorted(sites))
        raise NotKnown(f"this gateway knows no site {span.site}", next_step=f"the other sites are: {known}")
    async with desk.reading.abroad.of(person.id):
        theirs = await ask_records(desk.gate, site, span.since)
        async with desk.reading.spans.of(person.id):
            records = await desk.reading.some_since(SITE_KINDS, span.since, site_brief)
            ours = await trio.to_thread.run_sync(shared_with, site.trust_domain, records)
            report = await trio.to_thread.run_sync(compare_sites, ours, theirs.records, int(desk.now().timestamp()))
            del records, ours
    findings = await trio.to_thread.run_sync(_documents, report.findings)
    details = {"what": "sites", "site": site.name, "log": theirs.log, "since": span.since, "counts": report.counts()}
    shown = [{**_short(one), "other_record": one["other_record"]} for one in findings[:MAX_RECORDED_FINDINGS]]
    outcome = "failed" if findings else "completed"
    event = Event("audit.reconciled", outcome, actor=actor_of(person), details=details | {"findings": shown})
    recorded = await desk.gate.recorder.append(event)
    return LongAnswer({**details, "findings": findings, "record_index": recorded.index}, desk.long_answer_seconds)


def _documents(findings: Sequence[Finding | SiteFinding]) -> list[dict[str, object]]:
    return [one.document() for one in findings]


def _short(finding: dict[str, object]) -> dict[str, object]:
    """What a record of 60 KiB has room for a hundred times; the rest is in the records that it names."""
    return {name: finding[name] for name in ("what", "migration_id", "record")}
