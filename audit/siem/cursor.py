"""How far one sink has got: a small file, replaced atomically after each batch that arrived.

It holds the last entry's leaf hash, so that a cursor beside another log, or beside one that was put back to an older
copy, is noticed. A lost file costs a delivery from the beginning, and nothing else: ids are idempotent.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec

from audit.errors import UNDECODABLE
from audit.siem.sink import SinkStopped

MAX_CURSOR_BYTES: Final = 4096
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`position`: the index of the next entry to send. `last`: leaf hash (hex) of the one before, if there is one."""

    origin: str
    position: Annotated[int, msgspec.Meta(ge=0, le=2**62)] = 0
    last: Digest | None = None
    quarantined: Annotated[int, msgspec.Meta(ge=0)] = 0


def is_sink_name(name: str) -> bool:
    """Names are parts of file names: lower-case letters, digits and hyphens."""
    return _NAME.fullmatch(name) is not None


def read_cursor(path: Path, origin: str) -> Cursor:
    """The cursor in the file, or one at the start where there is none. Raises SinkStopped for a damaged one."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CURSOR_BYTES + 1)
    except FileNotFoundError:
        return Cursor(origin)
    except OSError as error:
        raise SinkStopped(f"{path}: cannot be read ({error.strerror}); make it readable") from error
    try:
        cursor = msgspec.json.decode(data, type=Cursor)
    except UNDECODABLE as error:
        raise SinkStopped(f"{path}: is damaged; remove it to deliver the whole log again") from error
    if cursor.origin != origin:
        raise SinkStopped(f"{path}: belongs to the log {cursor.origin}; remove it to deliver this log from its start")
    if (cursor.position == 0) != (cursor.last is None):
        raise SinkStopped(f"{path}: is damaged; remove it to deliver the whole log again")
    return cursor
