"""The offline verifier: says whether a log directory is complete and unaltered, trusting only pinned keys.

It shares no code with the writer (nor with proof, merkle, checkpoint or record): own tree, own signed notes,
own canonical form. It re-hashes every byte of every entry: comparing stored hashes alone would report an
altered record as consistent. What it cannot see by itself is a whole log, checkpoint included, put back to
an older state: give it checkpoints that others hold (permits, receipts, witnesses, SIEMs) as `seen`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audit import verify_entry
from audit.verify_tree import (
    Accumulator,
    Note,
    PinnedKey,
    file_of,
    hash_leaf,
    read_frames,
    read_note,
    read_vkey,
)

WIDTH = 256
MAX_PROBLEMS = 1000
CHECKPOINT_LIMIT = 65536
_STEP_SECONDS = 1.0  # wall and monotonic clock may part this far between two records, plus 0.1 % (slewing)
_SLEW = 0.001


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; `index` is the entry's, where it is one entry's."""

    index: int | None
    what: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ok` is True only if there is no problem at all. `warnings` are for a person to judge."""

    ok: bool
    origin: str
    size: int
    root: bytes
    """Root of the entries that are there: the checkpoint's, if `ok`."""
    records: int
    permits: int
    problems: list[Problem]
    warnings: list[Problem]


def verify_log(
    directory: Path,
    vkeys: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    seen: Sequence[str] = (),
) -> Verdict:
    """Check the log in `directory` against the pinned C2SP verifier keys `vkeys`.

    `progress(entries done, entries in all)` is called once per 256 entries. `seen` are texts of checkpoints of
    this log that others hold. Raises ValueError if a key of `vkeys` or a checkpoint of `seen` is unusable,
    and OSError if the directory cannot be read; everything else is in the verdict.
    """
    keys = [read_vkey(vkey) for vkey in vkeys]
    expected = [read_note(text.encode("utf-8"), keys) for text in seen]
    check = _Check(directory, keys)
    note = check.checkpoint()
    if note is not None:
        for other in expected:
            check.expect(other, note)
        check.entries(note, progress)
        check.leftovers(note.size)
        if check.tree.count == note.size and check.tree.root() != note.root:
            check.report(None, f"the entries do not have the root that the checkpoint says at {note.size}")
    return Verdict(
        ok=not check.problems,
        origin=note.origin if note else "",
        size=note.size if note else 0,
        root=check.tree.root(),
        records=check.records,
        permits=check.permits,
        problems=check.problems,
        warnings=check.warnings,
    )


@dataclass(slots=True)
class _Check:
    """One run over a log."""

    directory: Path
    keys: Sequence[PinnedKey]
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    tree: Accumulator = field(default_factory=Accumulator)
    records: int = 0
    permits: int = 0
    _roots: dict[int, list[bytes]] = field(default_factory=dict)  # size -> roots that others saw
    _levels: list[list[bytes]] = field(default_factory=list)  # hashes of the unfinished tile of each level
    _last_record: Mapping[str, Any] | None = None
    _previous: tuple[Mapping[str, Any] | None, bytes] | None = None  # the entry before: (record, leaf hash)

    def report(self, index: int | None, what: str) -> None:
        _add(self.problems, index, what)

    def warn(self, index: int | None, what: str) -> None:
        _add(self.warnings, index, what)

    def checkpoint(self) -> Note | None:
        path = self.directory / "checkpoint"
        try:
            data = path.read_bytes()
            if len(data) > CHECKPOINT_LIMIT:
                raise ValueError("it is too large")
            return read_note(data, self.keys)
        except FileNotFoundError:
            if not self.directory.is_dir():
                raise
            self.report(None, "there is no checkpoint")
        except ValueError as error:
            self.report(None, f"the checkpoint cannot be trusted: {error}")
        return None

    def expect(self, seen: Note, note: Note) -> None:
        if seen.origin != note.origin:
            self.report(None, f"the log is {note.origin}, but {seen.origin} was seen")
        elif seen.size > note.size:
            self.report(None, f"the log has {note.size} entries, but {seen.size} were seen: it was put back")
        else:
            self._roots.setdefault(seen.size, []).append(seen.root)

    def entries(self, note: Note, progress: Callable[[int, int], None] | None) -> None:
        self._compare_root()
        for number in range(-(-note.size // WIDTH)):
            first = number * WIDTH
            wanted = min(WIDTH, note.size - first)
            bundle = self._bundle(number, wanted)
            if bundle is None:
                return  # without this bundle no later index or hash is known
            sealed, entries = bundle
            stored = self._stored_tile(0, number, required=sealed) if wanted == WIDTH else None
            for offset, entry in enumerate(entries):
                leaf = hash_leaf(entry)
                if stored is not None and stored[32 * offset : 32 * offset + 32] != leaf:
                    self.report(first + offset, "it does not have the hash in its tile")
                self._entry(first + offset, entry, leaf, note.origin)
                self.tree.add(leaf)
                self._compare_root()
                self._grow_tile(0, leaf, first + offset, sealed=sealed)
            if progress is not None:
                progress(first + len(entries), note.size)

    def leftovers(self, size: int) -> None:
        """Files that no entry accounts for, and bytes that were never committed."""
        full = size // WIDTH
        expected = {file_of(self.directory, "entries", number) for number in range(full)}
        level, tiles = 0, full
        while tiles:
            expected |= {file_of(self.directory, str(level), number) for number in range(tiles)}
            level, tiles = level + 1, tiles // WIDTH
        for path in sorted((self.directory / "tile").rglob("*")):
            if not path.is_dir() and path not in expected:
                self.report(None, f"{path.relative_to(self.directory)} is not part of the log at {size}")
        for path in sorted((self.directory / "tail").glob("*")):
            name = path.relative_to(self.directory)
            if not (path.name.isascii() and path.name.isdigit()):
                self.report(None, f"{name} is not part of the log")
            elif int(path.name) * WIDTH >= size:
                self.warn(None, f"{name} is beyond the checkpoint: uncommitted, or it was put back")
            elif file_of(self.directory, "entries", int(path.name)).exists() and path.exists():
                self.report(None, f"{name} is in its bundle already")
        for path in sorted((self.directory / "cut").glob("*")):
            self.warn(None, f"{path.relative_to(self.directory)} was cut off by a recovery: look at it")

    def _bundle(self, number: int, wanted: int) -> tuple[bool, list[bytes]] | None:
        found = _read_either(self.directory, number)
        if found is None:
            self.report(number * WIDTH, f"entries {number * WIDTH} to {number * WIDTH + wanted - 1} are missing")
            return None
        sealed, data = found
        entries, rest = read_frames(data)
        if len(entries) < wanted:
            self.report(number * WIDTH + len(entries), "the log ends here, before its checkpoint, or is misframed")
            return None
        if len(entries) > wanted or rest:
            if sealed:
                self.report(None, f"bundle {number} holds more than {WIDTH} entries")
            else:
                self.warn(None, f"tail {number} goes on beyond the checkpoint: uncommitted, or it was put back")
        return sealed, entries[:wanted]

    def _entry(self, index: int, entry: bytes, leaf: bytes, origin: str) -> None:
        record: Mapping[str, Any] | None = None
        try:
            value = verify_entry.parse(entry)
        except verify_entry.Malformed as error:
            self.report(index, str(error))
        else:
            if "kind" in value:
                self.permits += 1
                decision, decision_hash = self._previous or (None, None)
                faults = verify_entry.permit_faults(value, index, decision, decision_hash)
            else:
                self.records += 1
                faults = verify_entry.record_faults(value, index, origin, self.keys)
                record = value["record"] if isinstance(value.get("record"), dict) else None
            for fault in faults:
                self.report(index, fault)
            if record is not None:
                self._clock(index, record)
        self._previous = (record, leaf)

    def _clock(self, index: int, record: Mapping[str, Any]) -> None:
        """Warn of time that runs backwards or jumps without a record of kind `clock-step` that says so."""
        before, self._last_record = self._last_record, record
        if before is None or record.get("kind") == "clock-step":
            return
        now, then = verify_entry.time_of(record), verify_entry.time_of(before)
        ticks, ticks_before = record.get("monotonic_ns"), before.get("monotonic_ns")
        if now is None or then is None or type(ticks) is not int or type(ticks_before) is not int:
            return
        wall = (now - then).total_seconds()
        if wall < 0:
            self.warn(index, f"its clock is {-wall:.6f} s behind the record before it")
        if record.get("boot_id") != before.get("boot_id"):
            return
        elapsed = (ticks - ticks_before) / 1e9
        if elapsed < 0:
            self.warn(index, "its monotonic clock runs backwards within one boot")
        elif abs(wall - elapsed) > _STEP_SECONDS + _SLEW * elapsed:
            self.warn(index, f"the clock was stepped by {wall - elapsed:+.3f} s (or the machine slept)")

    def _compare_root(self) -> None:
        for root in self._roots.pop(self.tree.count, ()):
            if root != self.tree.root():
                self.report(None, f"history was rewritten: another root was seen at size {self.tree.count}")

    def _grow_tile(self, level: int, node: bytes, index: int, *, sealed: bool) -> None:
        """Compare each tile above the entries with what its 256 children hash to."""
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(node)
        if len(self._levels[level]) < WIDTH:
            return
        nodes, self._levels[level] = self._levels[level], []
        if level > 0:
            number = index // WIDTH ** (level + 1)
            stored = self._stored_tile(level, number, required=sealed)
            if stored is not None and stored != b"".join(nodes):
                self.report(None, f"hash tile {level}/{number} does not have the hashes of its entries")
        summit = Accumulator()
        for one in nodes:
            summit.add(one)
        self._grow_tile(level + 1, summit.root(), index, sealed=sealed)

    def _stored_tile(self, level: int, number: int, *, required: bool) -> bytes | None:
        try:
            stored = file_of(self.directory, str(level), number).read_bytes()
        except FileNotFoundError:
            if required:
                self.report(None, f"hash tile {level}/{number} is missing")
            return None
        if len(stored) != 32 * WIDTH:
            self.report(None, f"hash tile {level}/{number} is {len(stored)} bytes long")
            return None
        return stored


def _read_either(directory: Path, number: int) -> tuple[bool, bytes] | None:
    """Bundle `number` and whether it is sealed; a running log may move it between two looks."""
    sealed, tail = file_of(directory, "entries", number), directory / "tail" / str(number)
    for path in (sealed, tail, sealed):
        try:
            return path is sealed, path.read_bytes()
        except FileNotFoundError:
            continue
    return None


def _add(problems: list[Problem], index: int | None, what: str) -> None:
    if len(problems) < MAX_PROBLEMS:
        problems.append(Problem(index, what))
    elif len(problems) == MAX_PROBLEMS:
        problems.append(Problem(None, f"there are more than {MAX_PROBLEMS}; the rest is not listed"))
