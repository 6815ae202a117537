"""Lives of the real gateway that begin quickly: each is a fork of a process that has its modules loaded already.

What it runs from there on is the command that people run. Loading the modules is most of a start, and nothing of the
log is touched meanwhile: a kill there would show nothing.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import trio

_CONTEXT: Final = get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.soak.lives", "gateway.cli.main", "gateway.process"])
_END_SECONDS: Final = 60.0


@asynccontextmanager
async def life_of_gateway(config: Path, log: Path) -> AsyncIterator[trio.lowlevel.FdStream]:
    """A gateway, until the end of the block: SIGKILL. Gives its standard output; `log` is its standard error.

    Raises RuntimeError if it had died before of anything else.
    """
    reader, writer = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_serve, args=(config, log, writer))
    process.start()
    writer.close()
    output = trio.lowlevel.FdStream(os.dup(reader.fileno()))
    reader.close()
    try:
        yield output
    finally:
        await output.aclose()
        process.kill()
        process.join(_END_SECONDS)
        died_of = process.exitcode
        process.close()
    if died_of != -signal.SIGKILL:
        raise RuntimeError(f"the gateway ended by itself ({died_of}): see {log}")


def _serve(config: Path, log: Path, output: object) -> None:
    """In the fork: what the console script does."""
    from gateway.cli.main import app  # noqa: PLC0415 - the driver needs none of it

    os.dup2(output.fileno(), 1)  # type: ignore[attr-defined]
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    app(["gateway", "serve", "--config", str(config)])
