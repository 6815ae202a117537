"""What the gateway answers about its log and its receivers: records, counts, sinks."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from gateway.cli.replies import Count


class NumberedRecord(msgspec.Struct, frozen=True):
    """A record and its index in the log."""

    index: Count
    record: dict[str, Any]


class RecordsReply(msgspec.Struct, frozen=True):
    """One page. next: the value of `after` for the next page, None on the last. count: of all, if asked for."""

    records: tuple[NumberedRecord, ...]
    next: Count | None = None
    count: Count | None = None


class Bucket(msgspec.Struct, frozen=True):
    """Records of one outcome from `start` (unix seconds) on, for the width of a bucket."""

    start: int
    outcome: str | None
    count: Count


class HistogramReply(msgspec.Struct, frozen=True):
    """Buckets without a record are left out. start: of the first bucket, unix seconds."""

    width_seconds: Count
    start: int
    buckets: tuple[Bucket, ...]


class SiemJob(msgspec.Struct, frozen=True):
    """A reconciliation or a resending. state: running, done or failed."""

    what: str
    state: str
    done: Count = 0
    error: str | None = None
    result: dict[str, Any] | None = None


class RecordedReply(msgspec.Struct, frozen=True):
    """What was put into the log, and where."""

    index: Count


class SinkReply(msgspec.Struct, frozen=True):
    """GET /v1/siem/{name}: how far a sink has got. `lag`: entries yet to be delivered."""

    name: str
    kind: str
    state: str
    position: Count
    log_size: Count
    lag: Count
    rate_per_second: Count
    quarantined: Count
    last_error: str | None = None
    failing_seconds: Count | None = None
    delivered_seconds_ago: Count | None = None
    job: SiemJob | None = None


class SinksReply(msgspec.Struct, frozen=True):
    """GET /v1/siem."""

    sinks: tuple[SinkReply, ...]


class QuarantinedEntry(msgspec.Struct, frozen=True):
    """cause: what the receiver said."""

    index: Count
    cause: str
    entry: str


class QuarantineReply(msgspec.Struct, frozen=True):
    """One page. next: the `after` of the next one."""

    count: Count
    entries: tuple[QuarantinedEntry, ...]
    next: Count | None = None


class CheckpointReply(msgspec.Struct, frozen=True):
    """The signed note of the log's size and root."""

    checkpoint: str


class PruneReply(msgspec.Struct, frozen=True):
    """What became of a run: `state` is running, done or failed (`because`). What would go, or went, once it is known.

    `asked`, `record`: records of who asked, and of what went.
    """

    state: str
    check: bool
    asked: Count | None = None
    record: Count | None = None
    first_entry: Count | None = None
    end_entry: Count | None = None
    before: datetime | None = None
    archive: str | None = None
    left_over_bundles: Count | None = None
    because: str | None = None
