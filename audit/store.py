"""The log's files: what is durable when, and what is refused when read back.

    lock                 flock of the one process that has the log open
    checkpoint           the signed checkpoint: the only thing that says what is committed
    tail/<N>             the growing bundle N, append-only, framed as a bundle; several only while a commit
                         crosses bundles
    tile/…               full bundles and tiles (tiles.py): immutable from the moment they have their name
    cut/<I>-<hash>       what recovery cut off a tail: entries from index I that were never acknowledged
    pruned               what was pruned, and which record says so (pruned.py)
    pending              the next checkpoint or tile before its rename; worthless after a crash

The order of the fsyncs is in docs/audit-log.md. OSErrors pass through: `log.py` decides what they mean.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from audit import tiles
from audit.disk import Disk, lock
from audit.errors import LogDamaged, LogLocked, LogTruncated
from audit.pruned import FILE as PRUNED_FILE
from audit.pruned import Pruned, read_pruned
from audit.tiles import TILE_WIDTH

MAX_CHECKPOINT_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class _Tail:
    """The tail that grows: bundle `number`, whose file we have open. `written_ns`: when it was last changed, by us.

    By the file's ctime, which the kernel sets at each write: unlike mtime nobody can put it back.
    """

    number: int
    descriptor: int
    size: int
    written_ns: int

    @classmethod
    def now(cls, number: int, descriptor: int, size: int) -> Self:
        return cls(number, descriptor, size, os.fstat(descriptor).st_ctime_ns)


class Store:
    """Exclusive access to one log directory, created if it is missing."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.directory = directory
        self._disk = disk
        self._tail: _Tail | None = None
        self._checkpoint_identity: tuple[int, int, int] | None = None
        self._folder_known: set[Path] = set()
        self._lock = -1
        for name in (".", "tail", "tile", "tile/entries"):
            self._make_folder(directory / name)
        self._lock = _lock(directory)
        try:
            self.pruned = read_pruned(directory)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the log. Nothing is written: there is nothing left to write."""
        self._detach_tail()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # Writing, in the order of a commit

    def append(self, first_index: int, entries: Sequence[bytes]) -> None:
        """Append `entries`, the first of which has `first_index`, to the tails; durable on return."""
        position = 0
        while position < len(entries):
            number, filled = divmod(first_index + position, TILE_WIDTH)
            part = entries[position : position + TILE_WIDTH - filled]
            self._append_to_tail(number, b"".join(map(tiles.frame, part)), new=filled == 0)
            position += len(part)

    def write_checkpoint(self, text: str) -> None:
        """Replace the checkpoint, atomically; durable on return. This is the moment of commitment."""
        path = self.directory / "checkpoint"
        self._write_atomically(path, text.encode())
        self._checkpoint_identity = _identity(path)

    def seal(self, number: int, full_tiles: Mapping[PurePosixPath, bytes]) -> None:
        """Give the full, committed bundle `number` its final name, after the tiles that it completes.

        Idempotent up to its last rename, which is what says that it is done.
        """
        for path, tile in full_tiles.items():
            self._make_parents(path)
            self._write_atomically(self.directory / path, tile)
        path = tiles.bundle_path(number)
        self._make_parents(path)
        if self._tail is not None and self._tail.number == number:
            self._detach_tail()
        self._disk.rename(self._tail_path(number), self.directory / path)
        self._disk.sync_folder((self.directory / path).parent)
        self._disk.sync_folder(self.directory / "tail")

    def cut_tail(self, number: int, keep_bytes: int, first_index: int) -> Path | None:
        """Cut tail `number` to `keep_bytes`; what is cut is kept as evidence in the file that is returned.

        An older checkpoint put back by someone looks like an interrupted commit: the evidence tells.
        """
        path = self._tail_path(number)
        kept = self._keep_aside(path.read_bytes()[keep_bytes:], first_index)
        if keep_bytes == 0:
            self._disk.remove(path)
            self._disk.sync_folder(path.parent)
            return kept
        descriptor = self._disk.open_tail(path)
        try:
            self._disk.truncate(descriptor, keep_bytes)
            self._disk.sync_data(descriptor)
        finally:
            os.close(descriptor)
        return kept

    def attach_tail(self, number: int, size_bytes: int) -> None:
        """Continue tail `number`, which was read as `size_bytes` long. Raises LogDamaged if it is not."""
        self._tail = _Tail.now(number, self._disk.open_tail(self._tail_path(number)), size_bytes)
        self._require_tail_untouched()

    def write_pruned(self, pruned: Pruned) -> None:
        """From now on bundles below its floor may be missing; durable on return."""
        self._write_atomically(self.directory / PRUNED_FILE, pruned.encode())
        self.pruned = pruned

    def left_over(self) -> Iterator[int]:
        """Bundles below the floor that are still here."""
        return (number for number in self._numbers("entries") if number < self.pruned.bundles)

    def remove_pruned(self, numbers: Sequence[int] | None = None) -> None:
        """Remove what is left over, or only these of it, the oldest first."""
        folders = set()
        for number in sorted(self.left_over() if numbers is None else numbers):
            if number >= self.pruned.bundles:
                raise LogDamaged(f"bundle {number} of {self.directory} was not pruned")
            path = self.directory / tiles.bundle_path(number)
            self._disk.remove(path)
            folders.add(path.parent)
        for folder in sorted(folders):
            self._disk.sync_folder(folder)

    def require_untouched(self) -> None:
        """Refuse to go on where someone removed, replaced or changed a file under the running log.

        Raises LogDamaged. Without this, appends would go on into a file that no longer has a name.
        """
        if _identity(self.directory / "checkpoint") != self._checkpoint_identity:
            raise LogDamaged(f"{self.directory}/checkpoint was changed by another program; restore it")
        lock = _status(self.directory / "lock")
        if lock is None or lock.st_ino != os.fstat(self._lock).st_ino:
            # Another process could take the lock's new file, and two would write one log.
            raise LogDamaged(f"{self.directory}/lock was removed or replaced; stop whoever else writes this log")
        self._require_tail_untouched()

    # Reading

    def read_checkpoint(self) -> str | None:
        """The checkpoint's text, or None if this log was never begun. Raises LogDamaged, LogTruncated."""
        path = self.directory / "checkpoint"
        try:
            with path.open("rb") as file:
                data = file.read(MAX_CHECKPOINT_FILE_BYTES + 1)
        except FileNotFoundError:
            if self._tail_numbers() or any(self._numbers("entries")) or any(self._numbers("0")):
                raise LogTruncated(f"{path} is missing beside the log's entries; restore it") from None
            return None
        self._checkpoint_identity = _identity(path)
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise LogDamaged(f"{path} is not text; restore it") from None

    def sealed_bundles(self) -> int:
        """How many full bundles there are. Raises LogTruncated for a gap, or for a missing tile of theirs."""
        sealed = self._contiguous("entries", self.pruned.bundles)
        level, expected = 0, sealed
        while expected:
            if self._contiguous(str(level)) < expected:
                raise LogTruncated(f"hash tiles are missing in {self.directory}/tile/{level}; restore them")
            level, expected = level + 1, expected // TILE_WIDTH
        return sealed

    def tails(self) -> dict[int, bytes]:
        """The contents of all tails, by bundle number."""
        return {number: self._tail_path(number).read_bytes() for number in self._tail_numbers()}

    def read_tile(self, level: int, number: int) -> tuple[bytes, ...]:
        """The 256 hashes of a full tile. Raises LogTruncated, LogDamaged."""
        path = self.directory / tiles.tile_path(level, number)
        data = _read(path)
        if len(data) != tiles.TILE_BYTES:
            raise LogDamaged(f"{path} is not a full tile; restore it")
        return tiles.split_tile(data)

    def read_bundle(self, number: int) -> list[bytes]:
        """The 256 entries of a full bundle. Raises LogTruncated, LogDamaged; EntryPruned if no archive is at hand."""
        path = self.directory / tiles.bundle_path(number)
        if number < self.pruned.bundles:
            return self.pruned.read_bundle(number)
        data = _read(path)
        entries, used = tiles.unframe(data)
        if used != len(data) or len(entries) != TILE_WIDTH:
            raise LogDamaged(f"{path} is not a full bundle; restore it")
        return entries

    # The parts

    def _append_to_tail(self, number: int, data: bytes, *, new: bool) -> None:
        path = self._tail_path(number)
        if new:
            self._detach_tail()
            self._tail = _Tail.now(number, self._disk.create(path), 0)
        tail = self._tail
        assert tail is not None
        assert tail.number == number
        self._disk.write(tail.descriptor, data)
        self._disk.sync_data(tail.descriptor)
        if new:
            self._disk.sync_folder(path.parent)
        self._tail = _Tail.now(number, tail.descriptor, tail.size + len(data))

    def _detach_tail(self) -> None:
        if self._tail is not None:
            os.close(self._tail.descriptor)
            self._tail = None

    def _require_tail_untouched(self) -> None:
        if self._tail is None:
            return
        tail, path = self._tail, self._tail_path(self._tail.number)
        ours, named = os.fstat(tail.descriptor), _status(path)
        was = (ours.st_ino, tail.size, tail.written_ns)
        if named is None or (named.st_ino, named.st_size, named.st_ctime_ns) != was:
            raise LogDamaged(f"{path} was changed by another program; restore it")

    def _keep_aside(self, surplus: bytes, first_index: int) -> Path | None:
        if not surplus:
            return None
        self._make_folder(self.directory / "cut")
        kept = self.directory / "cut" / f"{first_index}-{hashlib.sha256(surplus).hexdigest()[:16]}"
        self._write_atomically(kept, surplus)
        return kept

    def _write_atomically(self, path: Path, data: bytes) -> None:
        pending = self.directory / "pending"
        descriptor = self._disk.overwrite(pending)
        try:
            self._disk.write(descriptor, data)
            self._disk.sync_data(descriptor)
        finally:
            os.close(descriptor)
        self._disk.rename(pending, path)
        self._disk.sync_folder(path.parent)

    def _make_parents(self, path: PurePosixPath) -> None:
        for parent in reversed(path.parents[:-1]):
            self._make_folder(self.directory / parent)

    def _make_folder(self, path: Path) -> None:
        if path not in self._folder_known:
            self._disk.make_folder(path)
            self._disk.sync_folder(path.parent)
            self._folder_known.add(path)

    def _tail_path(self, number: int) -> Path:
        return self.directory / "tail" / str(number)

    def _tail_numbers(self) -> list[int]:
        names = [path.name for path in (self.directory / "tail").iterdir()]
        if odd := [name for name in names if not (name.isascii() and name.isdecimal())]:
            raise LogDamaged(f"{self.directory}/tail/{odd[0]} is not ours; move it out of the log")
        return sorted(map(int, names))

    def _contiguous(self, folder: str, start: int = 0) -> int:
        """How many files there are in `folder`, all from `start` on being there; those before it count as there."""
        count, highest = 0, start - 1
        for number in self._numbers(folder):
            if number >= start:
                count += 1
                highest = max(highest, number)
        if highest != start + count - 1:
            raise LogTruncated(f"files are missing in {self.directory}/tile/{folder}; restore them")
        return start + count

    def _numbers(self, folder: str) -> Iterator[int]:
        top = self.directory / "tile" / folder
        folders, prefix = [str(top)] if top.is_dir() else [], len(str(top)) + 1
        while folders:
            for entry in list(os.scandir(folders.pop())):  # a list: closes the folder at once
                if entry.is_dir(follow_symlinks=False):
                    if not entry.name.endswith(".p"):  # partial tiles, if someone serves them from here
                        folders.append(entry.path)
                    continue
                number = tiles.parse_number_text(entry.path[prefix:])
                if number is None or not entry.is_file(follow_symlinks=False):
                    raise LogDamaged(f"{entry.path} is not ours; move it out of the log")
                yield number


def _lock(directory: Path) -> int:
    try:
        return lock(directory / "lock")
    except BlockingIOError:
        raise LogLocked(f"the log {directory} is open in another process; stop that one first") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LogTruncated(f"{path} is missing; restore it") from None


def _identity(path: Path) -> tuple[int, int, int] | None:
    status = _status(path)
    return None if status is None else (status.st_ino, status.st_size, status.st_ctime_ns)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
