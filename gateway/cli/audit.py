"""`sealane audit`: prove the log, and read it."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gateway.cli import audit_archive, audit_index, audit_prove, audit_prune, audit_query, audit_stories
from gateway.cli.audit_options import (
    ActorOption,
    HostOption,
    KindOption,
    LogOption,
    MigrationOption,
    OutcomeOption,
    VmOption,
    terms_of,
)
from gateway.cli.audit_query import MAX_RECORDS
from gateway.cli.errors import REQUESTER, BadConfiguration, CommandError
from gateway.cli.follow import Lull
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import console, note, print_json

if TYPE_CHECKING:
    from gateway.cli.record_source import RecordSource

FOLLOW_SECONDS = 2.0

app = typer.Typer(help="The audit log: prove it, search it, read it.", no_args_is_help=True, rich_markup_mode=None)


@app.command("verify")
def verify(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR|FILE", help="The log's folder or a copy of it; or a proof that was exported.")
    ],
    key: Annotated[
        list[str],
        typer.Option(
            "--key",
            metavar="FILE|VKEY",
            help="Verifier key of the log (log.vkey, or the line in it), from a place that you trust: not from "
            "beside the log. Repeat it where the log changed its key.",
        ),
    ],
    seen: Annotated[
        list[Path] | None,
        typer.Option(
            "--seen",
            metavar="FILE",
            help="A checkpoint of this log that someone else kept: shows whether the log was put back or forked. "
            "Repeat it.",
        ),
    ] = None,
    authorities: Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", help="PEM of the authorities of hosts: their receipts must chain to it."),
    ] = None,
    witness: Annotated[
        list[str] | None,
        typer.Option("--witness", metavar="FILE|VKEY", help="Key of a witness that must have cosigned. Repeat it."),
    ] = None,
    sampled: Annotated[
        bool,
        typer.Option(
            "--sampled",
            help="Check one record signature in 64, drawn by lot: the tree, whose signature is always checked, covers "
            "every record. Several times as fast.",
        ),
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=64, help="Processes; default: one a core.")
    ] = None,
    heartbeat: Annotated[
        int | None,
        typer.Option("--heartbeat", metavar="SECONDS", min=1, help="Due so often, where records do not say it."),
    ] = None,
    archive: Annotated[
        Path | None,
        typer.Option(
            "--archive",
            metavar="DIR",
            help="Where entries are that were pruned from the log. Without it, "
            "their hashes are checked, not their contents.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a whole log offline: every entry, the tree over them, signatures, receipts, clocks, silences; or a proof.

    Trusts the key and nothing else; shares no code with what wrote the log. Exits 0 if all is well, 1 if not.

    \b
    Examples:
      sealane audit verify /var/lib/sealane/log --key log.vkey
      sealane audit verify copy/ --key log.vkey --seen checkpoint-of-last-month
      sealane audit verify copy/ --key 'corp.example/audit+1a2b3c4d+AQ…' --json
      sealane audit verify moved.proof --key log.vkey
    """
    from audit.verify import Options
    from gateway.cli.verification import check_log, read_keys, show_verdict

    keys = read_keys(key)
    ca_pem, witnesses = _read_ca(authorities), read_keys(witness or [], "--witness")
    if directory.is_file():
        _verify_bundle(directory, keys, witnesses, ca_pem, seen or [], as_json=as_json)
    if not directory.is_dir():
        raise BadConfiguration(f"{directory} is neither a folder nor a file", REQUESTER, "name a log or a proof")
    cores = len(os.sched_getaffinity(0))
    options = Options(workers or cores, sampled, ca_pem, witnesses, heartbeat, archive)
    document = check_log(directory, keys, seen or [], options, quiet=as_json)
    if as_json:
        print_json(document)
    else:
        show_verdict(console(), document)
    raise typer.Exit(0 if document["outcome"] == "verified" else 1)


app.command("show")(audit_stories.show)
app.command("migration")(audit_stories.migration)
app.command("who-moved")(audit_stories.who_moved)
app.command("query")(audit_query.query)
app.add_typer(audit_index.app, name="index")
app.command("prove")(audit_prove.prove)
app.command("archive")(audit_archive.archive)
app.command("prune")(audit_prune.prune)
app.command("fields")(audit_query.list_fields)
app.command("saved")(audit_query.list_saved)


def _read_ca(path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path is not None else b""
    except OSError as error:
        raise BadConfiguration(f"--ca {path}: {error.strerror}", REQUESTER, "name a PEM file") from error


def _verify_bundle(
    path: Path, keys: list[str], witnesses: list[str], authorities: bytes, seen: list[Path], *, as_json: bool
) -> NoReturn:
    from gateway.cli.proving import bundle_document, check_bundle, show_bundle

    verdict, found, asked_again = check_bundle(path, keys, witnesses, authorities, seen)
    document = bundle_document(path, verdict, found, asked_again)
    if as_json:
        print_json(document)
    else:
        show_bundle(console(), document, found)
    raise typer.Exit(0 if verdict.ok else 1)


@app.command("tail")
def tail(
    count: Annotated[int, typer.Option("-n", "--count", min=1, max=1000, help="So many at first.")] = 20,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until Ctrl-C; each reading is recorded.")
    ] = False,
    migration: MigrationOption = None,
    vm: VmOption = None,
    host: HostOption = None,
    actor: ActorOption = None,
    outcome: OutcomeOption = None,
    kind: KindOption = None,
    log: LogOption = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the newest records that match; with -f go on with what is appended.

    With --json prints one object; with -f --json one object per record, a line each.

    \b
    Examples:
      sealane audit tail
      sealane audit tail -f --outcome denied
    """
    from gateway.cli.record_source import opened

    given = {"migration": migration, "vm": vm, "host": host, "actor": actor, "outcome": outcome, "kind": kind}
    terms = terms_of(given)
    with opened(log, gateway, ca, token_file) as source:
        size = source.size()
        last = _print_newest(source, terms, 0, count, as_json=as_json, stream=follow)
        shown = max(size, last + 1)
        # Asking for the size leaves no record; reading does, and that must not set off the next reading.
        quiet = source.size()
        lull = Lull(time.monotonic, note)
        while follow:
            try:
                time.sleep(FOLLOW_SECONDS)
                size = source.size()
                if size > quiet:
                    last = _print_newest(source, terms, shown, MAX_RECORDS, as_json=as_json, stream=True)
                    shown = max(size, last + 1)
                    quiet = source.size()
                lull.answered()
            except CommandError as error:
                if not lull.may_pass(error):
                    raise
            except KeyboardInterrupt:
                return


def _print_newest(
    source: RecordSource, terms: dict[str, str], floor: int, limit: int, *, as_json: bool, stream: bool
) -> int:
    """Print what matches from index `floor` on; returns the index of the last record printed, or -1."""
    from gateway.cli.record_question import Question
    from gateway.cli.record_source import read_pages
    from gateway.cli.record_view import show_records

    found = read_pages(source, Question(terms), floor=floor, limit=limit).records
    if as_json and stream:
        for one in found:
            print_json({"index": one.index, "record": one.record})
    elif as_json:
        print_json({"records": [{"index": one.index, "record": one.record} for one in found]})
    elif found:
        show_records([(one.index, one.record) for one in found], heading=not stream)
    return found[-1].index if found else -1
