"""Pruning: takes old entry bundles out of a log's folder, once an archive holds and proves them. Hash tiles stay.

So every proof can be made for ever, witnesses notice nothing, and what is missing is known by its hashes. The order:

    P1  the archive's checkpoint, under the log's key, must be of this history
    P2  every entry to go is read from the log and from the archive, and both must have the hashes of the log's tree
    P3  commit a record of kind log.pruned: from here on, it is allowed
    P4  write pending → fdatasync → rename to `pruned` → fsync DIR
    P5  remove the bundles, the oldest first; fsync their folders

Killed before P4, nothing has changed but for a record that nothing followed, and the next run says it again. Killed
after it, what was to go is still there or gone, and the next run removes the rest. Nothing goes that P2 has not seen.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from audit.archive import Archive
from audit.errors import EntryPruned, LogDamaged, RecordError
from audit.log import Log
from audit.proof import leaf_hash
from audit.pruned import Pruned
from audit.record import PermitEntry, decode_entry, parse_time
from audit.tiles import TILE_WIDTH

RecordOf = Callable[[int, Mapping[str, Any]], bytes]  # (index, details) -> the signed entry of kind log.pruned


@dataclass(frozen=True, slots=True)
class Plan:
    """Entries [`first`, `end`) may go: older than `before`, and proven to be in the archive. `left_over`: files of
    bundles that were pruned before, which a run that was killed left behind."""

    first: int
    end: int
    before: datetime
    archive: Path
    archive_size: int
    left_over: int

    @property
    def entries(self) -> int:
        return self.end - self.first


def plan(log: Log, archive: Archive, before: datetime, progress: Callable[[int], None] | None = None) -> Plan:
    """What may go; changes nothing. Raises LogError if the archive is of another history, or an entry differs."""
    known = archive.checkpoint
    if known is None:
        raise LogDamaged(f"{archive.directory} holds no archive; make one by `sealane audit archive`")
    log.require_extends(known)
    floor = number = log.pruned.bundles
    # The last full bundle stays, whatever its age: a log that looks empty is for nobody to judge.
    last = min(known.size, log.size) // TILE_WIDTH - 1
    while number < last and _may_go(log, archive, number, before):
        number += 1
        if progress is not None:
            progress((number - floor) * TILE_WIDTH)
    # A permit is checked against the decision before it: both stay, or both go.
    while number > floor and isinstance(decode_entry(log.entry(number * TILE_WIDTH)), PermitEntry):
        number -= 1
    left_over = sum(1 for _ in log.left_over())
    return Plan(floor * TILE_WIDTH, number * TILE_WIDTH, before, archive.directory, known.size, left_over)


def prune(log: Log, planned: Plan, record_of: RecordOf) -> Pruned:
    """Do it; what is pruned now. Raises LogError, OSError: run it again."""
    pruned = log.pruned
    if planned.entries:
        bundles = planned.end // TILE_WIDTH
        details = {
            "bundles": bundles,
            "first_entry": planned.first,
            "end_entry": planned.end,
            "root": log.root_at(planned.end).hex(),
            "before": planned.before.isoformat(),
            "archive": {"directory": str(planned.archive), "size": planned.archive_size},
        }
        commit = log.append([lambda index: [record_of(index, details)]])
        pruned = Pruned(str(planned.archive), bundles, commit.first_index[0])
        log.write_pruned(pruned)
    log.remove_pruned()
    return pruned


def _may_go(log: Log, archive: Archive, number: int, before: datetime) -> bool:
    """Whether all entries of the bundle are old and archived. Raises LogDamaged if the archive has others, OSError."""
    first = number * TILE_WIDTH
    try:
        archived = Pruned(str(archive.directory)).read_bundle(number)
    except EntryPruned as error:
        raise LogDamaged(f"{archive.directory} does not hold bundle {number} whole: {error}") from error
    for offset, (entry, other) in enumerate(zip(log.entries(first, first + TILE_WIDTH), archived, strict=True)):
        if leaf_hash(entry) != leaf_hash(other):
            raise LogDamaged(f"{archive.directory} has another entry {first + offset} than the log; nothing is pruned")
        if not _is_before(entry, before):
            return False
    return True


def _is_before(entry: bytes, before: datetime) -> bool:
    try:
        found = decode_entry(entry)
        # Its decision, the entry before it, has the time.
        return isinstance(found, PermitEntry) or parse_time(found.record.time) < before
    except RecordError:
        return False  # of unknown age: it stays
