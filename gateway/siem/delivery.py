"""All sinks of a gateway: one task each, which fails alone, and records of what befalls them."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from audit.errors import AuditError, LogError
from audit.reader import LogReader
from audit.siem.shipper import Shipper
from audit.siem.sink import SinkError
from audit.siem.status import SinkEvent, State
from certs.files import write_atomically
from gateway.committer import Committer
from gateway.errors import GatewayError, StartRefused
from gateway.recording import Clock, Event, Recorder
from gateway.siem.jobs import Job, Jobs
from gateway.siem.receivers import PathOf, make_sink
from gateway.siem.tables import AnySinkTable, SiemTable, unknown_sink

_READERS: Final = 4
_AFTER_A_BUG_SECONDS: Final = 60.0

log = structlog.get_logger("gateway.siem")


class CommittedEntries:
    """The log, as shippers read it: committed entries from its files, without a wait for commits or by them."""

    def __init__(self, committer: Committer, origin: str, directory: Path) -> None:
        self._committer = committer
        self._origin = origin
        self._reader = LogReader(directory)
        self._limiter = trio.CapacityLimiter(_READERS)

    @property
    def origin(self) -> str:
        return self._origin

    @property
    def size(self) -> int:
        return self._committer.size

    async def read(self, start: int, end: int) -> list[bytes]:
        """See `EntrySource.read`."""
        try:
            return await trio.to_thread.run_sync(lambda: list(self._reader.entries(start, end)), limiter=self._limiter)
        except (OSError, LogError) as error:
            raise SinkError(f"the log cannot be read: {error}") from error


class Delivery:
    """`folder`: of cursors and quarantines. Nothing is connected before `run`. Errors at start: StartRefused."""

    def __init__(
        self,
        table: SiemTable,
        path_of: PathOf,
        folder: Path,
        source: CommittedEntries,
        recorder: Recorder,
        clock: Clock,
    ) -> None:
        self._tables = {each.name: each for each in table.sinks}
        self._path_of = path_of
        self._folder = folder
        self._source = source
        self._recorder = recorder
        self._clock = clock
        self._shippers: dict[str, Shipper] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._jobs = Jobs(source, self._record, clock.wall)
        if self._tables:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, each in self._tables.items():
            try:
                self._shippers[name] = self._shipper(each)
            except (ValueError, OSError) as error:
                raise StartRefused(f"siem sink {name}: {error}") from error

    @property
    def names(self) -> list[str]:
        return list(self._tables)

    @property
    def log_size(self) -> int:
        """Entries that are committed."""
        return self._source.size

    async def run(self) -> None:
        """Deliver until cancelled. Nothing that a sink does ends it, or another sink."""
        async with trio.open_nursery() as nursery:
            for table in self._tables.values():
                nursery.start_soon(self._keep_running, table)
                nursery.start_soon(self._jobs.on_schedule, table, partial(self.shipper, table.name))
            nursery.start_soon(self._jobs.run)

    def reload(self) -> list[str]:
        """Read secrets and certificates again and connect anew; returns what was refused, which stays as it was."""
        refused = []
        for name, table in self._tables.items():
            if (problem := self._renew(table)) is not None:
                refused.append(problem)
            elif (scope := self._scopes.get(name)) is not None:
                scope.cancel()
        return refused

    def _renew(self, table: AnySinkTable) -> str | None:
        try:
            self._shippers[table.name] = self._shipper(table)
        except (ValueError, OSError) as error:
            return f"siem sink {table.name}: {error}"
        return None

    def shipper(self, name: str) -> Shipper:
        """Errors: NotKnown."""
        try:
            return self._shippers[name]
        except KeyError:
            raise unknown_sink(name, self._tables) from None

    def table(self, name: str) -> AnySinkTable:
        """What the configuration says of it. Errors: NotKnown."""
        self.shipper(name)
        return self._tables[name]

    def status(self, name: str) -> dict[str, Any]:
        """Of one sink, for people and programs. Errors: NotKnown."""
        shipper = self.shipper(name)
        status, now = shipper.status, trio.current_time()
        job = self._jobs.of(name)
        return {
            "name": name,
            "kind": self._tables[name].__struct_config__.tag,
            "state": status.shown(now, shipper.terms.deadline_seconds).value,
            "position": status.position,
            "log_size": self._source.size,
            "lag": max(0, self._source.size - status.position),
            "rate_per_second": round(status.rate(now)),
            "delivered": status.delivered,
            "quarantined": status.quarantined,
            "last_error": status.last_error,
            "failing_seconds": _since(status.failing_since, now),
            "delivered_seconds_ago": _since(status.delivered_at, now),
            "job": None if job is None else job.document(),
        }

    def begin(self, job: Job) -> dict[str, Any]:
        """Start what takes long; its state is part of the status. Errors: NotKnown, Conflict."""
        shipper = self.shipper(job.sink)
        self._jobs.begin(job, self._tables[job.sink], shipper)
        return job.document()

    def _shipper(self, table: AnySinkTable) -> Shipper:
        sink = make_sink(table, self._path_of, self._source.origin)
        write = partial(write_atomically, mode=0o600)
        render = table.render(self._clock.wall())
        return Shipper(sink, self._source, self._folder, write, self._record, table.terms, render)

    async def _keep_running(self, table: AnySinkTable) -> None:
        while True:
            with trio.CancelScope() as self._scopes[table.name]:  # cancelled by `reload`
                shipper = self._shippers[table.name]
                try:
                    await shipper.run()
                    await trio.sleep_forever()  # stopped: until an operator has acted and told us (SIGHUP)
                except Exception:  # noqa: BLE001 - the edge: a bug in one sink must not end the others, nor the gateway
                    log.error("siem sink failed", sink=table.name, traceback=traceback.format_exc())
                    shipper.status.state, shipper.status.last_error = State.FAILING, "failed: see the gateway's log"
                    await trio.sleep(_AFTER_A_BUG_SECONDS)
                    self._renew(table)

    async def _record(self, event: SinkEvent, outcome: str | None = None, actor: Any = None) -> None:
        """Never raises: what cannot be recorded is logged, and shows in the status."""
        log.warning(event.kind, **_short(event.details))
        try:
            await self._recorder.append(Event(event.kind, outcome, actor=actor, details=event.details))
        except (GatewayError, AuditError) as error:
            log.error("could not be recorded", kind=event.kind, error=str(error))


def _since(moment: float | None, now: float) -> int | None:
    return None if moment is None else int(now - moment)


def _short(details: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if isinstance(value, (str, int, bool))}
