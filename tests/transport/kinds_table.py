"""`make kinds`: every kind of `kinds` and `recoveries`, one after the other, and a table of what came of it."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog
import trio

from gateway.demo.machines import QEMU, start_qemu, stop_qemu
from tests.transport.disks_moved import moved_with_disks
from tests.transport.kinds import KINDS, NEWEST, VM, move
from tests.transport.recoveries import interrupted, recovered
from transport.hypervisors.moving import How
from transport.hypervisors.qmp import QmpConnection

Attempt = Callable[[Path, str], Awaitable[str]]
INTERRUPTED = (interrupted(), interrupted(preempt=True))
ROWS: dict[str, Attempt] = {
    **{kind.name: partial(move, kind) for kind in KINDS},
    **{kind.name: partial(recovered, kind) for kind in INTERRUPTED},
    f"{INTERRUPTED[0].name} three times": partial(recovered, INTERRUPTED[0], times=3),
    "with disks, to which the guest writes": partial(moved_with_disks, How()),
    "with disks, post-copy": partial(moved_with_disks, How(post_copy_after_seconds=0)),
}


def _version(program: str) -> str:
    async def ask() -> str:
        with tempfile.TemporaryDirectory(prefix="sl") as folder:
            machine = await start_qemu(Path(folder), VM, program=program)
            try:
                async with await QmpConnection.connect(machine.observer_socket, deadline_seconds=10) as monitor:
                    return monitor.version
            finally:
                await stop_qemu(machine)

    return trio.run(ask)


def attempt(row: Attempt, program: str) -> str:
    """The outcome in words, a failure's begin with FAILED."""
    with tempfile.TemporaryDirectory(prefix="sl") as folder:
        try:
            return trio.run(row, Path(folder), program)
        except Exception as error:  # noqa: BLE001 - the table shows it, whatever it is
            return f"FAILED: {_innermost(error)!r}"[:300]


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> int:
    parser = argparse.ArgumentParser(prog="make kinds", description=__doc__)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    parser.add_argument("--write", type=Path, help="where the table goes, beside stdout")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if not any(arguments.only in name for name in ROWS):
        parser.exit(2, f"no kind's name holds {arguments.only!r}; they are: {', '.join(ROWS)}\n")
    if not NEWEST.exists():  # a table without its column would pass for a whole one
        parser.exit(2, f"{NEWEST} is missing: run `make newest-qemu`\n")
    programs = [QEMU, str(NEWEST)]
    rows = {name: row for name, row in ROWS.items() if arguments.only in name}
    columns: dict[str, dict[str, str]] = {}
    for program in programs:
        version = f"QEMU {_version(program)}"
        columns[version] = {}
        for name, row in rows.items():
            columns[version][name] = attempt(row, program)
            print(f"{version}, {name}: {columns[version][name]}", file=sys.stderr, flush=True)
    table = _table(list(rows), columns)
    print(table)
    if arguments.write and not arguments.only:  # the page is of all kinds
        arguments.write.write_text(_page(table))
    failed = sum(outcome.startswith("FAILED") for column in columns.values() for outcome in column.values())
    print(f"{len(rows) * len(columns)} moves, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


def _page(table: str) -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    when = f"{datetime.now(UTC):%Y-%m-%d}, at commit {commit}"
    head = f"`make kinds` wrote this on {when}: one move of a counting guest in each way."
    return f"# Kinds of migration that were tried\n\n{head}\nWhen a row has passed: [moving.md](moving.md).\n\n{table}"


def _table(names: list[str], columns: dict[str, dict[str, str]]) -> str:
    lines = [f"| kind | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(column[name] for column in columns.values())} |" for name in names]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
