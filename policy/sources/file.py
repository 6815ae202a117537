"""A file as a source: read again when it is due, parsed again when it has changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import trio

from policy.inventory import read_file
from policy.sources.reading import Pace, Reading, digest_of
from policy.told import parse_toml


@dataclass(frozen=True, slots=True)
class FileSource:
    """TOML, in the form of `policy.told`. Write it anew and rename it: what is half written is refused."""

    name: str
    path: Path
    pace: Pace
    partial: bool = False
    tells_hosts: bool = True
    # A thread that hangs, as on a network drive that is away, is left behind: one, not all that the gateway has.
    _thread: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1), repr=False, compare=False)

    async def read(self, before: Reading | None) -> Reading:
        """See Source. After a reading that hangs no other begins before it has ended."""
        return await trio.to_thread.run_sync(self.read_now, before, abandon_on_cancel=True, limiter=self._thread)

    def read_now(self, before: Reading | None) -> Reading:
        """The same, blocking. Errors: InventoryRefused."""
        content = read_file(self.path)
        digest = digest_of(content)
        if before is not None and before.digest == digest:
            return before
        return Reading(parse_toml(content, str(self.path), partial=self.partial), digest)
