"""The file operations that the log is made of, each one a point at which the machine can die.

Everything that changes the disk passes through a `Disk`; tests replace it to fail, or to cut the power,
before, in and after every one of these calls. Errors are the OSErrors of the system.
"""

import fcntl
import os
from pathlib import Path

FILE_MODE = 0o640  # records hold personal data: nothing for others; a group may be given to auditors
FOLDER_MODE = 0o750

_FLAGS = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW  # a planted link must not make us write elsewhere


def lock(path: Path | str, mode: int = FILE_MODE) -> int:
    """Take the lock that the file is; made if it is missing. It lasts until the descriptor that is returned is closed.

    Raises BlockingIOError while another process, or another descriptor of ours, has it; OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class Disk:
    """The real file system."""

    def make_folder(self, path: Path) -> None:
        """Create `path` if it is missing. Durable after `sync_folder` of its parent."""
        path.mkdir(mode=FOLDER_MODE, exist_ok=True)

    def create(self, path: Path) -> int:
        """Create `path`, which must not exist, for appending; returns the descriptor."""
        return os.open(path, _FLAGS | os.O_APPEND | os.O_CREAT | os.O_EXCL, FILE_MODE)

    def overwrite(self, path: Path) -> int:
        """Create or empty `path` for appending; returns the descriptor."""
        return os.open(path, _FLAGS | os.O_APPEND | os.O_CREAT | os.O_TRUNC, FILE_MODE)

    def open_tail(self, path: Path) -> int:
        """Open the existing `path` for appending; returns the descriptor."""
        return os.open(path, _FLAGS | os.O_APPEND)

    def write(self, descriptor: int, data: bytes) -> None:
        """Append all of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync_data(self, descriptor: int) -> None:
        """Make a file's contents and length durable."""
        os.fdatasync(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cut a file to `size_bytes`. Durable after `sync_data`."""
        os.ftruncate(descriptor, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        """Move `source` over `target`, atomically. Durable after `sync_folder` of both parents."""
        source.rename(target)

    def remove(self, path: Path) -> None:
        """Remove a file. Durable after `sync_folder` of its parent."""
        path.unlink()

    def sync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
