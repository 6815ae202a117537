"""`sealane audit prove`: records, and what proves them, in one file that verifies years later without us."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.audit_options import LogOption
from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.log_folder import require_one
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import print_json, say
from gateway.cli.record_question import Question
from gateway.cli.waiting import working


def prove(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it: a new file.")],
    indices: Annotated[
        list[int] | None, typer.Argument(metavar="[N]…", min=0, help="Entries to prove one by one.", show_default=False)
    ] = None,
    query: Annotated[
        str | None,
        typer.Option("--query", metavar="QUERY", help="Prove every entry of a range, and with it all that match."),
    ] = None,
    timezone: Annotated[str | None, typer.Option("--timezone", metavar="NAME", help="Of times in QUERY.")] = None,
    start: Annotated[int | None, typer.Option("--from", metavar="N", min=0, help="First entry of the range.")] = None,
    end: Annotated[
        int | None, typer.Option("--to", metavar="N", min=1, help="The range ends before this entry. Default: the end.")
    ] = None,
    hide: Annotated[
        bool,
        typer.Option(
            "--hide",
            help="Give entries that do not match as their hash alone. Then it is your word that they do not match.",
        ),
    ] = False,
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="DIR", help="Add the policy bundle that decided, for people.")
    ] = None,
    certificates: Annotated[
        Path | None, typer.Option("--certificates", metavar="FILE", help="Add certificates (PEM) for people.")
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option("--key", metavar="FILE|VKEY", help="Add the log's key, for people. Repeat it.")
    ] = None,
    log: LogOption = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a proof of records, which `sealane audit verify FILE` checks offline, without us and without the log.

    With numbers: that these entries are in the log. With --query or --from: that nothing was left out of the range.

    \b
    Examples:
      sealane audit prove 1042 1043 --out moved.proof
      sealane audit prove --query 'vm:web-1 outcome:denied' --from 0 --out denied.proof --log /var/lib/sealane/log
      sealane audit verify denied.proof --key log.vkey
    """
    from audit.export import Reference, Sealed
    from gateway.cli.proving import audit_errors, lines_of, sealed_folder, sealed_gateway, write_bundle
    from gateway.cli.record_source import connected
    from gateway.cli.verification import read_keys

    is_range = query is not None or start is not None or end is not None
    if is_range == bool(indices):
        raise BadConfiguration("give entries to prove, or a range", REQUESTER, "N… or --query, --from and --to")
    if hide and query is None:
        raise BadConfiguration("--hide needs --query", REQUESTER, "say what is to be shown")
    reference = Reference(
        read_keys(key or []),
        certificates.read_text(encoding="ascii") if certificates is not None else "",
        _policy_files(policy) if policy is not None else None,
    )
    bounds = (start or 0, end) if is_range else None
    question = Question({}, query or "", timezone)

    def write(sealed: Sealed) -> None:
        with audit_errors(), working("looking for the entries and their proofs"):
            write_bundle(
                out, lines_of(replace(sealed, reference=reference), indices or [], bounds, question, hide=hide)
            )
        document = {"outcome": "written", "file": str(out), "origin": sealed.origin, "size": sealed.tree.size}
        if as_json:
            print_json(document)
        else:
            say(f"{out} proves entries of {sealed.origin} at size {sealed.tree.size}")

    require_one(log, gateway)
    if log is not None:
        write(sealed_folder(log))
    else:
        with connected(gateway, ca, token_file) as client:
            write(sealed_gateway(client))


def _policy_files(directory: Path) -> dict[str, str]:
    from policy.bundle_files import read_bundle_files
    from policy.errors import BundleRefused

    try:
        return read_bundle_files(directory)
    except BundleRefused as error:
        raise BadConfiguration(f"--policy: {error}", REQUESTER, "name the folder of the bundle") from error
