"""The command as people run it: a process of its own, with a home of its own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from gateway.starter import LOCAL_ISSUER, Site
from tests.gateway.conftest import Running

PROGRAM = "from gateway.cli.main import run; run()"


@dataclass
class Terminal:
    """The command as a process; `said` is its stderr so far."""

    process: trio.Process
    said: str = ""

    async def line(self, pattern: str) -> re.Match[str]:
        """Wait for a line of stderr."""
        assert self.process.stderr is not None
        while (found := re.search(pattern + r"\n", self.said)) is None:
            data = await self.process.stderr.receive_some()
            assert data, self.said
            self.said += data.decode()
        return found

    async def end(self) -> tuple[int, dict[str, Any]]:
        """Exit code, and the JSON object."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        out = b"".join([part async for part in self.process.stdout])
        self.said += b"".join([part async for part in self.process.stderr]).decode()
        await self.process.wait()
        return self.process.returncode or 0, json.loads(out.decode().splitlines()[-1])


@dataclass
class Shell:
    """A person's home; `started` are the commands that they ran."""

    home: Path
    started: list[trio.Process]

    @property
    def folder(self) -> Path:
        return self.home / ".config" / "sealane"

    async def run(self, *arguments: str) -> Terminal:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", PROGRAM, *arguments, "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"HOME": str(self.home), "BROWSER": "/bin/true"},
        )
        self.started.append(process)
        return Terminal(process)


def speak_of_groups_of(site: Site, issuer: str) -> None:
    """The policies of this site name the groups of that issuer, in the place of those of the site's own people."""
    for file in (site.directory / "bundle").rglob("*"):
        if file.is_file():
            file.write_text(file.read_text().replace(LOCAL_ISSUER, issuer))


@asynccontextmanager
async def shell_for(home: Path, running: Running, issuer_ca: Path) -> AsyncIterator[Shell]:
    """A person's shell whose client.toml leads to that gateway. What still runs at the end is ended."""
    shell = Shell(home, [])
    shell.folder.mkdir(parents=True)
    (shell.folder / "client.toml").write_text(
        f'gateway = "{running.url}"\nca = "{running.site.ca}"\nissuer_ca = "{issuer_ca}"\n'
    )
    try:
        yield shell
    finally:
        for process in shell.started:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
