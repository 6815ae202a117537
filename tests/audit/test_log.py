"""The log as its users see it: commits, proofs, one writer, and what a tampered store is told at opening."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from audit.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from audit.errors import (
    LogDamaged,
    LogError,
    LogFailed,
    LogLocked,
    LogTruncated,
    RecordInvalid,
    RecordTooLarge,
)
from audit.log import EntryBuilder, Log
from audit.proof import EMPTY_ROOT, leaf_hash, verify_consistency, verify_inclusion
from tests.audit.disks import FastDisk
from tests.audit.samples import ORIGIN, OTHER_SIGNER, SIGNER, entry, one, permit, raw, with_permit

FAST = FastDisk()


def opened(directory: Path, known: Checkpoint | None = None) -> Log:
    return Log.open(directory, SIGNER, known=known, disk=FAST)


def filled(directory: Path, count: int) -> str:
    """A log of `count` numbered entries, full bundles sealed; returns its checkpoint."""
    with opened(directory) as log:
        for start in range(log.size, count, 100):
            log.append([raw(*(b"entry %d" % index for index in range(start, min(count, start + 100))))])
    with opened(directory) as log:
        return log.checkpoint_text


def test_a_new_log_is_empty_and_says_so_under_its_signature(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log", SIGNER) as log:
        assert (log.size, log.recovery, log.origin) == (0, None, ORIGIN)
        assert open_checkpoint(log.checkpoint_text, [SIGNER.verifier]) == Checkpoint(ORIGIN, 0, EMPTY_ROOT)


def test_a_group_is_committed_under_one_checkpoint_with_an_index_for_each_builder(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log", SIGNER) as log:
        log.append([one])
        commit = log.append([one, with_permit, one])
        assert commit.first_index == (1, 2, 4)
        assert commit.size == log.size == 5
        assert log.checkpoint_text == commit.checkpoint_text == (tmp_path / "log/checkpoint").read_text()
        assert list(log.entries(0, 5)) == [entry(0), entry(1), entry(2), permit(2, entry(2)), entry(4)]
        root = open_checkpoint(commit.checkpoint_text, [SIGNER.verifier]).root
        for index in range(1, 5):
            verify_inclusion(leaf_hash(log.entry(index)), index, 5, commit.inclusion_path(index), root)


def test_a_commit_goes_on_proving_after_the_log_has_grown_and_closed(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        log.append([raw(*(b"%d" % index for index in range(300)))])
        commit = log.append([raw(b"mine")])
        expected = log.inclusion_path(300, 301)
        log.append([raw(*(b"%d" % index for index in range(700)))])
    assert commit.inclusion_path(300) == expected
    for index in (299, 301, -1):
        with pytest.raises(IndexError):
            commit.inclusion_path(index)


def test_proofs_between_any_sizes_verify_also_after_reopening(tmp_path: Path) -> None:
    filled(tmp_path, 1200)
    with opened(tmp_path) as log:
        for size in (1, 255, 256, 257, 511, 512, 1024, 1199, 1200):
            root = log.root_at(size)
            for index in {0, 1, 254, 255, 256, 511, 512, size - 1}:
                if index < size:
                    path = log.inclusion_path(index, size)
                    verify_inclusion(leaf_hash(b"entry %d" % index), index, size, path, root)
            verify_consistency(size, root, 1200, log.root_at(1200), log.consistency_path(size, 1200))
        for call in (
            lambda: log.entry(1200),
            lambda: log.entry(-1),
            lambda: log.inclusion_path(5, 5),
            lambda: log.inclusion_path(5, 1201),
            lambda: log.consistency_path(0, 5),
            lambda: log.consistency_path(6, 5),
            lambda: log.root_at(1201),
        ):
            with pytest.raises(IndexError):
                call()


def test_a_builder_that_fails_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    def failing(_index: int) -> Sequence[bytes]:
        raise RuntimeError("no facts")

    with opened(tmp_path) as log:
        log.append([one])
        before = log.checkpoint_text
        with pytest.raises(RuntimeError, match="no facts"):
            log.append([one, failing])
        with pytest.raises(RecordTooLarge):
            log.append([one, raw(bytes(65536))])
        useless_groups: list[list[EntryBuilder]] = [[], [raw()], [raw(b"")], [one, raw()]]
        for useless in useless_groups:
            with pytest.raises(RecordInvalid):
                log.append(useless)
        assert (log.size, log.checkpoint_text) == (1, before)
        assert log.append([one]).first_index == (1,)


def test_a_second_opening_is_refused_while_the_log_is_open(tmp_path: Path) -> None:
    with opened(tmp_path):
        with pytest.raises(LogLocked, match="another process"):
            opened(tmp_path)
        # and from another process, which must not get as far as changing anything
        code = f"import fcntl; fcntl.flock(open({str(tmp_path / 'lock')!r}), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
        assert b"BlockingIOError" in other.stderr
    with opened(tmp_path) as log:
        assert log.size == 0


def test_a_closed_log_refuses_appends(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.close()
    log.close()
    with pytest.raises(LogFailed, match="closed"):
        log.append([one])


def test_a_missing_parent_directory_is_the_operator_s_to_create(tmp_path: Path) -> None:
    with pytest.raises(LogFailed, match="cannot open the log"):
        opened(tmp_path / "missing" / "log")


def test_files_are_not_readable_by_others(tmp_path: Path) -> None:
    filled(tmp_path / "log", 300)
    for path in [tmp_path / "log", *(tmp_path / "log").rglob("*")]:
        assert path.stat().st_mode & 0o007 == 0, path


def test_a_planted_link_in_place_of_a_file_is_not_written_through(tmp_path: Path) -> None:
    filled(tmp_path / "log", 256)
    victim = tmp_path / "victim"
    (tmp_path / "log/pending").symlink_to(victim)
    with opened(tmp_path / "log") as log, pytest.raises(LogFailed):
        log.append([one])
    assert not victim.exists()


# Files changed while the log is closed


def edit_shorten_tail(directory: Path) -> None:
    tail = directory / "tail" / "1"
    tail.write_bytes(tail.read_bytes()[:-1])


def edit_flip_tail(directory: Path) -> None:
    flip(directory / "tail" / "1", 5)


def edit_remove_tail(directory: Path) -> None:
    (directory / "tail" / "1").unlink()


def edit_remove_bundle(directory: Path) -> None:
    (directory / "tile/entries/000").unlink()


def edit_remove_tile(directory: Path) -> None:
    (directory / "tile/0/000").unlink()


def edit_shorten_tile(directory: Path) -> None:
    tile = directory / "tile/0/000"
    tile.write_bytes(tile.read_bytes()[:-32])


def edit_flip_tile(directory: Path) -> None:
    flip(directory / "tile/0/000", 100)


def edit_remove_checkpoint(directory: Path) -> None:
    (directory / "checkpoint").unlink()


def edit_flip_checkpoint(directory: Path) -> None:
    flip(directory / "checkpoint", 30)


def edit_garble_checkpoint(directory: Path) -> None:
    (directory / "checkpoint").write_bytes(b"\xff\xfe")


def edit_forge_checkpoint(directory: Path) -> None:
    forged = Checkpoint(ORIGIN, 300, bytes(32))
    (directory / "checkpoint").write_text(sign_checkpoint(forged, OTHER_SIGNER))


def edit_future_checkpoint(directory: Path) -> None:
    (directory / "checkpoint").write_text(sign_checkpoint(Checkpoint(ORIGIN, 301, bytes(32)), SIGNER))


def edit_rolled_back_checkpoint(directory: Path) -> None:
    (directory / "checkpoint").write_text(sign_checkpoint(Checkpoint(ORIGIN, 200, bytes(32)), SIGNER))


def edit_wrong_root(directory: Path) -> None:
    (directory / "checkpoint").write_text(sign_checkpoint(Checkpoint(ORIGIN, 299, bytes(32)), SIGNER))


def edit_stray_file(directory: Path) -> None:
    (directory / "tail" / "1.bak").touch()


def edit_stray_tile(directory: Path) -> None:
    (directory / "tile/entries/notes.txt").touch()


def edit_tail_of_a_bundle(directory: Path) -> None:
    shutil.copy(directory / "tile/entries/000", directory / "tail/0")


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (edit_shorten_tail, LogTruncated),
        (edit_flip_tail, LogDamaged),
        (edit_remove_tail, LogTruncated),
        (edit_remove_bundle, LogDamaged),
        (edit_remove_tile, LogTruncated),
        (edit_shorten_tile, LogDamaged),
        (edit_flip_tile, LogDamaged),
        (edit_remove_checkpoint, LogTruncated),
        (edit_flip_checkpoint, LogDamaged),
        (edit_garble_checkpoint, LogDamaged),
        (edit_forge_checkpoint, LogDamaged),
        (edit_future_checkpoint, LogTruncated),
        (edit_rolled_back_checkpoint, LogDamaged),
        (edit_wrong_root, LogDamaged),
        (edit_stray_file, LogDamaged),
        (edit_stray_tile, LogDamaged),
        (edit_tail_of_a_bundle, LogDamaged),
    ],
)
def test_a_tampered_store_is_refused_and_left_as_it_is(
    edit: Callable[[Path], None], error: type[LogError], tmp_path: Path
) -> None:
    filled(tmp_path, 300)
    edit(tmp_path)
    before = contents(tmp_path)
    with pytest.raises((error, LogTruncated) if edit is edit_remove_bundle else error) as caught:
        opened(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert contents(tmp_path) == before


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_gap_in_the_bundles_is_truncation(tmp_path: Path) -> None:
    filled(tmp_path, 900)
    (tmp_path / "tile/entries/001").unlink()
    with pytest.raises(LogTruncated, match="missing"):
        opened(tmp_path)


@pytest.mark.parametrize("count", [3, 266])
def test_a_tail_cut_anywhere_in_its_committed_part_is_refused(count: int, tmp_path: Path) -> None:
    filled(tmp_path, count)
    tail = tmp_path / "tail" / str(count // 256)
    data = tail.read_bytes()
    for cut in range(len(data)):
        tail.write_bytes(data[:cut])
        with pytest.raises(LogTruncated, match=f"checkpoint at {count}"):
            opened(tmp_path)
    tail.write_bytes(data)
    with opened(tmp_path) as log:
        assert log.size == count


def test_every_flipped_bit_of_tail_and_checkpoint_is_refused_at_opening(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    for path in (tmp_path / "tail" / "0", tmp_path / "checkpoint"):
        data = path.read_bytes()
        for position in range(len(data)):
            altered = bytearray(data)
            altered[position] ^= 1 << position % 8
            path.write_bytes(bytes(altered))
            with pytest.raises((LogDamaged, LogTruncated)):
                opened(tmp_path)
        path.write_bytes(data)
    with opened(tmp_path) as log:
        assert log.size == 3


def test_an_older_copy_of_the_whole_log_is_found_by_a_checkpoint_known_elsewhere(tmp_path: Path) -> None:
    filled(tmp_path / "log", 290)
    shutil.copytree(tmp_path / "log", tmp_path / "old")
    known = open_checkpoint(filled(tmp_path / "log", 300), [SIGNER.verifier])
    with opened(tmp_path / "log", known) as log:
        assert log.size == 300
    with pytest.raises(LogTruncated, match="older copy"):
        opened(tmp_path / "old", known)
    with opened(tmp_path / "old") as log:  # forgets what it had, and goes on differently
        log.append([raw(*(b"another history %d" % index for index in range(20)))])
    with pytest.raises(LogDamaged, match="differs"):
        opened(tmp_path / "old", known)
    with pytest.raises(LogDamaged, match="not the log"):
        opened(tmp_path / "log", Checkpoint("elsewhere", 1, bytes(32)))


def test_an_older_checkpoint_put_back_keeps_what_it_hides(tmp_path: Path) -> None:
    old = filled(tmp_path, 290)
    filled(tmp_path, 300)
    (tmp_path / "checkpoint").write_text(old)
    with opened(tmp_path) as log:
        assert log.recovery is not None
        assert log.recovery.first_index == 290
        assert b"entry 299" in log.recovery.kept[0].read_bytes()


# Files changed under the running log


def under_remove_tail(directory: Path) -> None:
    (directory / "tail/1").unlink()


def under_replace_tail(directory: Path) -> None:
    data = (directory / "tail/1").read_bytes()
    (directory / "tail/1").unlink()
    (directory / "tail/1").write_bytes(data)


def under_append_to_tail(directory: Path) -> None:
    with (directory / "tail/1").open("ab") as file:
        file.write(b"x")


def under_shorten_tail(directory: Path) -> None:
    edit_shorten_tail(directory)


def under_alter_tail_in_place(directory: Path) -> None:
    """The same file of the same size, with the time of its last writing put back."""
    alter_in_place(directory / "tail/1", b"other")


def under_alter_checkpoint_in_place(directory: Path) -> None:
    alter_in_place(directory / "checkpoint", b"other")


def alter_in_place(path: Path, data: bytes) -> None:
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:  # the kernel's clock ticks every few milliseconds
        with path.open("r+b") as file:
            file.write(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def under_remove_checkpoint(directory: Path) -> None:
    (directory / "checkpoint").unlink()


def under_replace_checkpoint(directory: Path) -> None:
    (directory / "checkpoint").write_text(sign_checkpoint(Checkpoint(ORIGIN, 1, bytes(32)), SIGNER))


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        under_remove_tail,
        under_replace_tail,
        under_append_to_tail,
        under_shorten_tail,
        under_alter_tail_in_place,
        under_alter_checkpoint_in_place,
        under_remove_checkpoint,
        under_replace_checkpoint,
    ],
)
def test_a_file_changed_under_the_running_log_stops_it(
    change: Callable[[Path], None], reopened: bool, tmp_path: Path
) -> None:
    with opened(tmp_path) as log:
        log.append([raw(*(b"entry %d" % index for index in range(260)))])
        if reopened:
            log.close()
            log = opened(tmp_path)  # noqa: PLW2901 - closed below
        else:
            log.append([raw(b"in the tail")])
        change(tmp_path)
        with pytest.raises(LogDamaged, match="changed by another program"):
            log.append([raw(b"more")])
        with pytest.raises(LogFailed, match="refuses"):
            log.append([raw(b"more")])
        log.close()


def test_a_lock_that_another_process_could_take_stops_it(tmp_path: Path) -> None:
    for another in (False, True):
        with opened(tmp_path) as log:
            (tmp_path / "lock").unlink()
            if another:
                (tmp_path / "other").touch()
                (tmp_path / "other").rename(tmp_path / "lock")
            with pytest.raises(LogDamaged, match="lock was removed or replaced"):
                log.append([raw(b"more")])


def test_a_bundle_changed_behind_its_tile_is_not_shown(tmp_path: Path) -> None:
    filled(tmp_path, 600)
    bundle = tmp_path / "tile/entries/000"
    bundle.write_bytes(bundle.read_bytes().replace(b"entry 77", b"entry 78", 1))
    with opened(tmp_path) as log:
        assert log.entry(300) == b"entry 300"
        with pytest.raises(LogDamaged, match="entry 77 "):
            log.entry(3)
