"""How long each target was fuzzed, at which commits: kept in a file, over all runs, and told as a table.

Seconds are of the processor, as the kernel counts them: a busy machine cannot make them more than they were.
"""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).parents[2]


class Spent(msgspec.Struct, frozen=True):
    seconds: float = 0.0
    inputs: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(round(self.seconds + other.seconds, 2), self.inputs + other.inputs)


ByCommit = dict[str, Spent]


class Hours:
    """Of several runs at once, too: each adds to what the file says then."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> dict[str, ByCommit]:
        return msgspec.json.decode(self._file.read_bytes(), type=dict[str, ByCommit]) if self._file.exists() else {}

    def add(self, target: str, commit: str, spent: Spent) -> Spent:
        """In the file when it returns. What the target has had in all."""
        with self._alone():
            told = self.read()
            at = told.setdefault(target, {})
            at[commit] = at.get(commit, Spent()) + spent
            new = self._file.with_suffix(".new")
            new.write_bytes(msgspec.json.format(msgspec.json.encode(told, order="sorted")))
            new.replace(self._file)
        return in_all(at)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def in_all(at: Mapping[str, Spent]) -> Spent:
    return sum(at.values(), Spent())


def table(told: Mapping[str, ByCommit], names: Iterable[str]) -> str:
    """In Markdown, one line for each of `names`: those that were never run, too."""
    lines = ["| target | seconds of processor | inputs | at |", "|---|---|---|---|"]
    everything = Spent()
    for name in names:
        at = told.get(name, {})
        spent = in_all(at)
        everything += spent
        lines.append(f"| `{name}` | {spent.seconds:,.0f} | {spent.inputs:,} | {', '.join(at)} |")
    return "\n".join([*lines, f"| in all | {everything.seconds:,.0f} | {everything.inputs:,} | |"])


def commit_now() -> str:
    """The commit that is being fuzzed; with a + where files differ from it."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--dirty=+"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or "unknown"
