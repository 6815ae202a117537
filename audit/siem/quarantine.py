"""Entries that a receiver will never take: one file each, for an operator to look at, and one record in a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from audit.siem.document import LogEntry
from audit.siem.sink import Refusal
from audit.siem.status import one_line

QUARANTINED: Final = "siem.quarantined"


class Quarantined(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`cause`: what the receiver said."""

    index: int
    cause: str
    entry: str


class Quarantine:
    """`write(path, data)` replaces a file, atomically and durably."""

    def __init__(self, folder: Path, write: Callable[[Path, bytes], None]) -> None:
        self._folder = folder
        self._write = write

    def put(self, refusals: Sequence[Refusal], batch: Sequence[LogEntry]) -> None:
        """Keep the refused entries of `batch`: written again after a crash, each is the same file."""
        if not refusals:
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        entries = {each.index: each.entry for each in batch}
        for refusal in refusals:
            kept = Quarantined(refusal.index, one_line(refusal.cause), entries[refusal.index].decode(errors="replace"))
            self._write(self._folder / f"{refusal.index}.json", msgspec.json.encode(kept))

    def list(self, after: int = -1, limit: int = 100) -> tuple[Sequence[Quarantined], int]:
        """The first `limit` of those behind entry `after`, by index, and how many there are in all."""
        indices = sorted(int(path.stem) for path in self._folder.glob("*.json") if path.stem.isdecimal())
        wanted = [index for index in indices if index > after][:limit]
        decoder = msgspec.json.Decoder(Quarantined)
        return [decoder.decode((self._folder / f"{index}.json").read_bytes()) for index in wanted], len(indices)

    def discard(self, indices: Sequence[int]) -> None:
        """Forget what was delivered after all."""
        for index in indices:
            (self._folder / f"{index}.json").unlink(missing_ok=True)


@dataclass(slots=True)
class Untold:
    """Refusals of which no record speaks yet."""

    _first: Refusal | None = None
    _count: int = 0
    _last: int = 0
    _told_at: float | None = None

    def add(self, refusals: Sequence[Refusal]) -> None:
        if refusals:
            self._first = self._first or refusals[0]
            self._count += len(refusals)
            self._last = max(each.index for each in refusals)

    def take(self, now: float, pause_seconds: float) -> dict[str, Any] | None:
        """What to tell now, if anything: how many, the first and the last, and the first one's cause."""
        if self._first is None or (self._told_at is not None and now - self._told_at < pause_seconds):
            return None
        first, count = self._first, self._count
        self._first, self._count, self._told_at = None, 0, now
        return {"count": count, "first": first.index, "last": self._last, "cause": one_line(first.cause)}
