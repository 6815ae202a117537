"""Pruning: what is old and archived goes, on record; what is left proves itself; a kill at any step loses nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from audit.archive import Archive
from audit.checkpoint import LogSigner
from audit.disk import Disk
from audit.errors import CheckpointError, EntryPruned, LogDamaged, LogTruncated
from audit.export import Sealed, export_entries
from audit.log import Log
from audit.log_keys import KEYS_FILE, read_successors, successor_line
from audit.proof import leaf_hash, verify_inclusion
from audit.pruned import PRUNED_KIND
from audit.pruning import plan, prune
from audit.reader import LogReader
from audit.record import format_time
from audit.tile_tree import FolderTiles, TileTree
from audit.tiles import bundle_path
from audit.verify import Options, verify_log
from audit.verify_bundle import verify_bundle
from audit.verify_keys import MAX_BYTES
from audit.watch import Watch
from tests.audit.disks import FastDisk, FaultyDisk, Loss, PowerCut
from tests.audit.samples import OTHER_SIGNER, SIGNER, entry, permit

BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
SIZE = 256 * 4 + 10
BEFORE = BEGAN + timedelta(seconds=256 * 2 + 5)  # bundles 0 and 1 are older, 2 only in part


@lru_cache(4096)
def aged(index: int) -> Sequence[bytes]:
    return [entry(index, time=format_time(BEGAN + timedelta(seconds=index)))]


def of_pruning(index: int, details: Mapping[str, Any], signer: LogSigner = SIGNER) -> bytes:
    time = format_time(BEGAN + timedelta(seconds=index))
    return entry(index, signer, kind=PRUNED_KIND, outcome=None, time=time, details=dict(details))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """log and archive, never changed."""
    folder = tmp_path_factory.mktemp("made")
    with Log.open(folder / "log", SIGNER, disk=FastDisk()) as log:
        while log.size < SIZE:
            log.append([aged] * min(200, SIZE - log.size))
    with Log.open(folder / "log", SIGNER, disk=FastDisk()):
        pass  # seals the last full bundle
    archive_all(folder)
    return folder


def archive_all(folder: Path) -> None:
    text = (folder / "log" / "checkpoint").read_text()
    Archive(folder / "archive", [SIGNER.verifier], FastDisk()).update(text, FolderTiles(folder / "log"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run(folder: Path, before: datetime = BEFORE, disk: Disk | None = None) -> tuple[int, int]:
    with Log.open(folder / "log", SIGNER, disk=disk or FastDisk()) as log:
        planned = plan(log, Archive(folder / "archive", [SIGNER.verifier]), before)
        prune(log, planned, of_pruning)
        return planned.first, planned.end


def bundles_of(folder: Path) -> list[int]:
    return [number for number in range(5) if (folder / bundle_path(number)).exists()]


def checked(folder: Path, *, archive: Path | None = None) -> tuple[list[str], int]:
    verdict = verify_log(folder / "log", [SIGNER.vkey], options=Options(sampled=True, archive=archive))
    return [one.what for one in verdict.problems], verdict.pruned


def test_what_is_old_and_archived_goes_on_record_and_the_rest_proves_itself(folder: Path) -> None:
    assert run(folder) == (0, 512)
    assert bundles_of(folder / "log") == [2, 3]
    assert checked(folder) == ([], 512)
    assert checked(folder, archive=folder / "archive") == ([], 0)
    with Log.open(folder / "log", SIGNER, disk=FastDisk()) as log:
        assert log.size == SIZE + 1
        assert b'"kind":"log.pruned"' in log.entry(SIZE)
        assert log.entry(5) == aged(5)[0]  # read from the archive
        for index in (0, 511, 512, SIZE):
            verify_inclusion(
                leaf_hash(log.entry(index)), index, log.size, log.inclusion_path(index, log.size), log.root_at(log.size)
            )
        log.consistency_path(300, log.size)
    assert run(folder) == (512, 512)


def test_without_its_archive_an_old_entry_is_said_to_be_pruned_and_the_log_goes_on(folder: Path) -> None:
    run(folder)
    shutil.rmtree(folder / "archive")
    with Log.open(folder / "log", SIGNER, disk=FastDisk()) as log:
        with pytest.raises(EntryPruned, match="entries 0 to 255 were pruned"):
            log.entry(0)
        log.append([aged])
    with pytest.raises(LogTruncated, match="were pruned, and their archive"):
        LogReader(folder / "log").entry(256)
    with pytest.raises(LogTruncated, match="were pruned, and their archive"):
        FolderTiles(folder / "log").bundle(0, 256)
    assert checked(folder) == ([], 512)


def test_an_archive_that_is_altered_later_deceives_nobody(folder: Path) -> None:
    run(folder)
    path = folder / "archive" / bundle_path(1)
    path.write_bytes(path.read_bytes().replace(b"maintenance", b"maintenancE", 1))
    with Log.open(folder / "log", SIGNER, disk=FastDisk()) as log:
        with pytest.raises(EntryPruned, match="its archive has another one"):
            log.entry(256)
        log.append([aged])
    with pytest.raises(LogDamaged, match="does not have its hash"):
        LogReader(folder / "log").entry(256)
    assert "it does not have the hash in its tile" in checked(folder, archive=folder / "archive")[0]


@pytest.mark.parametrize("damage", ["altered", "missing", "shorter"])
def test_nothing_goes_that_the_archive_does_not_hold_as_the_log_does(folder: Path, damage: str) -> None:
    path = folder / "archive" / bundle_path(1)
    data = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(
        data[:-5] if damage == "shorter" else data.replace(b"maintenance", b"maintenancE", 1)
    )
    with pytest.raises(LogDamaged, match="archive"):
        run(folder)
    assert bundles_of(folder / "log") == [0, 1, 2, 3]
    assert checked(folder) == ([], 0)


def test_an_archive_of_another_history_prunes_nothing(folder: Path) -> None:
    shutil.rmtree(folder / "archive")
    with Log.open(folder / "other", SIGNER, disk=FastDisk()) as log:
        log.append([lambda index: [entry(index, reason="other")]] * 600)
        text = log.checkpoint_text
    Archive(folder / "archive", [SIGNER.verifier], FastDisk()).update(text, FolderTiles(folder / "other"))
    with pytest.raises(LogDamaged, match="differs from what was seen"):
        run(folder)
    assert bundles_of(folder / "log") == [0, 1, 2, 3]


def test_what_is_not_archived_stays_and_so_does_the_last_bundle(folder: Path) -> None:
    assert run(folder, BEGAN + timedelta(days=365)) == (0, 768)
    assert bundles_of(folder / "log") == [3]


@pytest.mark.parametrize(
    "forged", [b'{"archive":"/x","bundles":2,"record":5}', b'{"bundles":2,"record":99999}', b"{", b""]
)
def test_a_loss_cannot_be_passed_off_as_pruning(folder: Path, forged: bytes) -> None:
    (folder / "log" / "pruned").write_bytes(forged)
    for number in (0, 1):
        (folder / "log" / bundle_path(number)).unlink()
    with pytest.raises(LogDamaged, match="pruned"):
        Log.open(folder / "log", SIGNER, disk=FastDisk())
    problems, pruned = checked(folder)
    assert pruned == 0
    assert any("cannot be believed" in one for one in problems)
    assert any("are missing" in one for one in problems)


def test_more_cannot_go_than_the_record_says(folder: Path) -> None:
    run(folder)
    (folder / "log" / bundle_path(2)).unlink()
    with pytest.raises(LogTruncated):
        Log.open(folder / "log", SIGNER, disk=FastDisk())
    assert any("entries 512 to 767 are missing" in one for one in checked(folder)[0])
    said = (folder / "log" / "pruned").read_bytes()
    (folder / "log" / "pruned").write_bytes(said.replace(b'"bundles":2', b'"bundles":3'))
    with pytest.raises(LogDamaged, match="no record"):
        Log.open(folder / "log", SIGNER, disk=FastDisk())
    assert any("cannot be believed" in one for one in checked(folder)[0])


def test_the_hashes_of_what_was_pruned_cannot_be_altered(folder: Path) -> None:
    run(folder)
    path = folder / "log" / "tile" / "0" / "001"
    path.write_bytes(bytes(32) + path.read_bytes()[32:])
    assert checked(folder)[0]


def test_a_permit_stays_with_its_decision(tmp_path: Path) -> None:
    def allowed(index: int) -> list[bytes]:
        (decision,) = aged(index)
        return [decision, permit(index, decision)]

    with Log.open(tmp_path / "log", SIGNER, disk=FastDisk()) as log:
        log.append([aged] * 511)
        log.append([allowed])  # the decision ends bundle 1, its permit begins bundle 2
        log.append([aged] * 600)
    archive_all(tmp_path)
    assert run(tmp_path) == (0, 256)
    assert checked(tmp_path) == ([], 256)


def test_an_archive_from_before_a_rollover_of_the_logs_key_goes_on_to_count(folder: Path) -> None:
    """The old key signed the archive and the old entries, the new one what came after. Either may be pinned."""
    new = LogSigner(SIGNER.origin, OTHER_SIGNER.private_key)
    (folder / "log" / KEYS_FILE).write_text(successor_line(SIGNER, new))
    for signer in (LogSigner(new.origin, new.private_key, former=SIGNER), new):  # being rolled over; retired
        with Log.open(folder / "log", signer, disk=FastDisk()) as log:
            log.append([lambda index: [entry(index, new, time=format_time(BEGAN + timedelta(seconds=index)))]])
    with pytest.raises(CheckpointError):
        Archive(folder / "archive", [new.verifier])
    both = [SIGNER.verifier, new.verifier]
    with Log.open(folder / "log", new, disk=FastDisk()) as log:
        prune(log, plan(log, Archive(folder / "archive", both), BEFORE), lambda i, told: of_pruning(i, told, new))
        assert (log.pruned.bundles, log.entry(5)) == (2, aged(5)[0])
        text = log.checkpoint_text
    Archive(folder / "archive", both, FastDisk()).update(
        text, FolderTiles(folder / "log"), successors=read_successors(folder / "log")
    )
    for pinned in (SIGNER, new):
        for place, archive, pruned in (("log", None, 512), ("log", folder / "archive", 0), ("archive", None, 0)):
            verdict = verify_log(folder / place, [pinned.vkey], options=Options(archive=archive))
            assert (verdict.problems, verdict.pruned, verdict.size) == ([], pruned, SIZE + 3)
    proven = Sealed(TileTree(FolderTiles(folder / "archive"), SIZE + 3), new.origin, text)
    (folder / "bundle").write_text("".join(export_entries(proven, [5, SIZE])))
    shown = verify_bundle(folder / "bundle", [SIGNER.vkey, new.vkey])
    assert (shown.problems, shown.entries) == ([], 2)


def test_a_log_cannot_make_its_archive_one_that_nobody_reads(folder: Path) -> None:
    """Whoever holds the log's key can replace it as often as he likes; the archive is the evidence against him."""
    too_many = successor_line(SIGNER, OTHER_SIGNER).encode() * 2
    too_many += b"".join(b"%d\n" % number for number in range(MAX_BYTES // 5))
    archive = Archive(folder / "archive", [SIGNER.verifier], FastDisk())
    text = (folder / "log" / "checkpoint").read_text()
    with pytest.raises(LogDamaged, match="more often than an archive can tell"):
        archive.update(text, FolderTiles(folder / "log"), successors=too_many)
    assert not (folder / "archive" / KEYS_FILE).exists()
    assert verify_log(folder / "archive", [SIGNER.vkey]).problems == []


def test_the_watch_misses_what_was_pruned_and_nothing_else(folder: Path) -> None:
    sizes = [(folder / "log" / bundle_path(number)).stat().st_size for number in range(4)]
    run(folder)
    for known in (sizes, None):
        watch = Watch(folder / "log", list(known) if known else None)
        watch.check_all()
        for _ in range(10):
            watch.check_slice(SIZE, 3)
        assert len(watch.sizes) == 4
    (folder / "log" / bundle_path(2)).unlink()
    with pytest.raises(LogTruncated):
        watch.check_all()


@pytest.mark.parametrize("loss", [Loss.NOTHING, Loss.ALL])
def test_killed_at_any_step_it_loses_nothing_and_the_next_run_ends_it(made: Path, tmp_path: Path, loss: Loss) -> None:
    stop = 1
    while True:
        folder = tmp_path / str(stop)
        shutil.copytree(made, folder)
        disk = FaultyDisk(stop)
        try:
            run(folder, disk=disk)
        except PowerCut:
            disk.lose(loss)
        else:
            break
        # Whatever is gone is in the archive, and a record of the log says so.
        assert checked(folder, archive=folder / "archive") == ([], 0)
        run(folder)
        assert bundles_of(folder / "log") == [2, 3]
        assert checked(folder) == ([], 512)
        shutil.rmtree(folder)
        stop += 1
    assert stop > 10
