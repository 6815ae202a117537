"""The numbers of a running migration, out of QEMU's answer to query-migrate (qapi/migration.json)."""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from transport.hypervisors.errors import HypervisorGarbled


@dataclass(frozen=True, slots=True)
class MigrationProgress:
    """How far a migration is. Counts are bytes of guest memory as QEMU counts them.

    `status` is QEMU's: none, setup, active, device, completed, cancelling, cancelled, failed, …
    `passes` counts the rounds of pre-copy (dirty-sync-count). `downtime_ms` is the expected one while the
    guest runs and the measured one in the end; None where QEMU does not tell (at the destination).
    """

    status: str
    transferred_bytes: int = 0
    remaining_bytes: int = 0
    total_bytes: int = 0
    rate_bytes_per_second: int = 0
    passes: int = 0
    dirty_pages_per_second: int = 0
    downtime_ms: int | None = None
    error: str | None = None


_MAX = 2**53 - 1  # what every reader of JSON can hold
_Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX)]
StatusWord = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9-]{0,31}\Z")]
_MAX_MBPS = 1e9


class _Ram(msgspec.Struct, frozen=True, rename="kebab"):
    transferred: _Count = 0
    remaining: _Count = 0
    total: _Count = 0
    mbps: float = 0.0
    dirty_sync_count: _Count = 0
    dirty_pages_rate: _Count = 0


class _Info(msgspec.Struct, frozen=True, rename="kebab"):
    status: StatusWord = "none"
    ram: _Ram | None = None
    downtime: int | None = None
    expected_downtime: int | None = None
    error_desc: str | None = None


def read_progress(answer: Any) -> MigrationProgress:
    """Decode the answer to query-migrate; an empty one means that no migration was begun. HypervisorGarbled."""
    try:
        info = msgspec.convert(answer, _Info)
    except msgspec.ValidationError as error:
        raise HypervisorGarbled(f"unexpected answer to query-migrate: {error}") from None
    ram = info.ram or _Ram()
    if not 0 <= ram.mbps < _MAX_MBPS:  # false for NaN, too
        raise HypervisorGarbled(f"unexpected answer to query-migrate: {ram.mbps} Mbit/s")
    return MigrationProgress(
        status=info.status,
        transferred_bytes=ram.transferred,
        remaining_bytes=ram.remaining,
        total_bytes=ram.total,
        rate_bytes_per_second=round(ram.mbps * 1_000_000 / 8),
        passes=ram.dirty_sync_count,
        dirty_pages_per_second=ram.dirty_pages_rate,
        downtime_ms=_possible(info.expected_downtime if info.downtime is None else info.downtime),
        error=info.error_desc,
    )


def _possible(milliseconds: int | None) -> int | None:
    """None for what is no time: it stands in receipts, and with it no gateway would take them."""
    return milliseconds if milliseconds is not None and 0 <= milliseconds <= _MAX else None
