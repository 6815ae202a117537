"""The shipper against a sink that fails on demand, with a clock that jumps: no test here waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

from audit.siem.document import Document, LogEntry, Render, document_of
from audit.siem.shipper import Shipper
from audit.siem.sink import Refusal, SinkAway
from audit.siem.status import SinkEvent, State, Terms
from certs.files import write_atomically
from tests.audit.siem.entries import FakeLog
from tests.patience import no_jump_over_threads

TERMS = Terms(batch_entries=10, deadline_seconds=5, degraded_seconds=60)


class ScriptedSink:
    """Stores what it takes. `script`: what happens at the next deliveries instead; nothing left: it takes all."""

    name = "scripted"

    def __init__(self, *script: Callable[[Sequence[Document]], Awaitable[Sequence[Refusal]]]) -> None:
        self.script = list(script)
        self.stored: list[int] = []
        self.called: list[float] = []
        self.is_closed = False

    async def deliver(self, batch: Sequence[Document]) -> Sequence[Refusal]:
        self.called.append(trio.current_time())
        if self.script:
            refused = await self.script.pop(0)(batch)
        else:
            refused = []
        gone = {each.index for each in refused}
        self.stored += [each.index for each in batch if each.index not in gone]
        return refused

    async def close(self) -> None:
        self.is_closed = True


async def away(batch: Sequence[Document]) -> Sequence[Refusal]:
    raise SinkAway("connection refused")


async def hang(batch: Sequence[Document]) -> Sequence[Refusal]:
    await trio.sleep_forever()
    raise AssertionError


class Site:
    def __init__(self, folder: Path, log: FakeLog, sink: ScriptedSink) -> None:
        self.folder, self.log, self.sink = folder, log, sink
        self.told: list[SinkEvent] = []
        self.render: Render = document_of
        self.shipper = self.new_shipper()

    def new_shipper(self) -> Shipper:
        async def tell(event: SinkEvent) -> None:
            self.told.append(event)

        return Shipper(self.sink, self.log, self.folder, write_atomically, tell, TERMS, self.render)

    async def until(self, happened: Callable[[], bool]) -> None:
        with trio.fail_after(3600):
            while not happened():
                await trio.sleep(0.1)

    @asynccontextmanager
    async def running(self, clock: MockClock) -> AsyncIterator[None]:
        with no_jump_over_threads(clock):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.shipper.run)
                yield
                nursery.cancel_scope.cancel()


async def test_every_entry_arrives_once_and_in_order(tmp_path: Path, autojump_clock: MockClock) -> None:
    site = Site(tmp_path, FakeLog(25), ScriptedSink())
    async with site.running(autojump_clock):
        await site.until(lambda: len(site.sink.stored) == 25)
        site.log.grow(3)
        await site.until(lambda: len(site.sink.stored) == 28)
    assert site.sink.stored == list(range(28))
    assert site.shipper.status.lag == 0
    assert site.sink.is_closed


async def test_a_restart_goes_on_where_delivery_was_durable(tmp_path: Path, autojump_clock: MockClock) -> None:
    site = Site(tmp_path, FakeLog(12), ScriptedSink())
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 12)
    site.log.grow(5)
    site.shipper = site.new_shipper()
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 17)
    assert site.sink.stored == list(range(17))


async def test_a_lost_cursor_delivers_everything_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    site = Site(tmp_path, FakeLog(4), ScriptedSink())
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 4)
    (tmp_path / "scripted.cursor").unlink()
    site.shipper = site.new_shipper()
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 4)
    assert site.sink.stored == [0, 1, 2, 3, 0, 1, 2, 3]


async def test_what_fails_is_sent_again_with_growing_pauses(tmp_path: Path, autojump_clock: MockClock) -> None:
    site = Site(tmp_path, FakeLog(3), ScriptedSink(*[away] * 8))
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 3)
    assert site.sink.stored == [0, 1, 2]
    # Pauses of 0.5, 1, 2, … 32 and 60 s, each cut by up to a half.
    assert 61 <= site.sink.called[-1] - site.sink.called[0] <= 124


async def test_the_receivers_own_pause_is_respected_within_bounds(tmp_path: Path, autojump_clock: MockClock) -> None:
    async def busy(batch: Sequence[Document]) -> Sequence[Refusal]:
        raise SinkAway("429", retry_after_seconds=10**9)

    site = Site(tmp_path, FakeLog(1), ScriptedSink(busy))
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 1)
    assert site.sink.called[1] - site.sink.called[0] == pytest.approx(60)


async def test_a_receiver_that_asks_for_no_pause_does_not_make_us_hammer_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def at_once(batch: Sequence[Document]) -> Sequence[Refusal]:
        raise SinkAway("429", retry_after_seconds=0)

    site = Site(tmp_path, FakeLog(1), ScriptedSink(*[at_once] * 8))
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 1)
    assert 61 <= site.sink.called[-1] - site.sink.called[0] <= 124  # as where it asks for nothing


async def test_a_full_disk_is_waited_for_and_named_and_nothing_is_sent_again_for_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async def refuse_one(batch: Sequence[Document]) -> Sequence[Refusal]:
        return [Refusal(1, "no such field")]

    site = Site(tmp_path, FakeLog(3), ScriptedSink(refuse_one))
    writable, refused = trio.Event(), list[Path]()

    def write(path: Path, data: bytes) -> None:
        if not writable.is_set():
            refused.append(path)
            raise OSError(28, "No space left on device")
        write_atomically(path, data)

    site.shipper.quarantine._write = site.shipper._write = write
    async with site.running(autojump_clock):
        await site.until(lambda: len(refused) > 10)
        assert site.shipper.status.state.value == "failing"
        assert "No space left on device" in (site.shipper.status.last_error or "")
        writable.set()
        await site.until(lambda: site.shipper.status.position == 3)
        assert site.shipper.status.state.value == "delivering"
    assert (site.sink.stored, len(site.sink.called)) == ([0, 2], 1)
    assert (tmp_path / "scripted.quarantine" / "1.json").exists()


async def test_a_hanging_receiver_costs_a_deadline_and_the_batch_goes_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    site = Site(tmp_path, FakeLog(2), ScriptedSink(hang))
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.state is State.FAILING)
        assert site.shipper.status.last_error == "no answer within 5 s"
        await site.until(lambda: site.shipper.status.position == 2)
    assert site.sink.stored == [0, 1]


async def test_a_receiver_that_hangs_is_told_apart_before_its_deadline_is_over(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    site = Site(tmp_path, FakeLog(10), ScriptedSink(hang))
    async with site.running(autojump_clock):
        status, seen = site.shipper.status, list[State]()
        await site.until(lambda: status.sent_at is not None)
        for seconds in (1, 1, 3.1):
            await trio.sleep(seconds)
            seen.append(status.shown(trio.current_time(), TERMS.deadline_seconds))
        assert seen == [State.DELIVERING, State.HANGING, State.FAILING]
        await site.until(lambda: status.position == 10)
        assert status.shown(trio.current_time() + 60, TERMS.deadline_seconds) is State.DELIVERING


async def test_degraded_and_recovered_are_told_once_each_with_the_duration(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    site = Site(tmp_path, FakeLog(1), ScriptedSink(*[away] * 12))
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 1)
    assert [event.kind for event in site.told] == ["siem.degraded", "siem.recovered"]
    assert site.told[0].details == {"sink": "scripted", "cause": "connection refused", "lag": 1}
    assert site.told[1].details["failing_seconds"] >= 60


async def test_a_short_failure_is_no_event(tmp_path: Path, autojump_clock: MockClock) -> None:
    site = Site(tmp_path, FakeLog(1), ScriptedSink(away))
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 1)
    assert site.told == []


async def test_what_is_refused_for_ever_is_kept_told_and_passed(tmp_path: Path, autojump_clock: MockClock) -> None:
    async def refuse_one(batch: Sequence[Document]) -> Sequence[Refusal]:
        return [Refusal(1, "strict_dynamic_mapping_exception")]

    site = Site(tmp_path, FakeLog(3), ScriptedSink(refuse_one))
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 3)
    assert site.sink.stored == [0, 2]
    kept = msgspec.json.decode((tmp_path / "scripted.quarantine" / "1.json").read_bytes())
    assert kept["entry"].encode() == site.log.entries[1]
    assert kept["cause"] == "strict_dynamic_mapping_exception"
    assert [event.kind for event in site.told] == ["siem.quarantined"]
    assert site.shipper.status.quarantined == 1


def refusing(*indices: int) -> Callable[[Sequence[Document]], Awaitable[Sequence[Refusal]]]:
    async def refuse(batch: Sequence[Document]) -> Sequence[Refusal]:
        return [Refusal(each.index, "no such field") for each in batch if not indices or each.index in indices]

    return refuse


async def test_a_receiver_that_refuses_everything_is_waited_for_and_nothing_is_passed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    site = Site(tmp_path, FakeLog(30), ScriptedSink(*[refusing()] * 6))
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.state is State.FAILING)
        assert (site.shipper.status.position, site.shipper.status.quarantined) == (10, 10)
        assert site.shipper.status.last_error == "it refuses every entry, the last one because: no such field"
        await site.until(lambda: site.shipper.status.position == 30)
    assert site.sink.stored == list(range(10, 30))


async def test_the_refusal_of_a_record_of_quarantine_makes_no_other_record(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Each record of it goes to the same receiver: a refusal of that must not make another record, for ever."""
    site = Site(tmp_path, FakeLog(4), ScriptedSink(refusing(0, 2), *[refusing(4, 5)] * 3))
    async with site.running(autojump_clock):
        await site.until(lambda: len(site.told) == 1)
        site.log.grow(1, kind="siem.quarantined")
        await site.until(lambda: site.shipper.status.position == 5)
        site.log.grow(1)
        await site.until(lambda: len(site.told) == 2)
    assert [each.details for each in site.told] == [
        {"sink": "scripted", "count": 2, "first": 0, "last": 2, "cause": "no such field"},
        {"sink": "scripted", "count": 1, "first": 5, "last": 5, "cause": "no such field"},
    ]
    assert site.shipper.status.quarantined == 4
    assert [each.index for each in site.shipper.quarantine.list()[0]] == [0, 2, 4, 5]


