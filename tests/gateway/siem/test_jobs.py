"""What falls due by itself, and what a receiver that lies may do to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from audit.record import Actor
from audit.siem.document import Document
from audit.siem.reconcile import Held
from audit.siem.shipper import Shipper
from audit.siem.sink import Refusal
from audit.siem.status import SinkEvent
from gateway.siem.jobs import Job, Jobs
from gateway.siem.tables import ElasticsearchTable
from tests.audit.siem.entries import FakeLog
from tests.patience import no_jump_over_threads

TABLE = ElasticsearchTable(name="siem", url="https://siem.test", api_key_file="key", reconcile_hours=1)
HOUR = 3600


class HeldInMemory:
    """A receiver that can be asked. `lie`: what it says instead."""

    name = "siem"

    def __init__(self) -> None:
        self.documents: dict[str, Document] = {}
        self.refuses = -1  # the index of an entry
        self.lie: Callable[[], Any] | None = None

    async def deliver(self, batch: Sequence[Document]) -> Sequence[Refusal]:
        self.documents |= {each.id: each for each in batch}
        return [Refusal(each.index, "occupied") for each in batch if each.index == self.refuses]

    async def close(self) -> None:
        """Nothing is open."""

    async def refresh(self) -> None:
        """All is visible."""

    async def read_back(self, start: int, end: int, origin: str) -> Sequence[Held]:  # noqa: ARG002 - its contract
        if self.lie is not None:
            return list(self.lie())
        return [Held(each.id, each.id, each.body) for each in self.documents.values() if start <= each.index < end]

    async def strangers(self, size: int, origin: str) -> Sequence[Held]:  # noqa: ARG002 - its contract
        return []


def _forget(_path: Path, _data: bytes) -> None:
    """Where its cursor is matters to no one here."""


class Site:
    """The jobs of one sink, and what was recorded of them."""

    def __init__(self, folder: Path) -> None:
        self.sink, self.log, self.told = HeldInMemory(), FakeLog(30), list[tuple[str, str | None, dict[str, Any]]]()
        self.shipper = Shipper(self.sink, self.log, folder, _forget, self._quiet)
        self.jobs = Jobs(self.log, self._tell, lambda: datetime(2026, 11, 26, tzinfo=UTC))

    async def _quiet(self, event: SinkEvent) -> None:
        """Not what is looked at here."""

    async def _tell(self, event: SinkEvent, outcome: str | None = None, actor: Actor | None = None) -> None:
        assert actor is None
        self.told.append((event.kind, outcome, event.details))

    async def until_told(self, count: int) -> None:
        with trio.fail_after(3 * HOUR):
            while len(self.told) < count:
                await trio.sleep(60)

    @asynccontextmanager
    async def running(self, clock: MockClock) -> AsyncIterator[trio.Nursery]:
        """All is delivered when it begins."""
        with no_jump_over_threads(clock):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.shipper.run)
                with trio.fail_after(HOUR):
                    while self.shipper.status.position < self.log.size:
                        await trio.sleep(1)
                nursery.start_soon(self.jobs.run)
                await wait_all_tasks_blocked()
                yield nursery
                nursery.cancel_scope.cancel()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


async def test_a_sink_is_reconciled_every_so_often_and_each_result_is_recorded(
    site: Site, autojump_clock: MockClock
) -> None:
    async with site.running(autojump_clock) as nursery:
        nursery.start_soon(site.jobs.on_schedule, TABLE, lambda: site.shipper)
        started = trio.current_time()
        await site.until_told(1)
        site.sink.documents.pop(next(iter(site.sink.documents)))
        await site.until_told(2)
        assert trio.current_time() - started > HOUR
    (first, second) = site.told
    assert (first[0], first[1], first[2]["compared"]) == ("siem.reconciled", "completed", 30)
    assert (second[0], second[1], second[2]["missing"]) == ("siem.reconciled", "failed", [0])


@pytest.mark.parametrize("lie", [lambda: 7, lambda: [None], lambda: [Held(None, "x", {})]])  # type: ignore[arg-type]
async def test_what_nobody_foresaw_of_an_answer_fails_the_job_and_nothing_else(
    site: Site, lie: Callable[[], Any], autojump_clock: MockClock
) -> None:
    async with site.running(autojump_clock):
        site.sink.lie = lie
        site.jobs.begin(Job("siem", "reconcile"), TABLE, site.shipper)
        await site.until_told(1)
        site.sink.lie = None
        site.jobs.begin(Job("siem", "reconcile"), TABLE, site.shipper)
        await site.until_told(2)
    assert [outcome for _, outcome, _ in site.told] == ["failed", "completed"]


async def test_repair_delivers_what_is_missing_and_says_how_much(site: Site, autojump_clock: MockClock) -> None:
    async with site.running(autojump_clock):
        for gone in list(site.sink.documents)[3:6]:
            del site.sink.documents[gone]
        site.jobs.begin(Job("siem", "reconcile", repair=True), TABLE, site.shipper)
        await site.until_told(1)
    ((_, outcome, details),) = site.told
    assert (outcome, details["repaired"], details["missing_count"]) == ("completed", 3, 0)
    assert len(site.sink.documents) == 30


async def test_a_resending_of_which_something_is_refused_has_failed_and_says_how_much(
    site: Site, autojump_clock: MockClock
) -> None:
    async with site.running(autojump_clock):
        site.sink.refuses = 2
        site.jobs.begin(Job("siem", "resend", 0, 3), TABLE, site.shipper)
        await site.until_told(1)
    ((kind, outcome, details),) = site.told
    assert (kind, outcome, details["sent"], details["refused"]) == ("siem.resent", "failed", 2, 1)
