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

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from audit.archive import Archive
from audit.errors import EntryPruned, LogDamaged, RecordError
from audit.log import Log
from audit.proof import leaf_hash
from audit.pruned import Pruned
from audit.record import PermitEntry, decode_entry, format_time, parse_time
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

    @property
    def bundles(self) -> int:
        """How many are pruned when it is done, those before included."""
        return self.end // TILE_WIDTH


class PlannedLog(Protocol):
    """What planning needs of a log."""

    @property
    def size(self) -> int: ...
    @property
    def pruned(self) -> Pruned: ...
    def entry(self, index: int) -> bytes: ...
    def left_over(self) -> Iterable[int]: ...


def plan(log: Log, archive: Archive, before: datetime) -> Plan:
    """What may go; changes nothing. Raises LogError if the archive is of another history, or an entry differs."""
    known = archive.checkpoint
    if known is None:
        raise LogDamaged(f"{archive.directory} holds no archive; make one by `sealane audit archive`")
    log.require_extends(known)
    steps = planning(log, archive, before)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def planning(log: PlannedLog, archive: Archive, before: datetime) -> Generator[None, None, Plan]:
    """The plan, with a step for each bundle: of a log that was found to continue the archive. Raises LogDamaged."""
    known = archive.checkpoint
    assert known is not None
    floor = number = log.pruned.bundles
    # The last full bundle stays, whatever its age: a log that looks empty is for nobody to judge.
    last = min(known.size, log.size) // TILE_WIDTH - 1
    while number < last and _may_go(log, archive, number, before):
        number += 1
        yield
    # A permit is checked against the decision before it: both stay, or both go.
    while number > floor and isinstance(decode_entry(log.entry(number * TILE_WIDTH)), PermitEntry):
        number -= 1
    left_over = sum(1 for _ in log.left_over())
    return Plan(floor * TILE_WIDTH, number * TILE_WIDTH, before, archive.directory, known.size, left_over)


def prune(log: Log, planned: Plan, record_of: RecordOf) -> Pruned:
    """Do it; what is pruned now. Raises LogError, OSError: run it again."""
    pruned = log.pruned
    if planned.entries:
        details = record_details(planned, log.root_at(planned.end))
        commit = log.append([lambda index: [record_of(index, details)]])
        pruned = Pruned(str(planned.archive), planned.bundles, commit.first_index[0])
        log.write_pruned(pruned)
    log.remove_pruned()
    return pruned


def record_details(planned: Plan, root: bytes) -> dict[str, Any]:
    """What the record says. `root`: of the tree up to the plan's end."""
    return {
        "bundles": planned.bundles,
        "first_entry": planned.first,
        "end_entry": planned.end,
        "root": root.hex(),
        "before": format_time(planned.before),
        "archive": {"directory": str(planned.archive), "size": planned.archive_size},
    }


def months_before(now: datetime, months: int) -> datetime:
    """The same day so many months ago, or the last day of that month."""
    year, month = divmod(now.year * 12 + now.month - 1 - months, 12)
    for day in range(now.day, 27, -1):
        try:
            return now.replace(year=year, month=month + 1, day=day)
        except ValueError:
            continue
    return now.replace(year=year, month=month + 1)


def _may_go(log: PlannedLog, archive: Archive, number: int, before: datetime) -> bool:
    """Whether all entries of the bundle are old and archived. Raises LogDamaged if the archive has others, OSError."""
    first = number * TILE_WIDTH
    try:
        archived = Pruned(str(archive.directory)).read_bundle(number)
    except EntryPruned as error:
        raise LogDamaged(f"{archive.directory} does not hold bundle {number} whole: {error}") from error
    for offset, other in enumerate(archived):
        entry = log.entry(first + offset)
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
