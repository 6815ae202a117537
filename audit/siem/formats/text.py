"""What all formats need to be one line: ASCII JSON, and values without control characters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec

MAX_VALUE: Final = 1023
"""Characters of a value in CEF and LEEF: what ArcSight's dictionary gives most text fields."""

# C0, DEL, C1, the line and paragraph separators, and what reorders text on a screen (bidirectional controls): none of
# them may reach a terminal, a line-oriented collector or an analyst's eye as what it is.
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_NOT_ASCII: Final = re.compile("[^\x00-\x7e]")


def ascii_json(value: Any) -> bytes:
    """JSON with nothing but printable ASCII in it: see `as_ascii`."""
    return as_ascii(msgspec.json.encode(value))


def as_ascii(json: bytes) -> bytes:
    """The same JSON value in printable ASCII: no line can be forged in it, and no byte order mark is needed.

    JSON encoders write C0 controls as escapes already; all else that is not ASCII, and DEL, stands in strings only.
    """
    if json.isascii() and b"\x7f" not in json:
        return json
    return _NOT_ASCII.sub(_escape, json.decode()).encode("ascii")


def printable(text: str, limit: int = MAX_VALUE) -> str:
    """`text` as one line: each control character is one space, and a text over `limit` characters ends in `…`."""
    if not (text.isascii() and text.isprintable()):
        text = _UNPRINTABLE.sub(" ", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def milliseconds(timestamp: str) -> int:
    """Since the epoch, of a document's `@timestamp`."""
    return int(datetime.fromisoformat(timestamp).timestamp() * 1000)


def joined(values: Any) -> str | None:
    """A list as one value; None for what is no list or empty."""
    return ",".join(values) if isinstance(values, list) and values else None


def member(body: Mapping[str, Any], *path: str) -> Any:
    """What stands at `path`, or None."""
    found: Any = body
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 | code >> 10:04x}\\u{0xDC00 | code & 0x3FF:04x}"
