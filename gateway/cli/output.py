"""How a command speaks: human output on stdout, errors as one line on stderr, JSON as the last line."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from gateway.cli.errors import CommandError
from gateway.cli.terminal import harmless

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPED_WIDTH = 240
_JSON_ASKED = "sealane.json"


def console(*, stderr: bool = False) -> Console:
    """A console on which a plain string is never markup, an emoji code or something to highlight.

    Wide where it is piped, so that nothing is cut or folded for `grep`.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPED_WIDTH
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def print_table(table: Table) -> None:
    """A table on stdout. Cells fold rather than lose their end."""
    for column in table.columns:
        column.overflow = "fold"
    console().print(table)


def say(text: str) -> None:
    """One line for a person, harmless whoever wrote its parts."""
    sys.stdout.write(harmless(text, limit=2000) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """One line beside what is asked for: on stderr, harmless as `say` has it; with --json stdout is for the object."""
    sys.stderr.write(harmless(text, limit=4000) + "\n")
    sys.stderr.flush()


def print_json(document: Mapping[str, Any]) -> None:
    """One JSON object on one line, in ASCII: raw C1 or bidirectional characters never reach a terminal."""
    text = json.dumps(document, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")
    sys.stdout.flush()


def print_error(error: CommandError, *, as_json: bool) -> None:
    """The error's line on stderr; with `--json` also its object on stdout, so that a program finds one."""
    sys.stderr.write(error.line() + "\n")
    sys.stderr.flush()
    if as_json:
        print_json(error.document())


def remember_json(context: typer.Context, value: bool) -> bool:
    """Callback of every `--json`: the edge that turns an error into words must know of it."""
    context.meta[_JSON_ASKED] = value
    return value


def json_asked(context: typer.Context) -> bool:
    """Was `--json` given to the command that ran?"""
    return bool(context.meta.get(_JSON_ASKED, False))
