"""Go programs of the tests, built with a Go that is new enough (Debian 12's is not; deploy/setup.sh fetches one)."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

NEWER_GO = "golang.org/toolchain@v0.0.1-go1.24.13.linux-{arch}/bin/go"  # as deploy/setup.sh fetches it


def newer_go() -> str:
    """Go 1.24 or newer: the system's, or the one that `make test` has fetched."""
    asked = subprocess.run(
        ["go", "env", "GOVERSION", "GOARCH", "GOMODCACHE"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    version, arch, cache = asked.stdout.split()
    found = re.match(r"go1\.(\d+)", version)
    return "go" if found and int(found[1]) >= 24 else str(Path(cache) / NEWER_GO.format(arch=arch))


def run_go(folder: Path, *arguments: str) -> None:
    """The newer Go in `folder`, with no other toolchain and no workspace; its words are in the error."""
    environment = {**os.environ, "GOWORK": "off", "GOTOOLCHAIN": "local", "GOROOT": ""}
    done = subprocess.run(
        [newer_go(), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
