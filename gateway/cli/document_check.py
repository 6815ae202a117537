"""`sealane audit verify-document`: one document from a SIEM, by the log's key alone."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.options import JsonOption
from gateway.cli.output import console, print_json, say
from gateway.cli.serve import needs_gateway_extra
from gateway.cli.terminal import plain

_STYLES = {"verified": "bold green", "unproven": "bold yellow", "refused": "bold red"}


def verify_document_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The document, a search hit, or a line; - for stdin.")],
    key: Annotated[
        list[str],
        typer.Option("--key", metavar="FILE|VKEY", help="Verifier key of the log, from a place that you trust."),
    ],
    log: Annotated[
        Path | None,
        typer.Option("--log", metavar="DIR", help="The log's folder, or a copy: proves also that it is in there."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check one document that a SIEM returned: signed by the log, and no field of it changed.

    A document of Elasticsearch or of a file, or one line in any format (entry, OCSF, CEF, LEEF), a syslog header before
    it or not. Needs the key and nothing else. Only with --log can it say that the log has the entry, and check permit
    entries and documents from which fields were withheld. Exits 0 if it is verified, 1 if it is refused or cannot be
    proven.

    \b
    Examples:
      sealane audit verify-document hit.json --key log.vkey
      curl … | jq '.hits.hits[0]' | sealane audit verify-document - --key log.vkey --json
    """
    from gateway.cli.verification import read_keys

    with needs_gateway_extra():
        from audit.siem.verify_document import MAX_DOCUMENT_BYTES
        from audit.siem.verify_line import verify_stored
    from audit.verify_tree import read_vkey

    try:
        keys = [read_vkey(each) for each in read_keys(key)]
    except ValueError as error:
        raise BadConfiguration(f"--key: {error}", REQUESTER, "name the log's log.vkey") from error
    try:
        data = sys.stdin.buffer.read(MAX_DOCUMENT_BYTES) if str(file) == "-" else _read(file, MAX_DOCUMENT_BYTES)
    except OSError as error:
        raise BadConfiguration(f"{file} cannot be read: {error.strerror}", REQUESTER, "name a file") from error
    verdict = verify_stored(data, keys, None if log is None else _entry_of(log))
    if as_json:
        document: dict[str, Any] = {"outcome": verdict.outcome, "index": verdict.index, "origin": verdict.origin}
        document |= {"in_log": verdict.in_log, "faults": verdict.faults, "unproven": verdict.unproven}
        print_json({**document, "record": verdict.record})
    else:
        where = "" if verdict.index is None else f"entry {verdict.index} of {verdict.origin}"
        console().print(plain(verdict.outcome.upper(), _STYLES[verdict.outcome]), plain(where))
        for line in (*verdict.faults, *verdict.unproven):
            say(f"  {line}")
        if verdict.outcome == "verified" and not verdict.in_log:
            say("  signed by the log's key, every field as signed; whether the log has it, --log would tell")
    raise typer.Exit(0 if verdict.outcome == "verified" else 1)


def _entry_of(directory: Path) -> Callable[[int], bytes]:
    from audit.reader import LogReader

    if not directory.is_dir():
        raise BadConfiguration(f"{directory} is not a folder", REQUESTER, "name the folder of a log")
    return LogReader(directory).entry


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit)
