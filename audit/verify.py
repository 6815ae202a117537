"""The offline verifier: says whether a log directory is complete and unaltered, trusting only pinned keys.

It shares no code with the writer (nor with proof, merkle, checkpoint or record): own tree, own signed notes,
own canonical form. It re-hashes every byte of every entry: comparing stored hashes alone would report an
altered record as consistent. What it cannot see by itself is a whole log, checkpoint included, put back to
an older state: give it checkpoints that others hold (permits, receipts, witnesses, SIEMs) as `seen`.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from audit import verify_entry
from audit.verify_cosignature import cosigned_at, read_witness
from audit.verify_keys import joined_keys
from audit.verify_range import (
    MAX_PROBLEMS,
    WIDTH,
    Bundle,
    Found,
    Job,
    Problem,
    add,
    check_range,
    read_bundle,
    stored_tile,
)
from audit.verify_receipt import read_authorities
from audit.verify_tree import Accumulator, Note, file_of, read_frames, read_note, read_vkey
from audit.verify_work import in_order

__all__ = ["Options", "Problem", "Verdict", "verify_log"]

CHECKPOINT_LIMIT = 65536
BUNDLES_OF_A_JOB = 16
SAMPLE_ONE_IN = 64


@dataclass(frozen=True, slots=True)
class Options:
    """How to verify. `workers`: processes. `sampled`: check one record signature in 64, drawn now; else all.

    A record that is in the tree is covered by the checkpoint's signature, by the same key: its own says the same once
    more, for whoever sees the record alone. `authorities`: PEM of those that issue hosts' certificates. `witnesses`:
    verifier keys, each of which must have cosigned the checkpoint. `heartbeat_seconds`: what was promised, where the
    records do not say so themselves.
    """

    workers: int = 1
    sampled: bool = False
    authorities: bytes = b""
    witnesses: Sequence[str] = ()
    heartbeat_seconds: int | None = None
    archive: Path | None = None
    """Where entries are that were pruned from the log: without it, their hashes alone are checked."""


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
    receipts: int
    signatures: int
    """How many records had their own signature checked."""
    cosignatures: list[tuple[str, int]]
    """Witness and unix time, of those that were given."""
    pruned: int
    """Entries that are not here any more, as a record says: only their hashes were checked."""
    problems: list[Problem]
    warnings: list[Problem]


def verify_log(
    directory: Path,
    vkeys: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
    *,
    seen: Sequence[str] = (),
    options: Options | None = None,
) -> Verdict:
    """Check the log in `directory` against the pinned C2SP verifier keys `vkeys`.

    `progress(entries done, entries in all)` is called every few thousand entries. `seen` are texts of checkpoints of
    this log that others hold. Raises ValueError if a key of `vkeys`, an option or a checkpoint of `seen` is unusable,
    and OSError if the directory cannot be read; everything else is in the verdict.
    """
    options = options or Options()
    keys = [read_vkey(vkey) for vkey in vkeys]
    expected = [read_note(text.encode("utf-8"), keys) for text in seen]
    if options.authorities:
        read_authorities(options.authorities)  # what cannot be read is said before anything is
    check = _Check(directory, tuple(vkeys), tuple(vkeys), options)
    check.learn_keys()
    note = check.checkpoint()
    if note is not None:
        for other in expected:
            check.expect(other, note)
        check.prunings(note)
        check.entries(note, progress)
        check.silences()
        check.leftovers(note.size)
        if check.tree.count == note.size and check.tree.root() != note.root:
            check.report(None, f"the entries do not have the root that the checkpoint says at {note.size}")
    return Verdict(
        ok=not check.problems,
        origin=note.origin if note else "",
        size=note.size if note else 0,
        root=check.tree.root(),
        records=check.sum.records,
        permits=check.sum.permits,
        receipts=check.sum.receipts,
        signatures=check.sum.signatures,
        cosignatures=check.cosignatures,
        pruned=check.sum.pruned,
        problems=check.problems,
        warnings=check.warnings,
    )


@dataclass(slots=True)
class _Check:
    """One run over a log."""

    directory: Path
    vkeys: tuple[str, ...]  # under which entries count
    heirs: tuple[str, ...]  # and the checkpoint
    options: Options
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    tree: Accumulator = field(default_factory=Accumulator)
    sum: Found = field(default_factory=Found)
    cosignatures: list[tuple[str, int]] = field(default_factory=list)
    _pruned: int = 0  # bundles below this may be missing
    _roots: dict[int, list[bytes]] = field(default_factory=dict)  # size -> roots that others saw
    _levels: list[list[bytes]] = field(default_factory=list)  # hashes of the unfinished tile of each level above 0

    def report(self, index: int | None, what: str) -> None:
        add(self.problems, index, what)

    def warn(self, index: int | None, what: str) -> None:
        add(self.warnings, index, what)

    def learn_keys(self) -> None:
        """Those that the pinned ones vouch for; a file that does not hold together is a finding, and none is learnt."""
        try:
            joined = joined_keys(self.directory, self.vkeys)
            self.vkeys, self.heirs = joined.every, joined.heirs
        except ValueError as error:
            self.report(None, f"the log's file of keys cannot be trusted: {error}")

    def checkpoint(self) -> Note | None:
        path = self.directory / "checkpoint"
        witnesses = [read_witness(vkey) for vkey in self.options.witnesses]
        try:
            data = path.read_bytes()
            if len(data) > CHECKPOINT_LIMIT:
                raise ValueError("it is too large")
            note = self._note(data)
            for witness in witnesses:
                time = cosigned_at(data, note, witness)
                if time is None:
                    there = (self.directory / "cosigned").exists()
                    aside = "; what witnesses cosigned stands in the file `cosigned`" if there else ""
                    self.report(None, f"the checkpoint carries no cosignature of {witness.name}{aside}")
                else:
                    self.cosignatures.append((witness.name, time))
        except FileNotFoundError:
            if not self.directory.is_dir():
                raise
            self.report(None, "there is no checkpoint")
        except ValueError as error:
            self.report(None, f"the checkpoint cannot be trusted: {error}")
        else:
            return note
        return None

    def _note(self, data: bytes) -> Note:
        try:
            return read_note(data, [read_vkey(vkey) for vkey in self.heirs])
        except ValueError:
            read_note(data, [read_vkey(vkey) for vkey in self.vkeys])
            raise ValueError(
                "it is signed by a former key of the log, and by no given one: it is a copy of before the key was"
                " switched, or the gateway was not started again since (give the former key for either), or whoever has"
                " the former key made it"
            ) from None

    def expect(self, seen: Note, note: Note) -> None:
        if seen.origin != note.origin:
            self.report(None, f"the log is {note.origin}, but {seen.origin} was seen")
        elif seen.size > note.size:
            self.report(None, f"the log has {note.size} entries, but {seen.size} were seen: it was put back")
        else:
            self._roots.setdefault(seen.size, []).append(seen.root)

    def prunings(self, note: Note) -> None:
        """Which bundles may be missing: what the log's file says, if a record of the log says the same."""
        try:
            said = json.loads((self.directory / "pruned").read_bytes())
            bundles, index = said["bundles"], said["record"]
            if not (
                type(bundles) is int and type(index) is int and 0 <= bundles <= index // WIDTH and index < note.size
            ):
                raise ValueError("its numbers are out of range")
            found = read_bundle(self.directory, index // WIDTH)
            record = verify_entry.parse(read_frames(found[1])[0][index % WIDTH])["record"] if found else None
            # The record's own hash and signature are checked where its range is.
            if record is None or record["kind"] != "log.pruned" or record["details"]["bundles"] != bundles:
                raise ValueError("no record says so")
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, IndexError, RecursionError, verify_entry.Malformed) as error:
            self.report(None, f"what is said to be pruned cannot be believed: {error}")
        else:
            self._pruned = bundles

    def entries(self, note: Note, progress: Callable[[int, int], None] | None) -> None:
        self._compare_root()
        for found in self._ranges(note):
            self._take(found)
            if progress is not None:
                progress(self.tree.count, note.size)
            if found.is_cut_short:
                return

    def silences(self) -> None:
        """Where a heartbeat was promised and none came, something is missing, or the gateway hung."""
        for one in self.sum.silences:
            promised = self.options.heartbeat_seconds or self.sum.promises.get(one.boot_id)
            if promised is not None and one.seconds > 2 * promised + 5:
                self.warn(
                    one.index, f"silence of {one.seconds:.0f} s before it, with a heartbeat due every {promised} s"
                )
        if self.sum.unsigned_receipts:
            self.warn(None, f"how many receipts carry no host's signature: {self.sum.unsigned_receipts}")

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

    def _ranges(self, note: Note) -> Iterator[Found]:
        """What each range holds, in order; by several processes where it pays."""
        seed = secrets.randbits(128)
        bundles = -(-note.size // WIDTH)
        within = frozenset(size // WIDTH for size in self._roots if size % WIDTH)
        jobs = (
            Job(
                self.directory,
                first,
                min(BUNDLES_OF_A_JOB, bundles - first),
                note.size,
                note.origin,
                self.vkeys,
                self.options.authorities,
                within & frozenset(range(first, first + BUNDLES_OF_A_JOB)),
                SAMPLE_ONE_IN if self.options.sampled else 1,
                seed,
                self._pruned,
                self.options.archive,
            )
            for first in range(0, bundles, BUNDLES_OF_A_JOB)
        )
        if self.options.workers == 1 or bundles <= 2 * BUNDLES_OF_A_JOB:
            yield from map(check_range, jobs)
            return
        yield from in_order(check_range, jobs, self.options.workers)

    def _take(self, found: Found) -> None:
        for problems, others in ((self.problems, found.problems), (self.warnings, found.warnings)):
            for one in others:
                if len(problems) <= MAX_PROBLEMS:
                    add(problems, one.index, one.what)
        total = self.sum
        total.records += found.records
        total.permits += found.permits
        total.receipts += found.receipts
        total.unsigned_receipts += found.unsigned_receipts
        total.signatures += found.signatures
        total.pruned += found.pruned
        total.silences += found.silences[: MAX_PROBLEMS * 4 - len(total.silences)]
        total.promises |= found.promises
        for bundle in found.bundles:
            self._grow(bundle)

    def _grow(self, bundle: Bundle) -> None:
        if bundle.leaves is not None:
            for leaf in bundle.leaves:
                self.tree.add(leaf)
                self._compare_root()
        elif bundle.root is not None:
            self.tree.add(bundle.root, height=8)
            self._compare_root()
        if bundle.root is not None:
            self._grow_tile(1, bundle.root, bundle.number, sealed=bundle.sealed)

    def _compare_root(self) -> None:
        for root in self._roots.pop(self.tree.count, ()):
            if root != self.tree.root():
                self.report(None, f"history was rewritten: another root was seen at size {self.tree.count}")

    def _grow_tile(self, level: int, node: bytes, number: int, *, sealed: bool) -> None:
        """Compare each tile above the entries with what its 256 children hash to. `number` is the child's."""
        if level > len(self._levels):
            self._levels.append([])
        self._levels[level - 1].append(node)
        if len(self._levels[level - 1]) < WIDTH:
            return
        nodes, self._levels[level - 1] = self._levels[level - 1], []
        stored = stored_tile(self.directory, level, number // WIDTH, self.problems, required=sealed)
        if stored is not None and stored != b"".join(nodes):
            self.report(None, f"hash tile {level}/{number // WIDTH} does not have the hashes of its entries")
        summit = Accumulator()
        for one in nodes:
            summit.add(one)
        self._grow_tile(level + 1, summit.root(), number // WIDTH, sealed=sealed)
