"""How far a command is that counts: a bar on stderr for a person, lines of `gateway.cli.waiting` anywhere else."""

# Imports wait until they are needed: most commands are done in a moment.
# ruff: noqa: PLC0415

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from gateway.cli.output import console
from gateway.cli.waiting import working

_STRIDE = 64  # between two looks at the bar
Progress = Callable[[int, int], None] | None  # done, of how many; None: nobody wants to know
T = TypeVar("T")


@contextmanager
def progress_bar(what: str, *, quiet: bool) -> Iterator[Progress]:
    """A progress bar on stderr; with `quiet`, or where that is no terminal, lines. `what` stands in front of either."""
    if quiet or not sys.stderr.isatty():
        last = [(0, 0)]

        def keep(done: int, total: int) -> None:
            last[0] = (done, total)

        with working(what, lambda: _counted(*last[0])):
            yield keep
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)  # "0/?", until somebody has counted
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _counted(done: int, total: int) -> str:
    return f"{done} of {total}" if total else ""


def counted_on(things: Iterable[T], progress: Progress, total: int) -> Iterator[T]:
    """Each of `things`, and the bar moved."""
    for number, thing in enumerate(things):
        if progress is not None and number % _STRIDE == 0:
            progress(number, total)
        yield thing
    if progress is not None:
        progress(total, total)
