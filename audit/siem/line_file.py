"""A file of lines, with rotation by size: for collectors that follow files, and for receivers that have no network.

A batch is written and synced before it counts as delivered. What a crash, a full disk or a failed sync left behind the
last batch that counted is cut off before the next one is written, or written again whole: readers may see lines twice
(each has its event id), but never half a line, and never two joined.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from audit.siem.document import Document
from audit.siem.formats import Line
from audit.siem.sink import Refusal, SinkAway
from audit.siem.turns import made

FILE_MODE: Final = 0o640  # records hold personal data: nothing for others; a group may be given to the collector
MAX_LINE_BYTES: Final = 1024 * 1024
_CHUNK: Final = 65_536


class LineFileSink:
    """`path` is the file that grows; `path.1` the newest full one, up to `path.<keep>`; older ones are deleted.

    A file is full once it holds `rotate_bytes`; a batch is never split, so it may be larger by one.
    """

    def __init__(self, name: str, path: Path, line: Line, rotate_bytes: int, keep: int) -> None:
        self._name = name
        self._path = path
        self._line = line
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._one_at_a_time = trio.Lock()
        self._thread = trio.CapacityLimiter(1)
        self._began = 0.0

    @property
    def name(self) -> str:
        return self._name

    async def deliver(self, batch: Sequence[Document]) -> Sequence[Refusal]:
        """See `Sink.deliver`."""
        data = b"".join(await made(self._ended_line, batch))
        async with self._one_at_a_time:
            if self._thread.borrowed_tokens:
                seconds = trio.current_time() - self._began
                raise SinkAway(f"{self._path}: its file system hangs: a write has not ended for {seconds:.0f} s")
            self._began = trio.current_time()
            # Where the file system hangs, the thread is left to it: neither a deadline nor our end waits for it. No
            # second one writes beside it: it holds its place in `_thread`, and the file's lock against another sink.
            await trio.to_thread.run_sync(self._write, data, abandon_on_cancel=True, limiter=self._thread)
        return []

    async def close(self) -> None:
        """Nothing is open between batches."""

    def _ended_line(self, document: Document) -> bytes:
        return self._line(document, MAX_LINE_BYTES) + b"\n"

    def _write(self, data: bytes) -> None:
        try:
            if not (self._appended(data) or self._appended(data)):
                raise SinkAway(f"{self._path}: another process fills it")
        except OSError as error:
            raise SinkAway(f"{self._path}: {error.strerror}") from None

    def _appended(self, data: bytes) -> bool:
        """Whether there was room; else the file is put aside, and the next one begins."""
        descriptor = self._open()
        try:
            end = _cut_to_whole_lines(descriptor)
            if end >= self._rotate_bytes:
                self._rotate()
                return False
            _append(descriptor, end, data)
        finally:
            os.close(descriptor)
        if end == 0:
            _sync_folder(self._path.parent)
        return True

    def _open(self) -> int:
        """The file, ours alone. A planted link or pipe is refused."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, FILE_MODE)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise SinkAway(f"{self._path}: is not a file")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SinkAway(f"{self._path}: another process writes it") from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _rotate(self) -> None:
        """From the oldest on, so that a crash in between loses no file but those beyond `keep`."""
        for number in range(self._keep - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        self._path.replace(self._numbered(1))
        _sync_folder(self._path.parent)

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _cut_to_whole_lines(descriptor: int) -> int:
    """Where the next line begins: behind the last line end. What a crash left behind it is cut off."""
    size = end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - _CHUNK)
        at = os.pread(descriptor, end - start, start).rfind(b"\n")
        if at >= 0:
            end = start + at + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
    return end


def _append(descriptor: int, end: int, data: bytes) -> None:
    """All of `data` behind `end`, on disk; or nothing of it, as far as the disk still obeys."""
    view, position = memoryview(data), end
    try:
        while view:
            written = os.pwrite(descriptor, view, position)
            position += written
            view = view[written:]
        os.fdatasync(descriptor)
    except OSError:
        try:
            # After a failed sync nobody knows what is on disk: the batch is written again, from here.
            os.ftruncate(descriptor, end)
        except OSError:
            pass  # the next batch cuts it, or writes over it
        raise


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
