"""An archive grows with its log, proves itself, and never becomes the archive of another history."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from audit.archive import Archive
from audit.errors import CheckpointError, LogDamaged, LogLocked, LogTruncated
from audit.log import Log
from audit.tile_tree import FolderTiles
from audit.verify import verify_log
from tests.audit.disks import FastDisk, FaultyDisk, PowerCut
from tests.audit.samples import OTHER_SIGNER, SIGNER, one, raw


def grow(directory: Path, size: int) -> str:
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        while log.size < size:
            log.append([one] * min(200, size - log.size))
        return log.checkpoint_text


def archive_of(directory: Path) -> Archive:
    return Archive(directory, [SIGNER.verifier], FastDisk())


def update(archive: Path, log: Path, size: int) -> int:
    return archive_of(archive).update(grow(log, size), FolderTiles(log)).size


@pytest.mark.parametrize("sizes", [(0, 1, 255, 256, 257, 600), (513,), (256, 512)])
def test_it_grows_with_its_log_and_verifies_alone(sizes: tuple[int, ...], tmp_path: Path) -> None:
    for size in sizes:
        assert update(tmp_path / "archive", tmp_path / "log", size) == size
        verdict = verify_log(tmp_path / "archive", [SIGNER.vkey])
        assert (verdict.ok, verdict.size, verdict.problems, verdict.warnings) == (True, size, [], [])
    assert update(tmp_path / "archive", tmp_path / "log", sizes[-1]) == sizes[-1]  # again, with nothing new


def test_a_log_that_was_put_back_is_refused_and_the_archive_stays(tmp_path: Path) -> None:
    update(tmp_path / "archive", tmp_path / "log", 300)
    older = grow(tmp_path / "older", 299)
    with pytest.raises(LogTruncated, match="put back"):
        archive_of(tmp_path / "archive").update(older, FolderTiles(tmp_path / "older"))
    assert verify_log(tmp_path / "archive", [SIGNER.vkey]).size == 300


@pytest.mark.parametrize("archived", [256, 300, 512])
def test_another_history_is_refused_even_under_the_logs_own_key(archived: int, tmp_path: Path) -> None:
    update(tmp_path / "archive", tmp_path / "log", archived)
    with Log.open(tmp_path / "fork", SIGNER, disk=FastDisk()) as log:
        text = log.append([raw(*(b"other %d" % n for n in range(600)))]).checkpoint_text
    with pytest.raises(LogDamaged, match=r"another history|do not have the root"):
        archive_of(tmp_path / "archive").update(text, FolderTiles(tmp_path / "fork"))
    assert verify_log(tmp_path / "archive", [SIGNER.vkey]).ok


def test_a_history_that_parts_within_the_last_bundle_is_refused(tmp_path: Path) -> None:
    """Its full bundles are the archive's, and it has the root that its checkpoint says."""
    update(tmp_path / "archive", tmp_path / "log", 280)
    shutil.copytree(tmp_path / "log", tmp_path / "fork")
    update(tmp_path / "archive", tmp_path / "log", 300)
    with Log.open(tmp_path / "fork", SIGNER, disk=FastDisk()) as log:
        text = log.append([raw(*(b"other %d" % n for n in range(300)))]).checkpoint_text
    with pytest.raises(LogDamaged, match="another history than the one archived"):
        archive_of(tmp_path / "archive").update(text, FolderTiles(tmp_path / "fork"))
    assert verify_log(tmp_path / "archive", [SIGNER.vkey]).size == 300


def test_an_update_that_another_one_overtakes_takes_nothing_back(tmp_path: Path) -> None:
    """Two timers, or a person beside one: the slower one wrote its older checkpoint over the newer one."""
    update(tmp_path / "archive", tmp_path / "log", 100)
    slower, text = archive_of(tmp_path / "archive"), grow(tmp_path / "log", 200)
    refused: list[LogLocked] = []

    class Overtaken(FolderTiles):
        def bundle(self, number: int, width: int) -> list[bytes]:
            found = super().bundle(number, width)
            try:
                update(tmp_path / "archive", tmp_path / "log", 600)
            except LogLocked as error:
                refused.append(error)
            return found

    slower.update(text, Overtaken(tmp_path / "log"))
    assert len(refused) == 1
    assert update(tmp_path / "archive", tmp_path / "log", 600) == 600
    with pytest.raises(LogTruncated, match="put back"):  # it was opened before the other one
        slower.update(text, FolderTiles(tmp_path / "log"))
    assert verify_log(tmp_path / "archive", [SIGNER.vkey]).size == 600


def test_a_source_that_alters_or_withholds_an_entry_is_refused(tmp_path: Path) -> None:
    class Alters(FolderTiles):
        def bundle(self, number: int, width: int) -> list[bytes]:
            first, *rest = super().bundle(number, width)
            return [first[:-1] + b" ", *rest]

    class Withholds(FolderTiles):
        def bundle(self, number: int, width: int) -> list[bytes]:
            return super().bundle(number, width)[: 256 - number]

    text = grow(tmp_path / "log", 512)
    for source, error in ((Alters(tmp_path / "log"), LogDamaged), (Withholds(tmp_path / "log"), LogTruncated)):
        with pytest.raises(error):
            archive_of(tmp_path / "archive").update(text, source)
    assert archive_of(tmp_path / "archive").size == 0
    assert not (tmp_path / "archive" / "tile").exists()


def test_a_checkpoint_by_another_key_is_refused_also_at_the_archives_own_door(tmp_path: Path) -> None:
    update(tmp_path / "archive", tmp_path / "log", 5)
    with pytest.raises(CheckpointError):
        Archive(tmp_path / "archive", [OTHER_SIGNER.verifier])
    with Log.open(tmp_path / "other", OTHER_SIGNER, disk=FastDisk()) as log:
        text = log.append([raw(*(b"x" for _ in range(9)))]).checkpoint_text
    with pytest.raises(CheckpointError):
        archive_of(tmp_path / "archive").update(text, FolderTiles(tmp_path / "other"))


def test_a_death_at_any_step_is_mended_by_the_next_update(tmp_path: Path) -> None:
    text = grow(tmp_path / "log", 520)
    stop_at, cut = 0, True
    while cut:
        stop_at += 3
        folder = tmp_path / str(stop_at)
        update(folder, tmp_path / "short", 255)
        try:
            Archive(folder, [SIGNER.verifier], FaultyDisk(stop_at)).update(text, FolderTiles(tmp_path / "log"))
            cut = False
        except PowerCut:
            pass
        assert archive_of(folder).size in {255, 520}
        archive_of(folder).update(text, FolderTiles(tmp_path / "log"))
        verdict = verify_log(folder, [SIGNER.vkey])
        assert (verdict.ok, verdict.size) == (True, 520)
