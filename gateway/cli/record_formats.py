"""Records as a table, as JSON lines, as CSV for a spreadsheet; and how many there were, drawn over time.

A spreadsheet runs a cell that begins with `=`, `+`, `-` or `@` as a formula, and names are written by requesters: such
a cell gets an apostrophe before it, as spreadsheets themselves mark text; so does what stands behind a semicolon, which
separates cells where the comma is for decimals. No format lets a control character out.
"""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import csv
import io
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from gateway.cli.output import console, print_json
from gateway.cli.record_replies import HistogramReply, NumberedRecord
from gateway.cli.terminal import harmless

CSV_COLUMNS = (
    "index", "time", "kind", "outcome", "who", "who_id", "vm", "vm_uuid", "source", "destination", "migration",
    "policies", "denied_because", "reason", "downtime_ms", "sent_bytes",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")  # noqa: RUF001 - full-width forms are formulas too
_BEHIND_SEMICOLON = re.compile(rf";(?=[\s\"']*[{re.escape(''.join(_FORMULA))}])")
_MAX_CELL_CHARS = 4096
_BAR_CHARS = 50


class Format(StrEnum):
    """How records are printed."""

    TABLE = "table"
    LINES = "jsonl"
    CSV = "csv"


def print_records(found: Sequence[NumberedRecord], shape: Format) -> None:
    """All of them on stdout."""
    match shape:
        case Format.TABLE:
            from gateway.cli.record_view import show_records

            if found:
                show_records([(one.index, one.record) for one in found])
        case Format.LINES:
            for one in found:
                print_json({"index": one.index, "record": one.record})
        case Format.CSV:
            sys.stdout.write(as_csv((one.index, one.record) for one in found))
            sys.stdout.flush()


def as_csv(records: Iterable[tuple[int, Mapping[str, Any]]]) -> str:
    """RFC 4180 with a header, a line for each record."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(CSV_COLUMNS)
    for index, record in records:
        writer.writerow([index, *(cell(value) for value in _values(record))])
    return out.getvalue()


def cell(value: object) -> str:
    """One value that no spreadsheet runs and no terminal obeys; a number stays one."""
    if value is None:
        return ""
    if type(value) is int:
        return str(value)
    text = _BEHIND_SEMICOLON.sub(";'", harmless(value, limit=_MAX_CELL_CHARS))
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def show_histogram(reply: HistogramReply) -> None:
    """A line for each bucket that has records, with a bar."""
    from rich.text import Text

    by_start: dict[int, dict[str, int]] = defaultdict(dict)
    for bucket in reply.buckets:
        by_start[bucket.start][bucket.outcome or "-"] = bucket.count
    most = max((sum(counts.values()) for counts in by_start.values()), default=1)
    out = console()
    for start in sorted(by_start):
        counts = by_start[start]
        total = sum(counts.values())
        when = _when(start, whole_days=reply.width_seconds % 86_400 == 0)
        line = Text(f"{when}  {total:>9}  ").append("█" * -(-total * _BAR_CHARS // most), "cyan")
        told = ", ".join(f"{harmless(outcome, limit=20)} {count}" for outcome, count in sorted(counts.items()))
        out.print(line.append(f"  {told}", "dim"), soft_wrap=True)


def _when(seconds: int, *, whole_days: bool) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return str(seconds)
    return f"{moment:%Y-%m-%d}" if whole_days else f"{moment:%Y-%m-%d %H:%M}"


def _values(record: Mapping[str, Any]) -> list[object]:
    actor, vm, details = (_object(record, name) for name in ("actor", "vm", "details"))
    decision = _object(details, "decision")
    policies = decision.get("policies")
    ids = [one.get("id") for one in policies if isinstance(one, Mapping)] if isinstance(policies, list) else []
    subject = _object(record, "claims") if "claims" in record else record
    return [
        record.get("time"),
        record.get("kind"),
        record.get("outcome"),
        actor.get("name"),
        actor.get("id"),
        vm.get("name"),
        vm.get("uuid") or (subject.get("vm") if "claims" in record else None),
        subject.get("source"),
        subject.get("destination"),
        subject.get("migration_id"),
        " ".join(str(one) for one in ids) or None,
        decision.get("denied_because"),
        record.get("reason"),
        details.get("downtime_ms"),
        details.get("sent_bytes"),
    ]


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}
