"""Disks that forget and fail: what a machine without power, or a full one, leaves behind.

`FaultyDisk` counts every change of the disk as a step and stops at one of them. After a cut, `lose` takes back
what was not yet made durable: bytes written without fdatasync, names without an fsync of their folder.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from audit.disk import Disk


class PowerCut(BaseException):
    """The machine is off. Not an Exception: nothing may handle it."""


class Loss(Enum):
    """What of the changes that were not synced is gone after the cut."""

    NOTHING = "nothing"  # as after kill -9
    DATA = "data"
    NAMES = "names"
    ALL = "all"


class FastDisk(Disk):
    """A disk without the wait for fsync."""

    def sync_data(self, descriptor: int) -> None:
        pass

    def sync_folder(self, path: Path) -> None:
        pass


@dataclass(slots=True)
class _File:
    """What was done to a file since its last fdatasync. `descriptor` is ours: names may move meanwhile."""

    descriptor: int
    undo: list[Callable[[int], object]] = field(default_factory=list)


class FaultyDisk(FastDisk):
    """Stops before step `stop_at`, with a PowerCut or `error`; a write at that step is `torn` in the middle."""

    def __init__(self, stop_at: int | None = None, *, torn: bool = False, error: OSError | None = None) -> None:
        self.steps = 0
        self.writes: list[int] = []
        self._stop_at, self._torn, self._error = stop_at, torn, error
        self._files: dict[int, _File] = {}  # by inode
        self._names: list[tuple[Path, Callable[[], object]]] = []  # (folder, how to undo)

    def lose(self, loss: Loss) -> None:
        for inode in list(self._files):
            self._forget(inode, undo=loss in {Loss.DATA, Loss.ALL})
        for _, undo in reversed(self._names):
            if loss in {Loss.NAMES, Loss.ALL}:
                undo()
        self._names.clear()

    def make_folder(self, path: Path) -> None:
        self._step()
        if not path.exists():
            super().make_folder(path)
            self._names.append((path.parent, path.rmdir))

    def create(self, path: Path) -> int:
        self._step()
        descriptor = super().create(path)
        self._names.append((path.parent, path.unlink))
        return descriptor

    def overwrite(self, path: Path) -> int:
        self._step()
        return super().overwrite(path)

    def write(self, descriptor: int, data: bytes) -> None:
        self.writes.append(self.steps + 1)
        size = os.fstat(descriptor).st_size
        self._file(descriptor).undo.append(lambda spare: os.ftruncate(spare, size))
        if self.steps + 1 == self._stop_at and self._torn:
            super().write(descriptor, data[: len(data) // 2])
        self._step()
        super().write(descriptor, data)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        self._step()
        cut = Path(f"/proc/self/fd/{descriptor}").read_bytes()[size_bytes:]
        super().truncate(descriptor, size_bytes)
        self._file(descriptor).undo.append(lambda spare: os.write(spare, cut))

    def sync_data(self, descriptor: int) -> None:
        self._step()
        self._forget(os.fstat(descriptor).st_ino, undo=False)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        before = target.read_bytes() if target.exists() else None
        super().rename(source, target)

        def undo() -> None:
            target.rename(source)
            if before is not None:
                target.write_bytes(before)

        self._names.append((target.parent, undo))

    def remove(self, path: Path) -> None:
        self._step()
        before = path.read_bytes()
        super().remove(path)
        self._names.append((path.parent, lambda: path.write_bytes(before)))

    def sync_folder(self, path: Path) -> None:
        self._step()
        self._names = [(folder, undo) for folder, undo in self._names if folder != path]

    def _step(self) -> None:
        self.steps += 1
        if self.steps == self._stop_at:
            raise self._error or PowerCut

    def _file(self, descriptor: int) -> _File:
        inode = os.fstat(descriptor).st_ino
        if inode not in self._files:
            self._files[inode] = _File(os.dup(descriptor))
        return self._files[inode]

    def _forget(self, inode: int, *, undo: bool) -> None:
        file = self._files.pop(inode, None)
        if file is None:
            return
        if undo:
            for step in reversed(file.undo):
                step(file.descriptor)
        os.close(file.descriptor)


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def input_output_error() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))
