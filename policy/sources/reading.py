"""What reading a source gives, and what every kind of source has in common."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from policy.told import Told


@dataclass(frozen=True, slots=True)
class Reading:
    """One state of a source. `digest`: SHA-256 of what was read, in hex; `etag`: by which HTTP asks for a newer one."""

    told: Told
    digest: str
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a source is read, how long one reading may take, and for how long what it told is believed.

    `max_age_seconds` None: for ever; its age is told to the policies all the same.
    """

    refresh_seconds: float = 60
    deadline_seconds: float = 10
    max_age_seconds: float | None = 600


class Source(Protocol):
    """`name` is what facts and errors call it."""

    @property
    def name(self) -> str: ...

    @property
    def pace(self) -> Pace: ...

    @property
    def tells_hosts(self) -> bool: ...

    async def read(self, before: Reading | None) -> Reading:
        """Its present state; `before` itself, if that has not changed. The deadline is the caller's.

        Errors: InventoryRefused (what it says), InventoryUnavailable (it says nothing).
        """


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
