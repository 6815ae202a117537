"""Pruning the log of a running gateway: by a person's order or by schedule, one run at a time, on record.

The order of `audit/pruning.py` holds: nothing goes that was not read from log and archive and compared, and not before
the record of it is durable. Comparing happens beside the log; only the last steps use its thread, each for a moment,
and commits go on between them. What ends a run at any step leaves what the next one finishes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import structlog
import trio

from audit.archive import Archive
from audit.checkpoint import Checkpoint
from audit.errors import AuditError, LogError
from audit.log import Log
from audit.pruned import PRUNED_KIND, Pruned
from audit.pruning import Plan, months_before, planning, record_details
from audit.reader import LogReader
from audit.record import Actor
from gateway.asking import decide
from gateway.config import RetentionTable
from gateway.errors import Conflict, GatewayError, NotAllowed, NotSetUp
from gateway.gate import Gate
from gateway.log_keeping import LogKeeping
from gateway.recording import Event, actor_of
from gateway.requiring import Wanted, require
from gateway.times import rfc3339
from policy.facts import Context, Person, Question

FIRST_SECONDS: Final = 600.0  # after the start, so that a gateway that is started daily prunes, too
_BUNDLES_OF_A_LOOK: Final = 16
_BUNDLES_AT_ONCE: Final = 64

log = structlog.get_logger("gateway.pruning")


@dataclass(frozen=True, slots=True)
class Run:
    """`asked`: the record of who asked; None: the schedule. `state`: running, done or failed (`because`)."""

    asked: int | None
    actor: Actor | None
    check: bool
    state: str = "running"
    planned: Plan | None = None
    record: int | None = None
    because: str | None = None

    def document(self) -> dict[str, Any]:
        """For who asked."""
        told = {"state": self.state, "asked": self.asked, "check": self.check, "record": self.record}
        if self.planned is not None:
            told |= {"first_entry": self.planned.first, "end_entry": self.planned.end}
            told |= {"before": rfc3339(self.planned.before), "archive": str(self.planned.archive)}
            told |= {"left_over_bundles": self.planned.left_over}
        return told | {"because": self.because}


@dataclass(frozen=True, slots=True)
class _CommittedLog:
    """What planning needs of the log, read from its files."""

    size: int
    pruned: Pruned
    left: list[int]
    reader: LogReader

    def entry(self, index: int) -> bytes:
        return self.reader.entry(index)

    def left_over(self) -> list[int]:
        return self.left


class Pruning:
    """`archive`: where the retention table's is. Without a table nothing is ever pruned."""

    def __init__(
        self, gate: Gate, keeping: LogKeeping, directory: Path, retention: RetentionTable | None, archive: Path | None
    ) -> None:
        self._gate = gate
        self._committer = keeping.committer
        self._watching = keeping.watching
        self._verifiers = keeping.verifiers  # the archive may be older than the log's key
        self._directory = directory
        self._retention = retention
        self._archive = archive
        self._limiter = trio.CapacityLimiter(1)
        self._wanted = trio.Event()
        self.latest: Run | None = None

    async def ask(self, person: Person, now: datetime, address: str, *, check: bool) -> Run:
        """Begin a run. Errors: NotAllowed (recorded), NotSetUp, Conflict (one runs), LogUnavailable."""
        wanted = Wanted("PruneLog", "pruning the log", "log.prune_asked", {"check": check})
        asked = await require(self._gate, wanted, person, now, address, recorded=True)
        assert asked is not None
        if self._retention is None:
            raise NotSetUp("at this gateway nothing is ever pruned", "[log.retention]")
        if self.latest is not None and self.latest.state == "running":
            raise Conflict("a run goes on already", next_step="wait for its end")
        self.latest = Run(asked, actor_of(person), check)
        self._wanted.set()
        return self.latest

    def require_allowed(self, person: Person, now: datetime) -> None:
        """To see what the latest run did. Errors: NotAllowed."""
        decision = decide(self._gate.engine, Question("PruneLog", person, None, None, None, Context(time=now)))
        if not decision.allowed:
            raise NotAllowed("pruning the log is denied", decision.denied_because)

    async def run(self) -> None:
        """Do what is asked for, and what the schedule says, until cancelled."""
        if self._retention is None or self._archive is None:
            return
        hours = self._retention.every_hours
        wait = FIRST_SECONDS if hours else float("inf")
        while True:
            with trio.move_on_after(wait) as waiting:
                await self._wanted.wait()
            if waiting.cancelled_caught:
                self.latest = Run(None, None, check=False)
            self._wanted = trio.Event()
            await self._one(self._archive, self._retention.months)
            wait = hours * 3600.0 if hours else float("inf")

    async def _one(self, archive: Path, months: int) -> None:
        assert self.latest is not None
        try:
            await self._prune(archive, months)
        except GatewayError as error:
            self._failed(error.detail)
        except (AuditError, OSError) as error:
            self._failed(str(error))
        else:
            self.latest = replace(self.latest, state="done")

    def _failed(self, because: str) -> None:
        assert self.latest is not None
        self.latest = replace(self.latest, state="failed", because=because)
        log.error("the log was not pruned", because=because)

    async def _prune(self, folder: Path, months: int) -> None:
        assert self.latest is not None
        archive = await trio.to_thread.run_sync(self._opened, folder, limiter=self._limiter)
        planned = await self._planned(archive, months_before(self._gate.clock.wall(), months))
        self.latest = replace(self.latest, planned=planned)
        if self.latest.check:
            return
        if planned.entries:
            await self._let_go(planned, months)
        numbers = await self._committer.read(lambda opened: list(opened.left_over()))
        for first in range(0, len(numbers), _BUNDLES_AT_ONCE):
            some = numbers[first : first + _BUNDLES_AT_ONCE]
            await self._committer.read(lambda opened, some=some: opened.remove_pruned(some))  # type: ignore[misc]

    def _opened(self, folder: Path) -> Archive:
        if not (folder / "checkpoint").is_file():  # opening would make it
            raise FileNotFoundError(f"{folder} is no archive; make it by `sealane audit archive`, or mount it")
        return Archive(folder, self._verifiers)

    async def _planned(self, archive: Archive, before: datetime) -> Plan:
        """What may go: compared beside the log, a few bundles at a time. Raises AuditError, OSError."""
        known = archive.checkpoint
        assert known is not None
        if because := await self._committer.read(lambda opened: _difference(opened, known)):
            raise LogError(because)  # what is wrong is the archive, or its history: the log itself goes on
        view = await self._committer.read(
            lambda opened: _CommittedLog(
                opened.size, opened.pruned, list(opened.left_over()), LogReader(self._directory)
            )
        )
        steps = planning(view, archive, before)
        planned: Plan | None = None

        def some() -> Plan | None:
            for _ in range(_BUNDLES_OF_A_LOOK):
                try:
                    next(steps)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
            return None

        while planned is None:
            planned = await trio.to_thread.run_sync(some, limiter=self._limiter)
        return planned

    async def _let_go(self, planned: Plan, months: int) -> None:
        """The record, then the file that lets the bundles be missing."""
        assert self.latest is not None
        root = await self._committer.read(lambda opened: opened.root_at(planned.end))
        asked = {"by_schedule": True} if self.latest.asked is None else {"asked": self.latest.asked}
        details = {**record_details(planned, root), "months": months, **asked}
        recorded = await self._gate.recorder.append(Event(PRUNED_KIND, actor=self.latest.actor, details=details))
        self.latest = replace(self.latest, record=recorded.index)
        pruned = Pruned(str(planned.archive), planned.bundles, recorded.index)
        await self._committer.read(lambda opened: opened.write_pruned(pruned))
        await trio.to_thread.run_sync(self._watching.let_go, planned.bundles, limiter=self._limiter)
        log.info("entries are pruned", first=planned.first, end=planned.end, record=recorded.index)


def _difference(opened: Log, known: Checkpoint) -> str | None:
    """Why the log does not continue the archive. As an answer: raised, it would be taken for a fault of the log."""
    try:
        opened.require_extends(known)
    except LogError as error:
        return str(error)
    return None
