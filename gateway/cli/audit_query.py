"""`sealane audit query`, `fields` and `saved`: questions to the log in the query language, and their answers."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.audit_options import (
    ActorOption,
    HostOption,
    KindOption,
    LogOption,
    MigrationOption,
    OutcomeOption,
    SinceOption,
    UntilOption,
    VmOption,
    terms_of,
)
from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import console, print_json, say
from gateway.cli.record_formats import Format, print_records, show_histogram
from gateway.cli.record_question import Question
from gateway.cli.record_source import opened, read_pages
from gateway.cli.saved_queries import queries_file, read_queries, remove_query, save_query, saved_query
from gateway.cli.waiting import working
from gateway.counted import counted

if TYPE_CHECKING:
    from gateway.cli.record_replies import HistogramReply, RecordsReply

MAX_RECORDS = 100_000
WIDTHS = {"minute": 60, "hour": 3600, "day": 86_400, "week": 7 * 86_400}


def complete_query(incomplete: str) -> list[str]:
    """Completion of a shell: the name of a field that has been begun."""
    from audit.query.parse import names_in

    before, space, word = incomplete.rpartition(" ")
    sign = word[: len(word) - len(word.lstrip("(-+"))]
    return [f"{before}{space}{sign}{name}" for name in names_in(word[len(sign) :])]


def query(
    text: Annotated[
        str,
        typer.Argument(
            metavar="QUERY",
            autocompletion=complete_query,
            show_default=False,
            help="In Lucene's syntax: 'vm:web-* outcome:denied since:30d'. `sealane audit fields` lists the fields.",
        ),
    ] = "",
    migration: MigrationOption = None,
    vm: VmOption = None,
    host: HostOption = None,
    actor: ActorOption = None,
    outcome: OutcomeOption = None,
    kind: KindOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    timezone: Annotated[
        str | None, typer.Option("--timezone", metavar="NAME", help="Of times in QUERY that name none: Europe/Berlin.")
    ] = None,
    before: Annotated[
        int | None, typer.Option("--before", min=0, help="Only records before the one of this index.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_RECORDS, help="The newest so many of them.")] = 100,
    shape: Annotated[
        Format, typer.Option("--format", help="A table; JSON, one record a line; CSV, safe in a spreadsheet.")
    ] = Format.TABLE,
    count: Annotated[bool, typer.Option("--count", help="Also say how many there are in all.")] = False,
    histogram: Annotated[
        str | None,
        typer.Option("--histogram", metavar="WIDTH", help=f"How many, over time: {', '.join(WIDTHS)}. No records."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what QUERY means, and ask nothing.")] = False,
    saved: Annotated[
        str | None, typer.Option("--saved", metavar="NAME", help="A query that was saved; QUERY narrows it further.")
    ] = None,
    save: Annotated[
        str | None, typer.Option("--save", metavar="NAME", help="Save QUERY under this name, then ask it.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option("--on", metavar="SINK", help="Ask this SIEM, by the gateway: the same answer, as it holds it."),
    ] = None,
    log: LogOption = None,
    index: Annotated[
        Path | None, typer.Option("--index", metavar="FILE", help="With --log: its index (`audit index rebuild`).")
    ] = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find records, told oldest first: who moved which VM where, when, and with what outcome.

    Filters apply to the whole log. Pages go by index, so that none is lost or repeated while the log grows.

    \b
    Examples:
      sealane audit query 'vm:web-1 since:30d'
      sealane audit query 'outcome:denied NOT who:alice' --format csv
      sealane audit query 'kind:migration.receipt downtime:>300ms' --count
      sealane audit query 'who:mallory' --on elastic --count
      sealane audit query --host host-b --log /mnt/evidence/log
      sealane audit query 'outcome:denied' --histogram day
    """
    given = {"migration": migration, "vm": vm, "host": host, "actor": actor, "outcome": outcome, "kind": kind}
    if on is not None and log is not None:
        raise BadConfiguration("--on excludes --log", REQUESTER, "ask either the SIEM or the log's folder")
    question = Question(terms_of(given, since, until), _text(text, saved), timezone, on)
    if explain or save is not None or log is not None:
        lines = _explained(question)  # one that makes no sense is neither explained nor saved, nor asked of anything
    if save is not None:
        save_query(queries_file(Path.home()), save, question.text)
    if explain:
        _show_explanation(lines, as_json=as_json)
    elif histogram is not None:
        width = _width(histogram)
        with opened(log, gateway, ca, token_file, index) as source, working("counting records"):
            reply = source.histogram(question, width)
        _show_histogram(reply, as_json=as_json)
    else:
        with opened(log, gateway, ca, token_file, index) as source, working("looking for records"):
            found = read_pages(source, question, before=before, limit=limit)
            total = source.count(question) if count else None
        _show_found(found, total, shape, as_json=as_json)


