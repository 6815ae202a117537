"""`sealane audit reconcile`: hold what others certified against the log."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# A command's parameters are its options.
# ruff: noqa: PLC0415, PLR0913, PLR0917

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.asking import signed_in
from gateway.cli.errors import REQUESTER, BadConfiguration, Refused
from gateway.cli.moments import parse_moment
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import console, print_json
from gateway.cli.terminal import harmless
from gateway.cli.waiting import working
from gateway.counted import counted

Numbered = tuple[int, Mapping[str, Any]]

app = typer.Typer(
    help="Hold what hosts certify, and another site's log, against the log.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("hosts")
def hosts(
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Decisions from then on: 30d, 2026-11-01 …")
    ] = "30d",
    log: Annotated[
        Path | None, typer.Option("--log", metavar="DIR", help="Read a log's folder instead of asking a gateway.")
    ] = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find migrations with one receipt, none, or two that differ, once their time is over.

    Asked of a gateway, the result goes on record (audit.reconciled). Exits 1 if anything was found.

    \b
    Examples:
      sealane audit reconcile hosts --since 7d
      sealane audit reconcile hosts --log /mnt/evidence/log --json
    """
    moment = parse_moment(since, datetime.now(UTC), "--since")
    if log is not None:
        document = _of_hosts(log, moment)
    else:
        with signed_in(gateway, ca, token_file) as client:
            document = client.reconcile_hosts(moment)
    if as_json:
        print_json(document)
    else:
        _show(document)
    raise typer.Exit(1 if document["findings"] else 0)


@app.command("sites")
def sites(
    site: Annotated[
        str | None, typer.Argument(metavar="SITE", help="The other site, by its name in the gateway's [[sites]].")
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Decisions from then on: 30d, 2026-11-01 …")
    ] = "30d",
    log: Annotated[
        Path | None, typer.Option("--log", metavar="DIR", help="One site's log as a folder, with --other-log.")
    ] = None,
    other_log: Annotated[
        Path | None, typer.Option("--other-log", metavar="DIR", help="The other site's log as a folder.")
    ] = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold two sites' logs against each other: decisions, permits and receipts of the migrations between them.

    Asked of a gateway, it fetches the other's half and puts the result on record (audit.reconciled). Verify both
    folders first (`sealane audit verify`). Exits 1 if anything is missing in one log or differs.

    \b
    Examples:
      sealane audit reconcile sites east --since 7d
      sealane audit reconcile sites --log /mnt/west/log --other-log /mnt/east/log
    """
    moment = parse_moment(since, datetime.now(UTC), "--since")
    if (log is None) != (other_log is None) or (log is None) == (site is None):
        raise BadConfiguration(
            "name the other site, or two folders", REQUESTER, "give SITE, or --log and --other-log, not both"
        )
    if log is not None and other_log is not None:
        document = _of_folders(log, other_log, moment)
    else:
        with signed_in(gateway, ca, token_file) as client:
            document = client.reconcile_sites(str(site), moment)
    if as_json:
        print_json(document)
    else:
        _show_sites(document)
    raise typer.Exit(1 if document["findings"] else 0)


def _of_hosts(log: Path, moment: str) -> dict[str, Any]:
    from gateway.host_receipts import KINDS, compare_receipts, require_record

    with working("reading the log"):
        records = _comparable(log, _from_folder(log, moment, KINDS), require_record)
        report = compare_receipts(records, int(time.time()))
    return {
        "what": "hosts",
        "since": moment,
        "counts": report.counts(),
        "findings": [one.document() for one in report.findings],
    }


def _of_folders(log: Path, other_log: Path, moment: str) -> dict[str, Any]:
    from gateway.sites.reconcile import KINDS, compare_sites, halves_between
    from gateway.sites.shared import require_record

    if log.resolve() == other_log.resolve():
        raise BadConfiguration(f"{log} is given as both logs", REQUESTER, "name a folder of each site's log")
    with working("reading both logs"):
        folders = (log, other_log)
        halves = halves_between(*(list(_from_folder(folder, moment, KINDS)) for folder in folders))
        ours, theirs = (_comparable(*one, require_record) for one in zip(folders, halves, strict=True))
        report = compare_sites(ours, theirs, int(time.time()))
    return {
        "what": "sites",
        "since": moment,
        "counts": report.counts(),
        "findings": [one.document() for one in report.findings],
    }


def _show_sites(document: Mapping[str, Any]) -> None:
    out = console()
    for one in document["findings"]:
        where = f"record {one['record']}, theirs {one['other_record']}"
        out.print(f"{one['what']:>13}  {harmless(str(one['migration_id']))}  {where}", markup=False)
        for why in one["why"]:
            out.print(f"        {harmless(why)}", markup=False)
    told = _told(document["counts"])
    out.print(told + (f"; on record as {document['record_index']}" if "record_index" in document else ""), markup=False)


def _from_folder(log: Path, since: str, kinds: tuple[str, ...]) -> Iterator[Numbered]:
    """Kind by kind, each oldest first; a folder is read page by page, newest first. Raises Refused for what is none."""
    from gateway.cli.record_folder import FromFolder
    from gateway.cli.record_question import Question
    from gateway.cli.record_source import read_pages

    source = FromFolder(log)
    for kind in kinds:
        found = read_pages(source, Question(terms={"kind": kind, "since": since}), limit=10**9)
        for one in found.records:
            if one.record["kind"] != kind:  # it cannot be read, and is given under every filter
                raise _incomparable(log, one.index, one.record["reason"])
            yield one.index, one.record


def _comparable(
    log: Path, records: Iterable[Numbered], require: Callable[[Mapping[str, Any]], None]
) -> Iterator[Numbered]:
    """Who made up a record must not have the comparison end in a traceback. Raises Refused."""
    import msgspec

    for index, record in records:
        try:
            require(record)
        except msgspec.ValidationError as error:
            raise _incomparable(log, index, str(error)) from error
        yield index, record


def _incomparable(log: Path, index: int, why: str) -> Refused:
    return Refused(
        f"entry {index} of {log} cannot be compared: {why}",
        REQUESTER,
        "run `sealane audit verify`; ask whose log it is",
    )


def _told(counts: Mapping[str, int]) -> str:
    """How many permits or migrations were looked at, and what became of how many."""
    nouns = {"permits": "permit", "migrations": "migration"}
    return ", ".join(
        counted(count, nouns[what]) if what in nouns else f"{count} {what}" for what, count in counts.items()
    )


def _show(document: Mapping[str, Any]) -> None:
    counts, out = document["counts"], console()
    for one in document["findings"]:
        hosts = f"{harmless(str(one['source']))} -> {harmless(str(one['destination']))}"
        out.print(f"{one['what']:>9}  record {one['record']}  {harmless(str(one['vm']))}  {hosts}", markup=False)
        for why in one["why"]:
            out.print(f"        {harmless(why)}", markup=False)
    told = _told(counts)
    out.print(told + (f"; on record as {document['record_index']}" if "record_index" in document else ""), markup=False)
