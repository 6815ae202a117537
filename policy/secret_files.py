"""Files that hold a secret: on one line (a password, a token of an API), or a Kerberos keytab."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

MAX_SECRET_BYTES: Final = 4096
MAX_KEYTAB_BYTES: Final = 65_536


def read_secret_line(path: Path) -> str:
    """The secret. Raises OSError, or ValueError saying what is wrong with the file; never with its content."""
    data = _read_private(path, MAX_SECRET_BYTES)
    try:
        secret = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    # An empty password is an anonymous bind that *succeeds* (RFC 4513, 5.1.2).
    if not secret or len(data) > MAX_SECRET_BYTES or not secret.isprintable():
        raise ValueError("must hold the secret on one line")
    return secret


def read_keytab(path: Path) -> bytes:
    """A Kerberos keytab of format 2, whole. Raises as read_secret_line does."""
    data = _read_private(path, MAX_KEYTAB_BYTES)
    if not data.startswith(b"\x05\x02") or len(data) <= 2 or len(data) > MAX_KEYTAB_BYTES:
        raise ValueError("is no Kerberos keytab with a key in it")
    return data


def _read_private(path: Path, limit: int) -> bytes:
    """At most one byte more than `limit`. Checks and reads one open file, so that nothing can be put in its place."""
    # O_NONBLOCK: a FIFO under that name must not hang the start.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o077:
            raise ValueError("others may read it: chown it to the user who runs the gateway, and chmod 600")
        return file.read(limit + 1)
