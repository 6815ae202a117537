"""Records of the audit log for a person: one line each, or one record whole. All text is made harmless.

What is shown was written by requesters, hosts and whoever could reach the log's files: any member may be
missing or of another type, and that must not keep the other records from being read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli.output import console, print_table
from gateway.cli.terminal import harmless, plain
from gateway.times import record_time_to_the_second

_OUTCOME_STYLES = {
    "allowed": "green",
    "completed": "green",
    "denied": "red",
    "failed": "red",
    "cancelled": "yellow",
    "would_deny": "bold red",
}
_TABLE_WIDTH = 110  # below it a table folds names and reasons into columns of some letters
COLUMNS = ("#", "time (UTC)", "kind", "outcome", "who", "VM", "from → to", "reason")

Numbered = tuple[int, Mapping[str, Any]]


def show_records(records: Iterable[Numbered], *, heading: bool = True) -> None:
    """A table of records, or each on lines of its own where the terminal is too narrow for one."""
    out = console()
    if out.width < _TABLE_WIDTH:
        for index, record in records:
            _show_narrow(out, index, record)
        return
    table = Table(*COLUMNS, box=None, show_header=heading, pad_edge=False, header_style="bold", expand=False)
    for column in (*table.columns[:4], table.columns[6]):
        column.no_wrap = True
    for index, record in records:
        table.add_row(str(index), *cells(record))
    print_table(table)


def _show_narrow(out: Console, index: int, record: Mapping[str, Any]) -> None:
    time, kind, outcome, who, vm, route, reason = cells(record)
    out.print(Text.assemble((f"{index}  ", "bold"), time, "  ", outcome), soft_wrap=True)
    out.print(Text("  ").append_text(kind), soft_wrap=True)
    for part in (Text("  ").join(each for each in (who, vm, route) if each.plain), reason):
        if part.plain:
            out.print(Text("  ").append_text(part), soft_wrap=True)


def cells(record: Mapping[str, Any]) -> list[Text]:
    """The columns after the index."""
    outcome = harmless(record.get("outcome") or "", limit=20)
    return [
        plain(record_time_to_the_second(record.get("time"))),
        plain(record.get("kind") or "", limit=64),
        Text(outcome, _OUTCOME_STYLES.get(outcome, "")),
        plain(_named(record.get("actor")), limit=64),
        plain(_named(record.get("vm")), limit=64),
        plain(_route(record), limit=130),
        plain(record.get("reason") or ""),
    ]


def show_record(out: Console, index: int, entry: Mapping[str, Any]) -> None:
    """One entry whole, indented."""
    out.print(f"Record {index}", style="bold")
    # JSON escapes the line ends inside strings, so these are the indentation's own.
    for line in json.dumps(entry, indent=2, sort_keys=True, ensure_ascii=False).split("\n"):
        out.print(plain(line, limit=64 * 1024), soft_wrap=True)


def _named(value: object) -> str:
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    return str(value.get("name") or value.get("id") or value.get("uuid") or "")


def _route(record: Mapping[str, Any]) -> str:
    ends = [record.get("source"), record.get("destination")]
    if not any(ends):
        return ""
    if not record.get("destination") and not str(record.get("kind")).startswith("migration."):
        ends = ends[:1]  # about one host: nothing goes anywhere
    return " → ".join("?" if not end else str(end).rpartition("/host/")[2] for end in ends)