async def test_what_the_sink_does_not_want_is_passed_and_not_delivered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    def odd(entry: LogEntry) -> Document | None:
        return document_of(entry) if entry.index % 2 else None

    site = Site(tmp_path, FakeLog(25), ScriptedSink())
    site.render = odd
    site.shipper = site.new_shipper()
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 25)
    assert site.sink.stored == list(range(1, 25, 2))


async def test_a_resend_delivers_its_range_and_leaves_the_cursor(tmp_path: Path, autojump_clock: MockClock) -> None:
    site = Site(tmp_path, FakeLog(25), ScriptedSink())
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 25)
        assert await site.shipper.deliver_again(3, 17) == (14, 0)
    assert site.sink.stored[25:] == list(range(3, 17))
    assert site.shipper.status.position == 25


async def test_a_log_that_recovers_is_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    site = Site(tmp_path, FakeLog(2), ScriptedSink())
    site.log.away = 5
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 2)
    assert site.sink.stored == [0, 1]


@pytest.mark.parametrize("change", ["shorter", "other"])
async def test_a_log_that_was_put_back_stops_its_sink_and_is_told(
    tmp_path: Path, autojump_clock: MockClock, change: str
) -> None:
    site = Site(tmp_path, FakeLog(5), ScriptedSink())
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 5)
    if change == "shorter":
        site.log.entries.pop()
    else:
        site.log.entries[4] = site.log.entries[3]
    site.shipper = site.new_shipper()
    with no_jump_over_threads(autojump_clock), trio.fail_after(3600):
        await site.shipper.run()
    assert site.shipper.status.state is State.STOPPED
    assert [event.kind for event in site.told] == ["siem.stopped"]
    assert site.sink.stored == [0, 1, 2, 3, 4]


async def test_one_batch_is_all_that_is_in_memory(tmp_path: Path, autojump_clock: MockClock) -> None:
    sizes: list[int] = []

    async def look(batch: Sequence[Document]) -> Sequence[Refusal]:
        sizes.append(sum(len(each.body["event"]["original"]) for each in batch))
        return []

    log = FakeLog(10)
    size = len(log.entries[0])
    site = Site(tmp_path, log, ScriptedSink(*[look] * 20))
    site.shipper.terms = Terms(batch_entries=10, batch_bytes=size * 3 + 10)
    async with site.running(autojump_clock):
        await site.until(lambda: site.shipper.status.position == 10)
    assert len(sizes) >= 3
    assert max(sizes) <= size * 3 + 10
    assert site.sink.stored == list(range(10))
