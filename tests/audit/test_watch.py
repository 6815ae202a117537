"""Whoever deletes, shortens or alters an old file of a log is noticed; whoever only appends is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from audit.errors import LogDamaged, LogError, LogTruncated
from audit.log import Log
from audit.watch import MAX_FRESH, Watch
from tests.audit.disks import FastDisk
from tests.audit.samples import SIGNER, raw

BUNDLES = 258  # a full tile of level 1, and two bundles beyond it


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pristine") / "log"
    grow(directory, BUNDLES * 256 + 5)
    return directory


def grow(directory: Path, size: int) -> None:
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        while log.size < size:
            log.append([raw(*(f"entry {log.size + n}".encode() for n in range(min(4096, size - log.size))))])
        log.append([raw(b"seals what is full")])


@pytest.fixture
def directory(pristine: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "log"
    for path in sorted(pristine.rglob("*")):  # hard links would let a test alter the pristine one
        target = copy / path.relative_to(pristine)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            target.write_bytes(path.read_bytes())
    return copy


def size_of(directory: Path) -> int:
    return int((directory / "checkpoint").read_text().split("\n")[1])


@pytest.fixture
def watch(directory: Path, sizes: list[int]) -> Watch:
    return Watch(directory, sizes)


@pytest.fixture(scope="module")
def sizes(pristine: Path) -> list[int]:
    learning = Watch(pristine)
    for _ in range(BUNDLES // MAX_FRESH + 1):
        learning.check_slice(size_of(pristine), 1)
    assert len(learning.sizes) == BUNDLES
    return learning.sizes


def test_an_untouched_log_passes_however_it_is_sliced(watch: Watch, directory: Path) -> None:
    watch.check_all()
    for slices in (1, 7, 30, 10_000):
        for _ in range(min(slices, 40) + 1):
            watch.check_slice(size_of(directory), slices)


def delete(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


FILES = ["tile/entries/000", "tile/entries/255", "tile/entries/257", "tile/0/000", "tile/0/257", "tile/1/000"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", [delete, shorten, lengthen, replace_by_link])
def test_a_file_that_went_or_changed_its_size_is_noticed_within_one_round(
    watch: Watch, directory: Path, name: str, how: object
) -> None:
    how(directory / name)  # type: ignore[operator]
    with pytest.raises(LogTruncated, match=name):
        watch.check_all()
    with pytest.raises(LogTruncated, match=name):
        for _ in range(30):
            watch.check_slice(size_of(directory), 30)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_altered_in_place_is_found_by_reading_round(watch: Watch, directory: Path, name: str) -> None:
    data = bytearray((directory / name).read_bytes())
    data[-1] ^= 1
    (directory / name).write_bytes(data)
    watch.check_all()  # names and sizes are as they were
    with pytest.raises(LogDamaged, match="restore it"):
        for _ in range(BUNDLES):
            watch.check_slice(size_of(directory), 30)


def test_what_is_new_is_read_before_it_is_relied_on(directory: Path, sizes: list[int]) -> None:
    shorten(directory / "tile/entries/100")
    known_before, unknown = Watch(directory, sizes[:100]), Watch(directory)
    known_before.check_all()
    for watch in (known_before, unknown):
        with pytest.raises(LogError, match="tile/entries/100"):
            for _ in range(BUNDLES // MAX_FRESH + 1):
                watch.check_slice(size_of(directory), 1)
        assert len(watch.sizes) == 100


def test_a_full_bundle_that_still_stands_in_the_tail_is_waited_for(tmp_path: Path) -> None:
    with Log.open(tmp_path / "log", SIGNER, disk=FastDisk()) as log:
        log.append([raw(*(b"x" for _ in range(256)))])
        watch = Watch(tmp_path / "log")
        watch.check_slice(log.size, 1)
        assert len(watch.sizes) == 0
        log.append([raw(b"seals")])
        watch.check_slice(log.size, 1)
        assert len(watch.sizes) == 1
    delete(tmp_path / "log" / "tile/entries/000")
    with pytest.raises(LogTruncated):
        Watch(tmp_path / "log").check_slice(257, 1)
