"""Whether files were changed by whoever else writes them: by inode, size and times, which a rename changes at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from certs.files import is_folder

Marks = tuple[tuple[str, int, int, int, int], ...]


def marks_of(paths: Iterable[Path]) -> Marks:
    """Of each file, or of each file in a folder; one that is not there has marks of its own. To compare, no more."""
    return tuple(_mark(file) for path in paths for file in _files(path))


def _files(path: Path) -> list[Path]:
    return [path, *sorted(path.glob("*.pem"))] if is_folder(path) else [path]


def _mark(path: Path) -> tuple[str, int, int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return str(path), 0, 0, 0, 0
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
