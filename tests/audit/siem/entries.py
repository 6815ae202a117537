"""Log entries for the tests of delivery."""

from __future__ import annotations

from typing import Any

from audit.group import sign_records
from audit.record import canonical_record
from audit.siem.document import LogEntry
from audit.siem.sink import SinkError
from tests.audit.samples import ORIGIN, SIGNER, entry, permit, record


def log_entry(index: int, **changes: Any) -> LogEntry:
    return LogEntry(ORIGIN, index, entry(index, **changes))


def entry_of_group(index: int) -> LogEntry:
    """Of three records that were committed, and signed, together."""
    records = [canonical_record(record(index + each)) for each in range(3)]
    return LogEntry(ORIGIN, index, sign_records(records, SIGNER)[0])


def permit_entry(index: int) -> LogEntry:
    decision = entry(index - 1)
    return LogEntry(ORIGIN, index, permit(index - 1, decision, iat=1_795_000_000, bundle="ab" * 32))


class FakeLog:
    """A log in memory. `away`: how often reading fails from now on."""

    def __init__(self, count: int) -> None:
        self.entries = [entry(index) for index in range(count)]
        self.away = 0

    @property
    def origin(self) -> str:
        return ORIGIN

    @property
    def size(self) -> int:
        return len(self.entries)

    def grow(self, count: int, **changes: Any) -> None:
        self.entries += [entry(index, **changes) for index in range(self.size, self.size + count)]

    async def read(self, start: int, end: int) -> list[bytes]:
        if self.away:
            self.away -= 1
            raise SinkError("the log recovers")
        return self.entries[start:end]
