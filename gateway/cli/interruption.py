"""What is true of a command that Ctrl-C ended, in one line."""

from __future__ import annotations

from typing import Final

EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

_asked: list[str] = []  # of this process: what a gateway or a relay was asked to change


def note_change_asked(whom: str) -> None:
    """Before a request that may change something leaves for `whom`."""
    _asked[:] = [whom]


def interrupted_line() -> str:
    """Files are written as a whole or not at all."""
    if _asked:
        return (
            f"sealane: interrupted; {_asked[0]} may have done what it was asked for, or go on with it: look before you "
            "ask again"
        )
    return "sealane: interrupted before its end; no file is left half-written"
