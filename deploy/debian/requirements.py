"""Prints the part of requirements.lock that `sealane` with some extras needs: `python requirements.py LOCK [EXTRA…]`.

The closure is taken from the metadata of what is installed beside us, so it is what was locked and tested.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(root: str, extras: frozenset[str]) -> set[str]:
    """All distributions that `root[extras]` needs, in the lock's spelling."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - of the build's environment

    found: set[str] = set()
    waiting = [(root, extras)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            needs = requires(name) or []
        except PackageNotFoundError:
            continue  # of another platform: its marker left it out of the environment, too
        for text in needs:
            need = Requirement(text)
            environments = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            if need.marker is None or any(need.marker.evaluate(each) for each in environments):
                found.add(canonical(need.name))
                waiting.append((canonical(need.name), frozenset(need.extras)))
    return found


def stanzas(lock: str) -> dict[str, str]:
    """Each requirement of the lock with its hashes, by name."""
    found: dict[str, str] = {}
    name = ""
    for line in lock.splitlines(keepends=True):
        if match := re.match(r"([A-Za-z0-9][A-Za-z0-9._-]*)(\[[^]]*\])?==", line):
            name = canonical(match[1])
            found[name] = ""
        if name and not line.lstrip().startswith("#"):
            found[name] += line
    return found


def main(lock: str, *extras: str) -> None:
    wanted = closure("sealane", frozenset(extras))
    locked = stanzas(Path(lock).read_text())
    missing = wanted - set(locked)
    if missing:
        sys.exit(f"not in {lock}: {', '.join(sorted(missing))}: run make lock")
    sys.stdout.write("".join(locked[name] for name in sorted(wanted)))


if __name__ == "__main__":
    main(*sys.argv[1:])
