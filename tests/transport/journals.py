"""What stands in the journals of relays that are at work meanwhile."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def journals(folder: Path, pattern: str = "*.jsonl") -> dict[str, list[str]]:
    """Whole lines by file. A session that ends takes its file away, also between our look and our reading."""
    found: dict[str, list[str]] = {}
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):
            found[path.name] = path.read_text().rpartition("\n")[0].splitlines()
    return found
