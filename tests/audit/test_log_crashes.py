"""The machine dies, or the disk fails, at every step of every kind of commit: nothing acknowledged is lost.

Each case is one stop at one step, one way of losing what was not synced, a second death in the recovery, and
then a reopening that must find everything acknowledged, at most the group in flight besides, and go on.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.checkpoint import open_checkpoint
from audit.disk import Disk
from audit.errors import LogFailed
from audit.log import Log
from tests.audit.disks import FastDisk, FaultyDisk, Loss, PowerCut, disk_full, input_output_error
from tests.audit.naive_tree import leaf
from tests.audit.samples import SIGNER, raw
from tests.audit.test_merkle import fast_root

pytestmark = pytest.mark.whole

# One entry; some; exactly full; the first of the next bundle; over a bundle's end; with a bundle to seal.
GROUPS = [
    [f"entry {start + offset}".encode() for offset in range(count)]
    for start, count in ((0, 1), (1, 3), (4, 252), (256, 1), (257, 260), (517, 2))
]


def run(directory: Path, disk: Disk, acknowledged: list[bytes]) -> None:
    """Open and append the groups from where the log is; what was acknowledged is in the list, also after a crash."""
    with Log.open(directory, SIGNER, disk=disk) as log:
        assert list(log.entries(0, log.size)) in ([*acknowledged], everything()[: log.size])
        done = 0
        for group in GROUPS:
            done += len(group)
            if done > log.size:
                log.append([raw(*group)])
                acknowledged[:] = everything()[:done]


def everything() -> list[bytes]:
    return list(itertools.chain(*GROUPS))


def count_steps(directory: Path) -> FaultyDisk:
    disk = FaultyDisk()
    run(directory, disk, [])
    return disk


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> FaultyDisk:
    return count_steps(tmp_path_factory.mktemp("count") / "log")


def numbered(folder: Path) -> Iterator[Path]:
    return (folder / str(number) for number in itertools.count())


def require_sound(directory: Path, acknowledged: list[bytes]) -> None:
    """Reopen: all that was acknowledged is there, only whole groups, under its checkpoint; and it goes on."""
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        found = list(log.entries(0, log.size))
        assert found[: len(acknowledged)] == acknowledged
        assert log.size in itertools.accumulate(map(len, GROUPS), initial=0)  # whole groups or nothing of them
        assert found == everything()[: log.size]
    run(directory, FastDisk(), list(found))
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        assert log.recovery is None
        assert list(log.entries(0, log.size)) == everything()
        checkpoint = open_checkpoint(log.checkpoint_text, [SIGNER.verifier])
        assert checkpoint.root == fast_root([leaf(entry) for entry in everything()])


@pytest.mark.parametrize(("loss", "stride"), [(Loss.NOTHING, 1), (Loss.ALL, 1), (Loss.DATA, 2), (Loss.NAMES, 2)])
def test_a_power_cut_before_every_step_loses_nothing_acknowledged(
    loss: Loss, stride: int, steps: FaultyDisk, tmp_path: Path
) -> None:
    for stop_at, directory in zip(range(1, steps.steps + 1, stride), numbered(tmp_path), strict=False):
        acknowledged: list[bytes] = []
        die(directory, FaultyDisk(stop_at), loss, acknowledged)
        die(directory, FaultyDisk(1 + stop_at % 7), loss, acknowledged)  # and again, while recovering
        require_sound(directory, acknowledged)


@pytest.mark.parametrize("loss", [Loss.NOTHING, Loss.NAMES])
def test_a_power_cut_within_every_write_loses_nothing_acknowledged(
    loss: Loss, steps: FaultyDisk, tmp_path: Path
) -> None:
    for stop_at, directory in zip(steps.writes, numbered(tmp_path), strict=False):
        acknowledged: list[bytes] = []
        die(directory, FaultyDisk(stop_at, torn=True), loss, acknowledged)
        require_sound(directory, acknowledged)


def die(directory: Path, disk: FaultyDisk, loss: Loss, acknowledged: list[bytes]) -> None:
    with pytest.raises(PowerCut):
        run(directory, disk, acknowledged)
    disk.lose(loss)


@pytest.mark.parametrize(("error", "stride"), [(disk_full(), 1), (input_output_error(), 3)])
def test_after_a_failure_at_any_step_the_log_refuses_until_it_is_reopened(
    error: OSError, stride: int, steps: FaultyDisk, tmp_path: Path
) -> None:
    for stop_at, directory in zip(range(1, steps.steps + 1, stride), numbered(tmp_path), strict=False):
        acknowledged: list[bytes] = []
        disk = FaultyDisk(stop_at, torn=True, error=error)
        try:
            log = Log.open(directory, SIGNER, disk=disk)
        except LogFailed:
            disk.lose(Loss.ALL)
            require_sound(directory, acknowledged)
            continue
        with pytest.raises(LogFailed, match=error.strerror):
            for group in GROUPS:
                log.append([raw(*group)])
                acknowledged += group
        before = disk.steps
        with pytest.raises(LogFailed, match="reopened"):
            log.append([raw(b"more")])
        assert disk.steps == before
        log.close()
        disk.lose(Loss.ALL)
        require_sound(directory, acknowledged)


def test_every_cut_of_an_uncommitted_tail_is_cut_off_and_kept_and_said(tmp_path: Path) -> None:
    with Log.open(tmp_path, SIGNER, disk=FastDisk()) as log:
        log.append([raw(b"committed one", b"committed two")])
    tail = tmp_path / "tail" / "0"
    committed = tail.read_bytes()
    surplus = b"\x00\x04abcd\x00\x05efghi"
    for cut in range(1, len(surplus) + 1):
        tail.write_bytes(committed + surplus[:cut])
        with Log.open(tmp_path, SIGNER, disk=FastDisk()) as log:
            assert log.size == 2
            assert log.recovery is not None
            assert (log.recovery.first_index, log.recovery.cut_bytes) == (2, cut)
            assert [path.read_bytes() for path in log.recovery.kept] == [surplus[:cut]]
        assert tail.read_bytes() == committed
