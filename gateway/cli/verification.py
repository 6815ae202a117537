"""What `sealane audit verify` does: read the pinned keys, run the independent verifier, tell the verdict."""

# Imports wait until they are needed: a relay's host lacks the [gateway] extra.
# ruff: noqa: PLC0415

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from gateway.cli.errors import REQUESTER, BadConfiguration
from gateway.cli.output import console
from gateway.cli.terminal import plain

MAX_PROBLEMS_TOLD = 1000
_MAX_KEY_FILE_BYTES = 64 * 1024


def read_keys(given: Sequence[str]) -> list[str]:
    """The verifier keys: each argument is a key itself, or a file that holds one on each line."""
    keys: list[str] = []
    for one in given:
        path = Path(one)
        try:
            with path.open("rb") as file:
                lines = file.read(_MAX_KEY_FILE_BYTES).decode().splitlines()
        except (OSError, ValueError):
            # A verifier key holds base64 with `/`, so what is no file is taken for a key if it looks like one.
            if one.count("+") < 2:
                raise BadConfiguration(
                    f"--key {one!r} is neither a readable file nor a verifier key",
                    REQUESTER,
                    "name the file log.vkey, or give its line: ORIGIN+KEYID+BASE64",
                ) from None
            lines = [one]
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise BadConfiguration(f"{path} holds no verifier key", REQUESTER, "name the file log.vkey")
        keys += found
    return keys


def check_log(directory: Path, keys: Sequence[str], *, quiet: bool) -> dict[str, Any]:
    """Run the verifier; the verdict as the object that `--json` prints."""
    from audit.verify import verify_log

    progress = None if quiet or not sys.stderr.isatty() else _counter
    verdict = verify_log(directory, keys, progress)
    problems = [{"index": problem.index, "what": problem.what} for problem in verdict.problems[:MAX_PROBLEMS_TOLD]]
    return {
        "outcome": "verified" if verdict.ok else "not_verified",
        "records": verdict.records,
        "problems": problems,
        "problem_count": len(verdict.problems),
        "directory": str(directory),
    }


def show_verdict(out: Console, document: Mapping[str, Any]) -> None:
    """The verdict in words, problems first."""
    for problem in document["problems"]:
        where = "log" if problem["index"] is None else f"entry {problem['index']}"
        out.print(Text(f"  {where}: ", "red").append_text(plain(problem["what"], limit=1000)), soft_wrap=True)
    if document["outcome"] == "verified":
        text = Text("VERIFIED", "bold green").append(f"  {document['records']} entries: complete and unaltered")
    else:
        text = Text("NOT VERIFIED", "bold red").append(f"  {document['problem_count']} problems")
    out.print(text)


def _counter(done: int, total: int) -> None:
    console(stderr=True).print(f"{done} of {total} entries", end="\r" if done < total else "\n")
