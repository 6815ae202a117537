"""Text from a server, a log or a file name, made harmless in a terminal.

A VM name or a reason is written by whoever asked for a migration and read by an auditor: escape
sequences in it could clear the screen, retitle the window, answer on the reader's behalf or hide a
record; bidirectional overrides could make a name read as another. Nothing is dropped silently: what
cannot be shown is written out (`\\x1b`), so that two different names never look the same by it.
"""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

# Cc: C0, DEL and C1 (a UTF-8 terminal obeys U+009B as CSI). Cf: bidirectional overrides and invisible
# characters. Cs: lone surrogates, which cannot be encoded. Co, Cn: no agreed shape. Zl, Zp: line breaks.
_UNSHOWABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
ELLIPSIS = "…"


def harmless(value: object, limit: int = 400) -> str:
    """One line of at most `limit` characters without a control, format or unassigned character."""
    text = str(value)
    shown = "".join(_shown(character) for character in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + ELLIPSIS


def plain(value: object, style: str = "", limit: int = 400) -> Text:
    """`harmless` text for rich: a Text, in which `[bold]` or `[link=…]` is never markup."""
    from rich.text import Text

    return Text(harmless(value, limit), style=style)


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _UNSHOWABLE:
        return character
    point = ord(character)
    if point <= 0xFF:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"
