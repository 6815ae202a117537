"""What a source session tells whoever asked for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from transport.hypervisors.migration_progress import MigrationProgress


@dataclass(frozen=True, slots=True)
class News:
    """Where a session is. `state`: running, handing_over, completed, failed or cancelled. `is_spent`: it ended in vain,
    and its destination takes its permit no second time."""

    state: str
    progress: MigrationProgress | None = None
    downtime_ms: int | None = None
    message: str = ""
    is_spent: bool = False


Tell = Callable[[News], Awaitable[None]]


class Telling(Protocol):
    """Whoever brings news to a gateway."""

    async def tell(self, migration_id: str, news: News) -> None: ...


class NewsDesk:
    """Tells the gateway one migration's latest news, in the background, one at a time.

    What is overtaken is not told: a gateway that is slow or hangs must not hold up a handover.
    """

    def __init__(self, link: Telling, migration_id: str, nursery: trio.Nursery) -> None:
        self._link = link
        self._migration_id = migration_id
        self._nursery = nursery
        self._latest: News | None = None
        self._is_telling = False

    async def tell(self, news: News) -> None:
        """Returns at once."""
        self._latest = news
        if not self._is_telling:
            self._is_telling = True
            self._nursery.start_soon(self._tell_all)

    async def _tell_all(self) -> None:
        while (news := self._latest) is not None:
            self._latest = None
            await self._link.tell(self._migration_id, news)
        self._is_telling = False
