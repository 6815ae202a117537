"""What is true of a command that Ctrl-C ended, in one line."""

from __future__ import annotations

from typing import Final

EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

# Commands that write no file here and ask no gateway for a change, by their words after `sealane`.
READING: Final = frozenset(
    {
        "audit fields",
        "audit index check",
        "audit migration",
        "audit query",
        "audit show",
        "audit tail",
        "audit verify",
        "audit verify-document",
        "audit who-moved",
        "break-glass list",
        "certs check",
        "certs rollover status",
        "certs show",
        "directory check",
        "doctor",
        "evacuation status",
        "hosts",
        "inventory check",
        "inventory show",
        "migration show",
        "policy check",
        "policy diff",
        "policy explain",
        "policy replay",
        "policy status",
        "policy test",
        "relay metrics",
        "relay status",
        "siem quarantine",
        "siem status",
        "vms",
        "whoami",
    }
)

_asked: list[str] = []  # of this process: what a gateway or a relay was asked to change


def note_change_asked(whom: str) -> None:
    """Before a request that may change something leaves for `whom`."""
    _asked[:] = [whom]


def interrupted_line(command: str) -> str:
    """`command`: its words after `sealane`."""
    if _asked:
        return (
            f"sealane: interrupted; {_asked[0]} may have done what it was asked for, or go on with it: look before you "
            "ask again"
        )
    if command in READING:
        return "sealane: interrupted; nothing was changed"
    return "sealane: interrupted before its end; no file is left half-written: run it again"
