"""Of the offline verifier: everything that can be said of a range of entries without the others. One task of a worker.

Shares no code with the writer, on purpose. It reads a few entries before its range, so that what belongs together (a
permit and its decision, two records and the time between them) is seen whoever looks at which range.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from cryptography import x509

from audit import verify_entry, verify_receipt
from audit.verify_group import Signatures
from audit.verify_tree import file_of, hash_children, hash_leaf, read_frames, read_vkey

WIDTH = 256
MAX_PROBLEMS = 1000
MAX_SILENCES = 1000
SILENCE_SECONDS = 90.0  # shorter ones are of no interest, whatever was promised
_STEP_SECONDS = 1.0  # wall and monotonic clock may part this far between two records, plus 0.1 % (slewing)
_SLEW = 0.001


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; `index` is the entry's, where it is one entry's."""

    index: int | None
    what: str


@dataclass(frozen=True, slots=True)
class Job:
    """Bundles [first, first + count) of the log in `directory`, whose checkpoint says `origin` and `size`.

    Of the record signatures `one_in` are checked, drawn by `seed`, which nobody knew who wrote the log. Bundles below
    `pruned` may be missing; `archive` may have them.
    """

    directory: Path
    first: int
    count: int
    size: int
    origin: str
    vkeys: tuple[str, ...]
    authorities: bytes = b""
    leaves_of: frozenset[int] = frozenset()
    one_in: int = 1
    seed: int = 0
    pruned: int = 0
    archive: Path | None = None


