"""The processes of the demo: Sealane's own commands, started as a person would and ended by process id."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from gateway.demo.errors import ProcessFailed
from gateway.demo.machines import tail_of

_READY_SECONDS = 120.0  # a machine that does much else takes longer than one that is idle by far
_STOP_SECONDS = 10.0
_COMMAND_SECONDS = 180.0
_MAX_OUTPUT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Commands:
    """How `sealane` is called here: with a home of its own, so that nobody's settings play a part."""

    folder: Path

    def line(self, arguments: Sequence[str]) -> list[str]:
        """The command line of this very installation, whatever PATH says."""
        script = Path(sys.executable).with_name("sealane")
        if script.exists():
            return [str(script), *arguments]
        return [sys.executable, "-c", "from gateway.cli.main import run; run()", *arguments]

    def environment(self) -> dict[str, str]:
        """The caller's, with another home and no colours in logs."""
        return {**os.environ, "HOME": str(self.folder), "NO_COLOR": "1"}

    async def run(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Run one command with `--json`; returns its exit code and the object on its last line.

        Raises ProcessFailed if there is none, or after three minutes.
        """
        with trio.move_on_after(_COMMAND_SECONDS):
            done = await trio.run_process(
                self.line([*arguments, "--json"]),
                stdin=b"",
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=self.environment(),
                start_new_session=True,
            )
            return done.returncode, _last_object(arguments, done)
        raise ProcessFailed(f"sealane {' '.join(arguments)}", f"did not end within {_COMMAND_SECONDS:g} s")

    @asynccontextmanager
    async def serve(self, name: str, *arguments: str) -> AsyncIterator["Service"]:
        """Run a service until the block is left; inside, it has said that it is ready.

        Its words go to FOLDER/NAME.log. Raises ProcessFailed with the last of them if it does not come up.
        """
        out, log = self.folder / f"{name}.out", self.folder / f"{name}.log"
        with out.open("wb") as out_file, log.open("wb") as log_file:
            process = await trio.lowlevel.open_process(
                self.line(arguments),
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=log_file,
                env=self.environment(),
                start_new_session=True,
            )
        try:
            yield await _wait_ready(name, process, out, log)
        finally:
            await end_process(process)


@dataclass(frozen=True, slots=True)
class Service:
    """A service that is ready. `listen` is where, by its own words."""

    name: str
    process: trio.Process
    listen: str
    log: Path


async def end_process(process: trio.Process) -> None:
    """Ask a process to end, insist after ten seconds, and wait for it, even when we are cancelled ourselves."""
    with trio.CancelScope(shield=True):
        if process.poll() is None:
            process.terminate()
            with trio.move_on_after(_STOP_SECONDS):
                await process.wait()
        if process.poll() is None:
            process.kill()
        await process.wait()


async def _wait_ready(name: str, process: trio.Process, out: Path, log: Path) -> Service:
    end = trio.current_time() + _READY_SECONDS
    while True:
        line, complete, _ = out.read_bytes()[:_MAX_OUTPUT_BYTES].partition(b"\n")
        if complete:
            break
        if process.poll() is not None:
            raise ProcessFailed(name, f"ended with exit code {process.returncode}", tail_of(log))
        if trio.current_time() > end:
            raise ProcessFailed(name, f"was not ready within {_READY_SECONDS:g} s", tail_of(log))
        await trio.sleep(0.02)
    try:
        said = json.loads(line)
        return Service(name, process, str(said["listen"]), log)
    except (ValueError, KeyError, TypeError):
        raise ProcessFailed(name, f"said {line[:200]!r} instead of being ready", tail_of(log)) from None


def _last_object(arguments: Sequence[str], done: "subprocess.CompletedProcess[bytes]") -> dict[str, Any]:
    lines = done.stdout.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        words = done.stderr.decode(errors="replace")[-2000:]
        raise ProcessFailed(f"sealane {' '.join(arguments)}", f"exit code {done.returncode}", words)
    return found
