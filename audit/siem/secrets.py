"""Files that hold a receiver's secret: of ours or root's, and closed to everybody else. Read anew at each connection,
so that a new secret needs no restart. What went wrong is told by the path, never by what the file holds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from audit.siem.sink import SinkAway

MAX_SECRET_BYTES: Final = 16 * 1024


@contextmanager
def opened_private(path: Path) -> Iterator[int]:
    """A descriptor of the file, checked after it was opened. Raises SinkAway: an operator can cure it."""
    try:
        # O_NONBLOCK: a pipe laid in its place is refused, and not waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SinkAway(f"{path}: cannot be opened ({error.strerror})") from None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SinkAway(f"{path}: is not a file")
        if found.st_uid not in (0, os.geteuid()):
            raise SinkAway(f"{path}: belongs to another user (chown it)")
        if found.st_mode & 0o077:
            raise SinkAway(f"{path}: others can read it (chmod 600)")
        yield descriptor
    finally:
        os.close(descriptor)


def read_secret(path: Path) -> str:
    """The file's text without white space around it. Raises SinkAway where it is missing, open to others or empty."""
    with opened_private(path) as descriptor:
        data = os.read(descriptor, MAX_SECRET_BYTES + 1)
    if len(data) > MAX_SECRET_BYTES:
        raise SinkAway(f"{path}: is too large for a secret")
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or not all(c.isprintable() or c == "\n" for c in text):
        raise SinkAway(f"{path}: does not hold a secret in printable ASCII")
    return text


def read_secret_line(path: Path) -> str:
    """The same of a file of one line: what goes into a header must not bring another one. Raises SinkAway."""
    text = read_secret(path)
    if "\n" in text:
        raise SinkAway(f"{path}: holds more than one line")
    return text