@dataclass(frozen=True, slots=True)
class Silence:
    """No record for so long, within one boot."""

    index: int
    seconds: float
    boot_id: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a bundle hashes to: `root` of a full one; its leaves, where it is not full or they are wanted."""

    number: int
    sealed: bool
    root: bytes | None
    leaves: tuple[bytes, ...] | None


@dataclass(slots=True)
class Found:
    """What a range holds."""

    bundles: list[Bundle] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    silences: list[Silence] = field(default_factory=list)
    promises: dict[str, int] = field(default_factory=dict)
    records: int = 0
    permits: int = 0
    receipts: int = 0
    unsigned_receipts: int = 0
    signatures: int = 0
    pruned: int = 0
    is_cut_short: bool = False


def check_range(job: Job) -> Found:
    """Check all entries of the range by themselves and against their neighbours and hash tiles. Raises OSError."""
    return _Range(job, Signatures([read_vkey(vkey) for vkey in job.vkeys])).run()


_Clock = tuple[datetime, int, object]
"""What a record says of its moment: time, monotonic nanoseconds, boot."""


@dataclass(slots=True)
class _Range:
    job: Job
    signatures: Signatures
    found: Found = field(default_factory=Found)
    _authorities: Sequence[x509.Certificate] = ()
    _last_clock: _Clock | None = None  # of the last record
    _previous: tuple[Mapping[str, Any] | None, bytes] | None = None  # the entry before: (record, leaf hash)

    def run(self) -> Found:
        job = self.job
        self._authorities = verify_receipt.read_authorities(job.authorities) if job.authorities else ()
        draw = random.Random(f"{job.seed}/{job.first}") if job.one_in > 1 else None  # noqa: S311 - the seed is secret
        self._look_back()
        for number in range(job.first, job.first + job.count):
            first = number * WIDTH
            wanted = min(WIDTH, job.size - first)
            if self._is_pruned(number):
                continue
            bundle = self._bundle(number, wanted)
            if bundle is None:
                self.found.is_cut_short = True  # without this bundle no later index or hash is known
                break
            sealed, entries = bundle
            leaves = [hash_leaf(entry) for entry in entries]
            stored = self._stored_tile(number, required=sealed) if wanted == WIDTH else None
            differs = stored is not None and stored != b"".join(leaves)
            for index, entry, leaf in zip(count(first), entries, leaves, strict=False):
                if differs and stored is not None and stored[32 * (index - first) :][:32] != leaf:
                    self._report(index, "it does not have the hash in its tile")
                self._entry(index, entry, leaf, signature=draw is None or draw.randrange(job.one_in) == 0)
            self._close(number, sealed, leaves)
        return self.found

    def _is_pruned(self, number: int) -> bool:
        """Whether the bundle is allowed to be missing and is: then its hash tile stands for it."""
        if number >= self.job.pruned or self._read(number) is not None:
            return False
        stored = self._stored_tile(number, required=True)
        if stored is None:
            return False
        self.found.pruned += WIDTH
        self._previous = self._last_clock = None
        self._close(number, True, [stored[32 * offset : 32 * offset + 32] for offset in range(WIDTH)])
        return True

    def _read(self, number: int) -> tuple[bool, bytes] | None:
        found = read_bundle(self.job.directory, number)
        if found is None and number < self.job.pruned and self.job.archive is not None:
            return read_bundle(self.job.archive, number)
        return found

    def _close(self, number: int, sealed: bool, leaves: list[bytes]) -> None:
        is_full = len(leaves) == WIDTH
        kept = tuple(leaves) if not is_full or number in self.job.leaves_of else None
        self.found.bundles.append(Bundle(number, sealed, _root_of_full(leaves) if is_full else None, kept))

    def _look_back(self) -> None:
        """The entry before the range, and the last record before it; what is wrong with them is another's to say."""
        if self.job.first == 0:
            return
        found = self._read(self.job.first - 1)
        entries = read_frames(found[1])[0] if found is not None else []
        for offset, entry in enumerate(reversed(entries[:WIDTH])):
            record = _record_of(entry)
            if offset == 0:
                self._previous = (record, hash_leaf(entry))
            if record is not None:
                self._last_clock = _clock_of(record)
                return

    def _report(self, index: int | None, what: str) -> None:
        add(self.found.problems, index, what)

    def _warn(self, index: int | None, what: str) -> None:
        add(self.found.warnings, index, what)

    def _bundle(self, number: int, wanted: int) -> tuple[bool, list[bytes]] | None:
        read = self._read(number)
        if read is None:
            self._report(number * WIDTH, f"entries {number * WIDTH} to {number * WIDTH + wanted - 1} are missing")
            return None
        sealed, data = read
        entries, rest = read_frames(data)
        if len(entries) < wanted:
            self._report(number * WIDTH + len(entries), "the log ends here, before its checkpoint, or is misframed")
            return None
        if len(entries) > wanted or rest:
            if sealed:
                self._report(None, f"bundle {number} holds more than {WIDTH} entries")
            else:
                self._warn(None, f"tail {number} goes on beyond the checkpoint: uncommitted, or it was put back")
        return sealed, entries[:wanted]

    def _stored_tile(self, number: int, *, required: bool) -> bytes | None:
        return stored_tile(self.job.directory, 0, number, self.found.problems, required=required)

    def _entry(self, index: int, entry: bytes, leaf: bytes, *, signature: bool) -> None:
        record: Mapping[str, Any] | None = None
        try:
            value = verify_entry.parse(entry)
        except verify_entry.Malformed as error:
            self._report(index, str(error))
            self._previous = (None, leaf)
            return
        if "kind" in value:
            self.found.permits += 1
            decision, decision_hash = self._previous or (None, None)
            faults = verify_entry.permit_faults(value, index, decision, decision_hash)
        else:
            self.found.records += 1
            self.found.signatures += signature
            faults = verify_entry.record_faults(
                value, entry, index, self.job.origin, self.signatures, signature=signature
            )
            record = value["record"] if isinstance(value.get("record"), dict) else None
        sound = True
        for fault in faults:
            self._report(index, fault)
            sound = False
        if record is not None:
            if sound and record["kind"] == "migration.receipt":
                self._receipt(index, record)
            self._clock(index, record)
        self._previous = (record, leaf)

    def _receipt(self, index: int, record: Mapping[str, Any]) -> None:
        # Never by lot: a host signed it, whose key is not the log's, so that the tree's signature says nothing of it.
        self.found.receipts += 1
        self.found.unsigned_receipts += verify_receipt.is_unsigned(record["details"])
        for fault in verify_receipt.receipt_faults(record, self._authorities):
            self._report(index, fault)

    def _clock(self, index: int, record: Mapping[str, Any]) -> None:
        """Warn of time that runs backwards or jumps without a record of kind `clock-step` that says so."""
        kind = record.get("kind")
        if kind == "gateway.started" and isinstance(details := record.get("details"), dict):
            promise = details.get("heartbeat_seconds")
            if type(promise) is int:
                self.found.promises[str(record.get("boot_id"))] = promise
        before, self._last_clock = self._last_clock, _clock_of(record)
        if before is None or self._last_clock is None or kind == "clock-step":
            return
        then, ticks_before, boot_before = before
        now, ticks, boot = self._last_clock
        wall = (now - then).total_seconds()
        if wall < 0:
            self._warn(index, f"its clock is {-wall:.6f} s behind the record before it")
        if boot != boot_before:
            return
        elapsed = (ticks - ticks_before) / 1e9
        if elapsed < 0:
            self._warn(index, "its monotonic clock runs backwards within one boot")
        elif abs(wall - elapsed) > _STEP_SECONDS + _SLEW * elapsed:
            self._warn(index, f"the clock was stepped by {wall - elapsed:+.3f} s (or the machine slept)")
        if elapsed > SILENCE_SECONDS and len(self.found.silences) < MAX_SILENCES:
            self.found.silences.append(Silence(index, elapsed, str(boot)))


