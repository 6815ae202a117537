"""Stamps of records: rising, signed, and honest about a clock that was stepped."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.checkpoint import LogSigner
from audit.group import sign_drafts
from audit.log import Commit
from audit.merkle import Growth
from audit.proof import leaf_hash
from audit.record import SignedRecord, decode_entry
from gateway.committer import Committed, Committer
from gateway.recording import Clock, Event, Recorder

SIGNER = LogSigner("example.org/log", Ed25519PrivateKey.generate())
START = datetime(2026, 11, 22, 21, 42, 21, tzinfo=UTC)


class Kept(Committer):
    """Keeps entries in a list."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []

    async def append(self, builder):  # type: ignore[no-untyped-def]
        index = len(self.entries)
        self.entries += sign_drafts(builder(index), SIGNER)
        leaves = [leaf_hash(entry) for entry in self.entries[index:]]
        return Committed(index, Commit("", len(self.entries), b"", (index,), Growth(index, {}, leaves)))

    def records(self) -> list[SignedRecord]:
        return [entry for entry in map(decode_entry, self.entries) if isinstance(entry, SignedRecord)]


class Clocks:
    def __init__(self) -> None:
        self.wall = START
        self.ticks = 5

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.ticks)

    def pass_(self, seconds: float, step: float = 0) -> None:
        self.wall += timedelta(seconds=seconds + step)
        self.ticks += int(seconds * 1e9)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


async def test_records_are_stamped_and_signed_for_the_log(kept: Kept, clocks: Clocks) -> None:
    recorder = Recorder(kept, SIGNER, "boot", clocks.clock())
    recorded = await recorder.append(Event("heartbeat"))
    (signed,) = kept.records()
    assert signed.is_signed_by([SIGNER.verifier])
    record = signed.record
    assert (record.sequence, record.boot_id, record.monotonic_ns) == (0, "boot", 5)
    assert record.time == "2026-11-22T21:42:21.000000Z"
    assert recorded.leaf_hash == leaf_hash(kept.entries[0])


async def test_what_follows_a_record_is_told_its_index_and_leaf(kept: Kept, clocks: Clocks) -> None:
    recorder = Recorder(kept, SIGNER, "boot", clocks.clock())
    await recorder.append(Event("heartbeat"))
    told: list[tuple[int, bytes]] = []

    def after(index: int, leaf: bytes) -> bytes:
        told.append((index, leaf))
        return b"entry"

    recorded = await recorder.append(Event("migration.decision"), after)
    assert told == [(recorded.index, recorded.leaf_hash)]
    assert kept.entries[recorded.index + 1] == b"entry"


@pytest.mark.parametrize("step", [-3600, -0.6, 0.6, 86_400])
async def test_a_stepped_clock_is_recorded_before_the_event(kept: Kept, clocks: Clocks, step: float) -> None:
    recorder = Recorder(kept, SIGNER, "boot", clocks.clock())
    await recorder.append(Event("heartbeat"))
    clocks.pass_(1, step)
    recorded = await recorder.append(Event("heartbeat"))
    assert [signed.record.kind for signed in kept.records()] == ["heartbeat", "clock-step", "heartbeat"]
    assert kept.records()[1].record.details == {"step_ms": int(step * 1000)}
    assert recorded.index == 2


async def test_time_that_passes_evenly_is_no_step(kept: Kept, clocks: Clocks) -> None:
    recorder = Recorder(kept, SIGNER, "boot", clocks.clock())
    for seconds in (0, 0.001, 300, 86_400):
        clocks.pass_(seconds, seconds * 0.0004)  # slewed
        await recorder.append(Event("heartbeat"))
    assert {signed.record.kind for signed in kept.records()} == {"heartbeat"}
