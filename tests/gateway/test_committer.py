"""Group commit against the real log, and what waiters are told when it fails."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from structlog.testing import capture_logs

from audit.checkpoint import LogSigner, open_checkpoint
from audit.log import Log
from audit.proof import leaf_hash, verify_inclusion
from gateway.committer import Committer, Outage
from gateway.errors import LogUnavailable, Overloaded

SIGNER = LogSigner("example.org/log", Ed25519PrivateKey.generate())


def entry(text: str) -> Callable[[int], Sequence[bytes]]:
    return lambda index: [f"{text} at {index}".encode()]


class Disk:
    """A real log that can be told to fail."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.fails = False
        self.opened = 0
        self.batches: list[int] = []
        self.now = 0.0
        self.open_seconds = 0.0

    def open(self) -> Log:
        self.opened += 1
        self.now += self.open_seconds
        if self.fails:
            raise OSError(5, "Input/output error")
        log = Log.open(self.directory, SIGNER)
        real = log.commit

        def commit(entries: Sequence[bytes], first_index: Sequence[int]) -> object:
            if self.fails:
                raise OSError(5, "Input/output error")
            self.batches.append(len(first_index))
            return real(entries, first_index)

        log.commit = commit  # type: ignore[method-assign,assignment]
        return log


@asynccontextmanager
async def committing(disk: Disk, queue: int = 100) -> AsyncIterator[Committer]:
    committer = Committer(disk.open, queue, lambda: disk.now)
    await committer.open()
    async with trio.open_nursery() as nursery:
        await nursery.start(committer.run)
        yield committer
        nursery.cancel_scope.cancel()
    await committer.close()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "log")


async def test_each_waiter_gets_its_own_index_and_a_proof(disk: Disk) -> None:
    async with committing(disk) as committer:
        indices: dict[str, int] = {}

        async def append(name: str) -> None:
            committed = await committer.append(entry(name))
            indices[name] = committed.index
            leaf = leaf_hash(f"{name} at {committed.index}".encode())
            checkpoint = open_checkpoint(committed.commit.checkpoint_text, [SIGNER.verifier])
            path = committed.commit.inclusion_path(committed.index)
            verify_inclusion(leaf, committed.index, checkpoint.size, path, checkpoint.root)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(append, f"n{number}")
        assert sorted(indices.values()) == list(range(20))
        assert sum(disk.batches) == 20
        assert len(disk.batches) < 20  # concurrent requests share commits


async def test_a_failed_log_is_told_to_all_and_reopened_before_anything_else(disk: Disk) -> None:
    async with committing(disk) as committer:
        await committer.append(entry("first"))
        disk.fails = True
        with pytest.raises(LogUnavailable, match="Input/output error"):
            await committer.append(entry("lost"))
        disk.fails = False
        with pytest.raises(LogUnavailable):  # not yet: reopening is attempted at most once a second
            await committer.append(entry("too soon"))
        disk.now = 2.0
        assert (await committer.append(entry("second"))).index == 1
        assert committer.failed_because is None


async def test_a_log_that_cannot_be_reopened_stays_unavailable(disk: Disk) -> None:
    async with committing(disk) as committer:
        disk.fails = True
        for _ in range(3):
            disk.now += 2.0
            with pytest.raises(LogUnavailable):
                await committer.append(entry("x"))
            with pytest.raises(LogUnavailable):
                await committer.read(lambda log: log.size)


async def test_a_failed_log_is_reopened_without_being_asked_and_the_outage_goes_on_record_first(disk: Disk) -> None:
    async with committing(disk) as committer, trio.open_nursery() as nursery:
        outages: list[Outage] = []

        def announce(outage: Outage) -> Callable[[int], Sequence[bytes]]:
            outages.append(outage)
            return entry("outage")

        committer.announce = announce
        await nursery.start(committer.keep_open)
        await committer.append(entry("before"))
        disk.fails = True
        with pytest.raises(LogUnavailable):
            await committer.append(entry("lost"))
        disk.now = 5.0
        while disk.opened < 3:  # it goes on trying
            disk.now += 40.0
            await trio.sleep(0.02)
        disk.fails = False
        while committer.failed_because is not None:
            disk.now += 40.0
            await trio.sleep(0.02)
        assert (await committer.append(entry("after"))).index == 2
        assert await committer.read(lambda log: list(log.entries(0, 3))) == [
            b"before at 0",
            b"outage at 1",
            b"after at 2",
        ]
        (outage,) = outages
        assert "Input/output error" in outage.because
        assert outage.seconds >= 40
        assert outage.attempts >= 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("took", "waits"), [(0.0, [1, 2, 2, 2]), (1.0, [1, 9, 9]), (10.0, [1, 30, 30])])
