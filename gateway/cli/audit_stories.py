"""`sealane audit show`, `migration` and `who-moved`: what happened, told as a story."""

# A command's parameters are its options.
# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLR0913, PLR0917, PLC0415

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.audit_options import LogOption, SinceOption, UntilOption, terms_of
from gateway.cli.errors import REQUESTER, Refused
from gateway.cli.options import CaOption, GatewayOption, JsonOption, TokenFileOption
from gateway.cli.output import console, print_json, print_table, say
from gateway.cli.record_question import Question
from gateway.cli.record_replies import NumberedRecord
from gateway.cli.record_source import RecordSource, opened, read_pages
from gateway.cli.stories import BEGINNINGS, ENDS, Line, Move, life_of, moves_of, story_of
from gateway.counted import counted
from gateway.times import record_time_to_the_second

MAX_OF_MIGRATION = 1000
MAX_MOVES = 10_000


def show(
    index: Annotated[int, typer.Argument(metavar="N", min=0, help="The record's index in the log.")],
    raw: Annotated[bool, typer.Option("--raw", help="The record as it stands in the log, not as a story.")] = False,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key", metavar="FILE|VKEY", help="The log's verifier key: also prove that it is there. Repeat it."
        ),
    ] = None,
    log: LogOption = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell one record as a story: who asked, what they were, who said yes and why, how it was protected, how it ended.

    With --key it is also proven, here and now: the record's signature, and its way to the log's signed state.

    \b
    Examples:
      sealane audit show 1042 --key log.vkey
      sealane audit show 1042 --log /var/lib/sealane/log --json
    """
    from gateway.cli.record_view import show_record

    with opened(log, gateway, ca, token_file) as source:
        entry = source.entry(index)
        one = NumberedRecord(index, _document(entry))
        related = [] if raw else _related(source, one)
    story = list(story_of(one, related))
    if key:
        story.append(Line("proof", _proof(one, key, log, (gateway, ca, token_file))))
    if as_json:
        print_json({"index": index, **entry, "story": _as_objects(story)})
    elif raw:
        show_record(console(), index, {name: value for name, value in entry.items() if name != "entry"})
    else:
        _print_story(f"Record {index}", story)
        if not key:
            say(f"proof         --key log.vkey; to keep: sealane audit prove {index} --out record-{index}.proof")


def migration(
    migration_id: Annotated[str, typer.Argument(metavar="ID", help="The migration's id.")],
    log: LogOption = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell the whole life of a migration: the decision, the permit, what both hosts certify, and all that came between.

    \b
    Examples:
      sealane audit migration 0197c0de111172228333444455556666
    """
    with opened(log, gateway, ca, token_file) as source:
        found = _of_migration(source, migration_id)
    if not found:
        raise Refused(f"no record is of migration {migration_id}", REQUESTER, "check the id", "not_known")
    story = life_of(found)
    if as_json:
        records = [{"index": one.index, "record": one.record} for one in found]
        print_json({"migration": migration_id, "records": records, "story": _as_objects(story)})
    else:
        _print_story(f"Migration {migration_id}", story)


def who_moved(
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.")],
    since: SinceOption = None,
    until: UntilOption = None,
    log: LogOption = None,
    gateway: GatewayOption = None,
    ca: CaOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say who moved a VM, or tried to: when, from where to where, who said what, and how it ended.

    With `port` in the route it is the opening of a named port, which moves no VM.

    \b
    Examples:
      sealane audit who-moved web-1 --since 90d
    """
    with opened(log, gateway, ca, token_file) as source:
        pages = [
            read_pages(source, Question(terms_of({"vm": vm, "kind": kind}, since, until)), limit=MAX_MOVES)
            for kind in sorted(BEGINNINGS)
        ]
        ends = [
            one
            for kind in ENDS
            for one in read_pages(source, Question({"vm": vm, "kind": kind}), limit=4 * MAX_MOVES).records
        ]
    decisions = sorted((one for page in pages for one in page.records), key=lambda one: one.index)
    older = max((page.next for page in pages if page.next is not None), default=None)
    moves = moves_of(decisions, ends)
    if as_json:
        print_json({"vm": vm, "moves": [one.document() for one in moves], "older_before": older})
        return
    _print_moves(moves)
    say(f"{counted(len(moves), 'request')}" + ("" if older is None else "; there are older ones: use --until"))


def _proof(
    one: NumberedRecord,
    keys: Sequence[str],
    log: Path | None,
    options: tuple[str | None, Path | None, Path | None],
) -> str:
    """That what was shown is in the log, in words. Raises Refused if it is not."""
    from gateway.cli.proving import proof_of_one, sealed_folder, sealed_gateway
    from gateway.cli.record_source import connected
    from gateway.cli.verification import read_keys

    pinned = read_keys(keys)
    if log is not None:
        return proof_of_one(sealed_folder(log), one.index, one.record, pinned)
    with connected(*options) as client:
        return proof_of_one(sealed_gateway(client), one.index, one.record, pinned)


def _of_migration(source: RecordSource, migration_id: str) -> Sequence[NumberedRecord]:
    """Its records and its permit, oldest first."""
    found = list(read_pages(source, Question({"migration": migration_id}), limit=MAX_OF_MIGRATION).records)
    permits = {"migration": migration_id, "kind": "sealane-permit"}
    found += [one for one in read_pages(source, Question(permits), limit=10).records if "claims" in one.record]
    return sorted(found, key=lambda one: one.index)


def _related(source: RecordSource, one: NumberedRecord) -> list[NumberedRecord]:
    """The other records of the migration that a record begins or ends."""
    migration_id = one.record.get("migration_id")
    if one.record.get("kind") not in {*BEGINNINGS, *ENDS} or not isinstance(migration_id, str):
        return []
    if not migration_id:
        return []
    found = read_pages(source, Question({"migration": migration_id}), limit=MAX_OF_MIGRATION).records
    return [each for each in found if each.index != one.index]


def _document(entry: dict[str, Any]) -> dict[str, Any]:
    document = entry.get("permit_entry") or entry.get("record")
    return document if isinstance(document, dict) else {}


def _as_objects(story: Sequence[Line]) -> list[dict[str, str]]:
    return [{"what": line.what, "text": line.text} for line in story]


def _print_story(title: str, story: Sequence[Line]) -> None:
    from rich.text import Text

    from gateway.cli.terminal import harmless, plain

    out = console()
    out.print(plain(title, "bold"))
    for line in story:
        label = harmless(line.what, limit=40)
        text = Text(f"{label:<13} ", "dim").append_text(plain(line.text, limit=8000))
        out.print(text, soft_wrap=True)


def _print_moves(moves: Sequence[Move]) -> None:
    from rich.table import Table

    from gateway.cli.terminal import plain

    table = Table(
        "#", "time (UTC)", "who", "from → to", "decided", "ended", "downtime", "reason",
        box=None, pad_edge=False, header_style="bold", expand=False,
    )  # fmt: skip
    for one in moves:
        downtime = "" if one.downtime_ms is None else f"{one.downtime_ms} ms"
        table.add_row(
            str(one.index),
            plain(record_time_to_the_second(one.time)),
            plain(one.who, limit=64),
            plain(f"{one.source or '?'} → {one.destination or '?'}{one.port and f', port {one.port}'}", limit=130),
            plain(one.decided, limit=20),
            plain(one.ended, limit=100),
            downtime,
            plain(one.reason),
        )
    print_table(table)
