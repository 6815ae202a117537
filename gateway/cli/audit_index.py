"""`sealane audit index`: make the query index anew from the log, or hold it against the log. Offline."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.errors import OPERATOR, REQUESTER, BadConfiguration, Refused
from gateway.cli.log_folder import read_checkpoint
from gateway.cli.options import JsonOption
from gateway.cli.output import print_json, say
from gateway.cli.progress import progress_bar
from gateway.counted import counted

if TYPE_CHECKING:
    from audit.reader import CommittedLog

app = typer.Typer(
    help="The query index: a copy of the log for questions, which can be thrown away.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MAX_WORKERS = 8  # one process stores what all of them read: more would only fill the memory

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The gateway's configuration: its log and its index.")
]
LogOption = Annotated[Path | None, typer.Option("--log", metavar="DIR", help="A log's folder, with --index.")]
IndexOption = Annotated[Path | None, typer.Option("--index", metavar="FILE", help="The index's file, with --log.")]


@app.command("rebuild")
def rebuild(
    config: ConfigOption = None, log: LogOption = None, index: IndexOption = None, as_json: JsonOption = False
) -> None:
    """Throw the index away and make it anew from the log. Stop the gateway first; it does this by itself if need be.

    \b
    Examples:
      sealane audit index rebuild --config /etc/sealane/gateway.toml
      sealane audit index rebuild --log copy/ --index /tmp/index.sqlite
    """
    from audit.index import Index

    committed, path = _places(config, log, index)
    started = time.monotonic()
    with (
        _index_errors(path),
        Index(path, committed.origin) as opened,
        progress_bar("making the index", quiet=as_json) as progress,
    ):
        opened.rebuild(committed, progress, workers=min(len(os.sched_getaffinity(0)), MAX_WORKERS))
        size = opened.size
    seconds = time.monotonic() - started
    if as_json:
        print_json({"outcome": "rebuilt", "index": str(path), "size": size, "seconds": round(seconds, 3)})
    else:
        say(f"{path} holds {counted(size, 'entry')} of {committed.origin}, made in {seconds:.1f} s")


@app.command("check")
def check(
    config: ConfigOption = None, log: LogOption = None, index: IndexOption = None, as_json: JsonOption = False
) -> None:
    """Hold the index against the log, row by row. Exits 0 if it says what the log says, 1 if not. It repairs nothing.

    \b
    Examples:
      sealane audit index check --config /etc/sealane/gateway.toml
    """
    from audit.index_check import differences

    committed, path = _places(config, log, index)
    with _index_errors(path), progress_bar("comparing index and log", quiet=as_json) as progress:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            database.execute("BEGIN")  # one state of it, though a gateway may be writing
            found = differences(database, committed, progress)
        finally:
            database.close()
    if as_json:
        print_json({"outcome": "agrees" if not found else "differs", "size": committed.size, "differences": found})
    else:
        for one in found:
            say(f"  {one}")
        say(f"the index {'agrees with' if not found else 'differs from'} the log of {counted(committed.size, 'entry')}")
    raise typer.Exit(1 if found else 0)


def _places(config: Path | None, log: Path | None, index: Path | None) -> tuple[CommittedLog, Path]:
    from audit.reader import CommittedLog, LogReader

    if (config is None) == (log is None) or (log is None) != (index is None):
        raise BadConfiguration("name the log and the index", REQUESTER, "use --config, or --log with --index")
    if config is not None:
        from gateway.cli.serve import needs_gateway_extra

        with needs_gateway_extra():
            import gateway.config as configuration
            from gateway.errors import GatewayError

            try:
                loaded = configuration.load(config)
            except GatewayError as error:
                raise BadConfiguration(error.detail, OPERATOR, error.next_step) from error
        log = loaded.path(loaded.log.directory)
        index = loaded.path(loaded.gateway.state_dir) / "index.sqlite"
    assert log is not None
    assert index is not None
    try:
        lines = read_checkpoint(log).split("\n", 2)
        return CommittedLog(lines[0], int(lines[1]), LogReader(log)), index
    except (OSError, ValueError, IndexError) as error:
        raise BadConfiguration(f"{log} is no log: {error}", REQUESTER, "name the folder of a log") from error


@contextmanager
def _index_errors(path: Path) -> Iterator[None]:
    from audit.errors import AuditError

    try:
        yield
    except AuditError as error:
        raise Refused(str(error), OPERATOR, "stop the gateway, or run `sealane audit verify` on the log") from error
    except BrokenExecutor as error:
        what = "a process that read the log was ended from outside; the index is as it was"
        raise Refused(what, OPERATOR, "see whether memory ran out, and repeat it") from error
    except (sqlite3.Error, OSError) as error:
        raise BadConfiguration(f"{path} cannot be used: {error}", OPERATOR, "check the path and its disk") from error