async def test_a_disk_that_works_again_is_noticed_within_two_seconds_but_trying_never_fills_the_time(
    disk: Disk, took: float, waits: list[float]
) -> None:
    async with committing(disk) as committer:
        disk.fails, disk.open_seconds = True, took
        waited = []
        with pytest.raises(LogUnavailable):
            await committer.append(entry("lost"))
        for _ in waits:
            failed_at, opened = disk.now, disk.opened
            while disk.opened == opened:
                disk.now += 1.0
                with pytest.raises(LogUnavailable):
                    await committer.read(lambda log: log.size)
            waited.append(disk.now - took - failed_at)
        assert waited == waits


async def test_an_outage_fills_no_operators_log_either(disk: Disk) -> None:
    async with committing(disk) as committer:
        disk.fails = True
        with capture_logs() as said:
            for _ in range(100):
                disk.now += 2.0
                with pytest.raises(LogUnavailable):
                    await committer.append(entry("x"))
        assert disk.opened >= 100
        assert 4 <= len(said) <= 6, "one a minute for the same reason"


async def test_a_log_that_comes_back_shorter_than_what_was_acknowledged_stays_shut(disk: Disk) -> None:
    async with committing(disk) as committer:
        await committer.append(entry("first"))
        older = {path: path.read_bytes() for path in disk.directory.rglob("*") if path.is_file()}
        await committer.append(entry("second"))
        disk.fails = True
        with pytest.raises(LogUnavailable):
            await committer.append(entry("lost"))
        disk.fails = False
        for path, content in older.items():
            path.write_bytes(content)
        for _ in range(3):
            disk.now += 100.0
            with pytest.raises(LogUnavailable, match="older copy was put back"):
                await committer.append(entry("third"))


async def test_a_log_whose_files_are_found_damaged_is_not_used_until_it_is_reopened(disk: Disk) -> None:
    async with committing(disk) as committer:
        await committer.append(entry("first"))
        await committer.distrust("tile/0/000 is missing; restore it")
        with pytest.raises(LogUnavailable, match="tile/0/000"):
            await committer.append(entry("too soon"))
        disk.now = 2.0
        assert (await committer.append(entry("second"))).index == 1


async def test_one_bad_builder_does_not_harm_the_others(disk: Disk) -> None:
    async with committing(disk) as committer:
        told: list[object] = []

        def bad(_index: int) -> Sequence[bytes]:
            raise ValueError("a record that is too large")

        async def append(builder: Callable[[int], Sequence[bytes]]) -> None:
            try:
                told.append((await committer.append(builder)).index)
            except ValueError:
                told.append("refused")

        async with trio.open_nursery() as nursery:
            for builder in (entry("a"), bad, entry("b")):
                nursery.start_soon(append, builder)
        assert sorted(map(str, told)) == ["0", "1", "refused"]


async def test_what_was_built_for_a_place_that_a_failed_group_left_is_built_anew(disk: Disk) -> None:
    async with committing(disk) as committer:
        told: dict[str, object] = {}

        async def append(name: str) -> None:
            try:
                told[name] = (await committer.append(entry(name))).index
            except LogUnavailable:
                told[name] = "failed"

        disk.fails = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, "first")
            await trio.testing.wait_all_tasks_blocked()
            for number in range(3):
                nursery.start_soon(append, f"while it failed {number}")
        assert set(told.values()) == {"failed"}
        disk.fails, disk.now = False, 2.0
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(append, f"after {number}")
        indices = [told[f"after {number}"] for number in range(40)]
        assert sorted(indices) == list(range(40))  # type: ignore[type-var]
        for number in range(40):
            name, index = f"after {number}", told[f"after {number}"]
            assert await committer.read(lambda log, i=index: log.entry(i)) == f"{name} at {index}".encode()  # type: ignore[misc]


async def test_the_queue_is_bounded(disk: Disk) -> None:
    committer = Committer(disk.open, 1)
    await committer.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_ignore_cancelled, committer)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Overloaded):
            await committer.append(entry("too much"))
        nursery.cancel_scope.cancel()
    await committer.close()


async def _ignore_cancelled(committer: Committer) -> None:
    await committer.append(entry("waits"))


async def test_what_was_committed_is_there_after_a_restart(disk: Disk) -> None:
    async with committing(disk) as committer:
        await committer.append(entry("kept"))
    async with committing(disk) as committer:
        assert await committer.read(lambda log: log.entry(0)) == b"kept at 0"
        assert committer.size == 1