def _show_histogram(reply: HistogramReply, *, as_json: bool) -> None:
    if as_json:
        buckets = [{"start": one.start, "outcome": one.outcome, "count": one.count} for one in reply.buckets]
        print_json({"width_seconds": reply.width_seconds, "buckets": buckets})
    else:
        show_histogram(reply)


def _show_found(found: RecordsReply, total: int | None, shape: Format, *, as_json: bool) -> None:
    """`total`: None where nobody asked for it."""
    if as_json:
        records = [{"index": one.index, "record": one.record} for one in found.records]
        print_json({"records": records, "next": found.next} | ({"count": total} if total is not None else {}))
        return
    print_records(found.records, shape)
    told = f"{counted(len(found.records), 'record')}" + (f" of {total}" if total is not None else "")
    older = f"; older ones with --before {found.next}" if found.next is not None else ""
    if shape is Format.TABLE:
        say(told + older)
    elif total is not None or older:
        console(stderr=True).print(told + older, soft_wrap=True)


def list_fields(as_json: JsonOption = False) -> None:
    """The fields that a query can ask for.

    \b
    Examples:
      sealane audit fields
    """
    from audit.query.fields import NAMES

    if as_json:
        fields = [
            {"name": one.name, "others": list(one.others), "kind": one.atoms[0].kind.value, "help": one.help}
            for one in NAMES
        ]
        print_json({"fields": fields})
        return
    for one in NAMES:
        spellings = ", ".join((one.name, *one.others))
        say(f"{spellings:<34} {one.atoms[0].kind.value:<13} {one.help}")
    say(f"{'since, until':<34} {'time':<13} from then on, before then: 90m, 30d (ago), 2026-11-22, 2026-11-22T21:42Z")


def list_saved(
    remove: Annotated[str | None, typer.Option("--remove", metavar="NAME", help="Forget this one.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The queries that you have saved.

    \b
    Examples:
      sealane audit saved
      sealane audit saved --remove night-moves
    """
    path = queries_file(Path.home())
    if remove is not None:
        remove_query(path, remove)
    queries = read_queries(path)
    if as_json:
        print_json({"queries": queries})
        return
    for name, text in sorted(queries.items()):
        say(f"{name:<24} {text}")


def _text(text: str, saved: str | None) -> str:
    if saved is None:
        return text
    kept = saved_query(queries_file(Path.home()), saved)
    return f"({kept}) AND ({text})" if text.strip() and kept.strip() else kept or text


def _width(name: str) -> int:
    try:
        return WIDTHS[name]
    except KeyError:
        raise BadConfiguration(
            f"--histogram: {name!r} is no width", REQUESTER, f"use one of {', '.join(WIDTHS)}"
        ) from None


def _explained(question: Question) -> list[str]:
    from audit.query.explain import explain
    from gateway.cli.record_folder import where_of

    return explain(where_of(question, datetime.now(UTC)))


def _show_explanation(lines: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"explanation": lines})
        return
    for line in lines:
        say(line)
