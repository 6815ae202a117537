"""What a source session tells whoever asked for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from transport.hypervisors.migration_progress import MigrationProgress


@dataclass(frozen=True, slots=True)
class News:
    """Where a session is. `state`: running, handing_over, completed, failed or cancelled."""

    state: str
    progress: MigrationProgress | None = None
    downtime_ms: int | None = None
    message: str = ""


Tell = Callable[[News], Awaitable[None]]