def _clock_of(record: Mapping[str, Any]) -> _Clock | None:
    """None where it is malformed."""
    now, ticks = verify_entry.time_of(record), record.get("monotonic_ns")
    return (now, ticks, record.get("boot_id")) if now is not None and type(ticks) is int else None


def add(problems: list[Problem], index: int | None, what: str) -> None:
    """Note a problem; of very many the first ones."""
    if len(problems) < MAX_PROBLEMS:
        problems.append(Problem(index, what))
    elif len(problems) == MAX_PROBLEMS:
        problems.append(Problem(None, f"there are more than {MAX_PROBLEMS}; the rest is not listed"))


def read_bundle(directory: Path, number: int) -> tuple[bool, bytes] | None:
    """Bundle `number` and whether it is sealed; a running log may move it between two looks."""
    sealed, tail = file_of(directory, "entries", number), directory / "tail" / str(number)
    for path in (sealed, tail, sealed):
        try:
            return path is sealed, path.read_bytes()
        except FileNotFoundError:
            continue
    return None


def stored_tile(directory: Path, level: int, number: int, problems: list[Problem], *, required: bool) -> bytes | None:
    """The bytes of a hash tile, or None with a problem if it is not whole (or, if it must be there, missing)."""
    try:
        stored = file_of(directory, str(level), number).read_bytes()
    except FileNotFoundError:
        if required:
            add(problems, None, f"hash tile {level}/{number} is missing")
        return None
    if len(stored) != 32 * WIDTH:
        add(problems, None, f"hash tile {level}/{number} is {len(stored)} bytes long")
        return None
    return stored


def _root_of_full(nodes: Sequence[bytes]) -> bytes:
    """Of as many leaves as a bundle has: a power of two."""
    while len(nodes) > 1:
        nodes = [hash_children(left, right) for left, right in zip(nodes[::2], nodes[1::2], strict=True)]
    return nodes[0]


def _record_of(entry: bytes) -> Mapping[str, Any] | None:
    try:
        record = verify_entry.parse(entry).get("record")
    except verify_entry.Malformed:
        return None
    return record if isinstance(record, dict) else None
