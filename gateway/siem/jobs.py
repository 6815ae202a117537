"""What takes long and is asked for, or falls due: resending a range, reconciling a receiver with the log.

One at a time for each sink. Its state shows in the sink's status, its outcome in a record: `siem.resent`,
`siem.reconciled`. A reconciliation that found a difference has the outcome `failed`, and a resending of which something
was refused for ever.
"""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import structlog
import trio

from audit.errors import AuditError
from audit.record import Actor, SignedRecord, decode_entry, parse_time
from audit.siem.document import LogEntry
from audit.siem.reconcile import PAGE_ENTRIES, Findings, Readable, find_strangers, reconcile
from audit.siem.shipper import EntrySource, Shipper
from audit.siem.sink import SinkError
from audit.siem.status import SinkEvent, one_line
from gateway.counted import counted
from gateway.errors import Conflict, RequestRefused
from gateway.siem.tables import AnySinkTable

_FIRST_RECONCILIATION_SECONDS: Final = 600.0
_RECORD_LISTED: Final = 20  # a record has to stay small; the status shows more

log = structlog.get_logger("gateway.siem")


class Tell(Protocol):
    async def __call__(self, event: SinkEvent, outcome: str | None = None, actor: Actor | None = None) -> None: ...


@dataclass(slots=True)
class Job:
    """`start`, `end`: entries; None for from the beginning, and for all that was delivered."""

    sink: str
    what: str  # "resend" or "reconcile"
    start: int | None = None
    end: int | None = None
    repair: bool = False
    actor: Actor | None = None
    state: str = "running"  # running, done, failed
    done: int = 0
    error: str | None = None
    result: dict[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "from": self.start,
            "to": self.end,
            "state": self.state,
            "done": self.done,
            "error": self.error,
            "result": self.result,
        }


class Jobs:
    """Runs them. `now`: the wall clock."""

    def __init__(self, source: EntrySource, tell: Tell, now: Callable[[], datetime]) -> None:
        self._source = source
        self._tell = tell
        self._now = now
        self._jobs: dict[str, Job] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def of(self, sink: str) -> Job | None:
        """The last one of a sink."""
        return self._jobs.get(sink)

    def begin(self, job: Job, table: AnySinkTable, shipper: Shipper) -> None:
        """Start it. Errors: Conflict, RequestRefused."""
        running = self._jobs.get(job.sink)
        if self._nursery is None or (running is not None and running.state == "running"):
            raise Conflict(
                "this sink is resending or reconciling already",
                code="busy",
                next_step="wait for it: sealane siem status",
            )
        if job.what == "reconcile" and not isinstance(shipper.sink, Readable):
            raise RequestRefused(
                "this kind of receiver cannot be read back",
                next_step="compare what it stored by `sealane siem reconcile-file`",
            )
        size = self._source.size
        if not 0 <= (job.start or 0) <= (size if job.end is None else job.end) <= size:
            raise RequestRefused(f"the range is not within the log, which has {counted(size, 'entry')}")
        self._jobs[job.sink] = job
        self._nursery.start_soon(self._finish, job, table, shipper)

    async def on_schedule(self, table: AnySinkTable, shipper: Callable[[], Shipper]) -> None:
        """Reconcile every so often, for ever; a time at which another job runs is left out."""
        if not table.reconcile_hours or not isinstance(shipper().sink, Readable):
            return
        pause = table.reconcile_hours * 3600.0
        await trio.sleep(min(pause, _FIRST_RECONCILIATION_SECONDS))
        while True:
            try:
                self.begin(Job(table.name, "reconcile"), table, shipper())
            except Conflict:
                pass
            await trio.sleep(pause)

    async def _finish(self, job: Job, table: AnySinkTable, shipper: Shipper) -> None:
        work: Callable[[Job, AnySinkTable, Shipper], Awaitable[SinkEvent]]
        work = self._resend if job.what == "resend" else self._reconcile
        try:
            event = await work(job, table, shipper)
        except (AuditError, trio.TooSlowError) as error:
            await self._failed(job, str(error) or "no answer in time")
        except Exception:  # noqa: BLE001 - an edge: what a receiver answers must not end deliveries, nor the gateway
            log.error("siem job failed", sink=job.sink, what=job.what, traceback=traceback.format_exc())
            await self._failed(job, "failed: see the gateway's log")
        else:
            differs = not event.details.get("agrees", True) or event.details.get("refused", 0) > 0
            await self._tell(event, "failed" if differs else "completed", job.actor)
            job.state = "done"

    async def _failed(self, job: Job, cause: str) -> None:
        job.state, job.error = "failed", one_line(cause)
        details = {"sink": job.sink, "from": job.start, "to": job.end, "cause": job.error}
        kind = "siem.resent" if job.what == "resend" else "siem.reconciled"
        await self._tell(SinkEvent(kind, details), "failed", job.actor)

    async def _resend(self, job: Job, table: AnySinkTable, shipper: Shipper) -> SinkEvent:
        job.start = job.start or 0
        job.end = self._source.size if job.end is None else job.end
        sent = refused = 0
        for first in range(job.start, job.end, table.batch_entries):
            last = min(job.end, first + table.batch_entries)
            taken, not_taken = await shipper.deliver_again(first, last)
            sent, refused = sent + taken, refused + not_taken
            job.done = last - job.start
        job.result = {"sent": sent, "refused": refused}
        return SinkEvent("siem.resent", {"sink": job.sink, "from": job.start, "to": job.end, **job.result})

    async def _reconcile(self, job: Job, table: AnySinkTable, shipper: Shipper) -> SinkEvent:
        sink = shipper.sink
        assert isinstance(sink, Readable)
        job.end = shipper.status.position if job.end is None else job.end
        if job.start is None:
            job.start = await first_since(self._source, self._now() - timedelta(days=table.reconcile_days), job.end)
        deadline, deliver = table.deadline_seconds * 4, shipper.deliver if job.repair else None
        findings = Findings(job.start, job.end)
        with trio.fail_after(deadline):
            await sink.refresh()
        for first in range(job.start, job.end, PAGE_ENTRIES):
            entries = await self._read(first, min(job.end, first + PAGE_ENTRIES))
            with trio.fail_after(deadline):
                await reconcile(sink, entries, findings, deliver=deliver, render=shipper.render)
            job.done = findings.compared
        with trio.fail_after(deadline):
            await find_strangers(sink, lambda: self._source.size, self._source.origin, findings)
        job.result = findings.document()
        return SinkEvent("siem.reconciled", {"sink": job.sink, **findings.document(_RECORD_LISTED)})

    async def _read(self, start: int, end: int) -> list[LogEntry]:
        entries = await self._source.read(start, end)
        return [LogEntry(self._source.origin, index, entry) for index, entry in enumerate(entries, start)]


async def first_since(source: EntrySource, moment: datetime, end: int) -> int:
    """The first entry below `end` of `moment` or later; times rise with the index but for steps of the clock."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        if await _time_at(source, middle) < moment:
            low = middle + 1
        else:
            high = middle
    return low


async def _time_at(source: EntrySource, index: int) -> datetime:
    """Of the record there; of a permit entry, which has none, that of the decision right before it."""
    (entry,) = await source.read(index, index + 1)
    read = decode_entry(entry)
    if isinstance(read, SignedRecord):
        return parse_time(read.record.time)
    if index == 0:
        raise SinkError("the log begins with a permit entry")
    return await _time_at(source, index - 1)
