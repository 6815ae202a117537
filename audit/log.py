"""The log: one writer that acknowledges nothing before it is durable under a signed checkpoint.

A commit is: append to the tail → fdatasync → sign the checkpoint → replace it atomically → return. Opening
runs the same steps: what the checkpoint covers must be there and have its root, or the log is refused;
what lies beyond it was never acknowledged and is cut off (and kept aside, and said). After any I/O
error nothing is known of the disk's state: the log refuses everything until it is reopened.

Synchronous, and confined to one thread at a time by its caller (flock keeps out other processes).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Self

from audit import merkle, tiles
from audit.checkpoint import Checkpoint, LogSigner, open_checkpoint, sign_checkpoint
from audit.disk import Disk
from audit.errors import CheckpointError, EntryPruned, LogDamaged, LogFailed, LogTruncated, RecordError, RecordInvalid
from audit.group import Draft, require_draft, sign_drafts
from audit.proof import leaf_hash
from audit.pruned import Pruned
from audit.store import Store
from audit.tiles import TILE_WIDTH

EntryBuilder = Callable[[int], Sequence[Draft]]  # (index of its first entry) -> its entries, at least one


def build_entries(build: EntryBuilder, index: int) -> Sequence[Draft]:
    """What `build` makes of its first index, if it may go into a log. Raises RecordError, and what `build` raises."""
    drafts = build(index)
    if not drafts:
        raise RecordInvalid("a builder gave no entry")
    for draft in drafts:
        require_draft(draft)
    return drafts


@dataclass(frozen=True, slots=True)
class Commit:
    """What one `append` made durable. Independent of the log since: any thread may ask it for proofs."""

    checkpoint_text: str
    size: int
    root: bytes
    first_index: tuple[int, ...]
    """Index of the first entry of each builder, in their order."""
    _growth: merkle.Growth = field(repr=False)

    def leaf_hash(self, index: int) -> bytes:
        """Of an entry that this commit appended."""
        self._require_own(index)
        return self._growth.leaves[index - self._growth.old_size]

    def inclusion_path(self, index: int) -> list[bytes]:
        """RFC 6962 audit path, in the tree of `size`, of an entry that this commit appended."""
        self._require_own(index)
        return merkle.inclusion_path(index, self.size, self._growth.subtree)

    def _require_own(self, index: int) -> None:
        if not self._growth.old_size <= index < self.size:
            raise IndexError(f"entry {index} is not of this commit")


@dataclass(frozen=True, slots=True)
class Recovery:
    """What opening cut off beyond the checkpoint: never acknowledged, so nobody relies on it.

    Unless an older checkpoint was put back: an operator should look at `kept`, and it should be recorded.
    """

    first_index: int
    cut_bytes: int
    kept: tuple[Path, ...]


class Log:
    """An open log. Use `Log.open`; `close` (or leave the `with` block) lets go of it."""

    def __init__(self, store: Store, signer: LogSigner) -> None:
        self._store = store
        self._signer = signer
        self._failed: str | None = None
        self._tails: dict[int, list[bytes]] = {}  # entries of bundles that are not sealed, by bundle number
        self._read_tile = lru_cache(64)(store.read_tile)
        self._read_bundle = lru_cache(8)(self._checked_bundle)
        self._tree = merkle.Tree(self._read_tile)
        self._size = 0
        self.checkpoint_text = ""
        self.recovery: Recovery | None = None

    @classmethod
    def open(
        cls, directory: Path, signer: LogSigner, *, known: Checkpoint | None = None, disk: Disk | None = None
    ) -> Self:
        """Create the log, or recover it. `known` is a checkpoint of it that someone else remembers.

        Raises LogLocked, LogFailed (I/O), LogTruncated (it holds less than its checkpoint or `known` says) or
        LogDamaged (it contradicts one of them): all for the operator, none is repaired here.
        """
        try:
            store = Store(directory, disk or Disk())
        except OSError as error:
            raise LogFailed(f"cannot open the log {directory}: {error}") from error
        log = cls(store, signer)
        try:
            log._recover()
            if known is not None:
                log.require_extends(known)
        except OSError as error:
            store.close()
            raise LogFailed(f"cannot open the log {directory}: {error}") from error
        except BaseException:
            store.close()
            raise
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the log, also after a failure. Everything acknowledged is durable already."""
        self._failed = self._failed or "it was closed"
        self._store.close()

    @property
    def size(self) -> int:
        """Number of committed entries."""
        return self._size

    @property
    def origin(self) -> str:
        """The log's origin, as in its checkpoints."""
        return self._signer.origin

    @property
    def signer(self) -> LogSigner:
        """Who signs its checkpoints, and records before they are committed."""
        return self._signer

    def append(self, builders: Sequence[EntryBuilder]) -> Commit:
        """Commit the entries of all `builders`, in order, as one group; durable on return.

        A builder that raises fails the whole group with its own error before anything is written: nothing
        changed, append the others again. LogFailed or LogDamaged: nothing is acknowledged, and it is
        not known whether the group is in the log; reopen.
        """
        self._require_working()
        first_index, drafts = [], list[Draft]()
        for build in builders:
            first_index.append(self._size + len(drafts))
            drafts += build_entries(build, first_index[-1])
        return self.commit(sign_drafts(drafts, self._signer), first_index)

    def commit(self, entries: Sequence[bytes], first_index: Sequence[int]) -> Commit:
        """Commit signed entries that were built for this size of the log; `first_index` of each builder.

        Raises RecordInvalid for none; else as `append`.
        """
        self._require_working()
        if not entries:
            raise RecordInvalid("a commit needs at least one entry")
        try:
            self._store.require_untouched()
            self._seal_full_bundles()
            return self._commit(entries, tuple(first_index))
        except OSError as error:
            self._failed = str(error)
            raise LogFailed(f"the log could not be written ({error})") from error
        except BaseException as error:
            self._failed = str(error) or type(error).__name__
            raise

    def entry(self, index: int) -> bytes:
        """The committed entry at `index`, checked against its hash tile. Raises IndexError (EntryPruned), LogError."""
        if not 0 <= index < self._size:
            raise IndexError(f"entry {index} is not in a log of size {self._size}")
        number, offset = divmod(index, TILE_WIDTH)
        tail = self._tails.get(number)
        return tail[offset] if tail is not None else self._read_bundle(number)[offset]

    def entries(self, start: int, end: int) -> Iterator[bytes]:
        """The committed entries [start, end), as they are asked for."""
        return (self.entry(index) for index in range(start, end))

    def resource(self, wanted: tiles.Resource) -> bytes:
        """A tile or bundle as C2SP serves it: of any width that the committed tree has. Raises IndexError, LogError."""
        level = wanted.level or 0
        start = wanted.number * TILE_WIDTH
        if start + wanted.width > self._size >> 8 * level:
            raise IndexError(f"a log of size {self._size} does not have this tile")
        if wanted.level is not None:
            return b"".join(self._tree.tile(level, wanted.number)[: wanted.width])
        return b"".join(map(tiles.frame, self.entries(start, start + wanted.width)))

    def inclusion_path(self, index: int, size: int) -> list[bytes]:
        """RFC 6962 audit path of entry `index` in the tree of `size`. Raises IndexError, LogError."""
        if not 0 <= index < size <= self._size:
            raise IndexError(f"no proof of entry {index} in size {size}: the log's size is {self._size}")
        return merkle.inclusion_path(index, size, self._tree.subtree)

    def consistency_path(self, old_size: int, new_size: int) -> list[bytes]:
        """RFC 6962 consistency proof between two sizes. Raises IndexError, LogError."""
        if not 1 <= old_size <= new_size <= self._size:
            raise IndexError(f"no proof from {old_size} to {new_size}: the log's size is {self._size}")
        return merkle.consistency_path(old_size, new_size, self._tree.subtree)

    def root_at(self, size: int) -> bytes:
        """Tree hash of the first `size` entries. Raises IndexError, LogError."""
        if not 0 <= size <= self._size:
            raise IndexError(f"no root of size {size}: the log's size is {self._size}")
        return merkle.root_of(size, self._tree.subtree)

    def require_untouched(self) -> None:
        """Refuse to go on where a file of it was removed, replaced or changed under us. Raises LogDamaged, OSError."""
        self._require_working()
        self._store.require_untouched()

    def require_extends(self, known: Checkpoint) -> None:
        """Refuse a log that is not a continuation of `known`. Raises LogTruncated, LogDamaged."""
        directory = self._store.directory
        if known.origin != self.origin:
            raise LogDamaged(f"{directory} is not the log {known.origin} that is known elsewhere")
        if known.size > self._size:
            raise LogTruncated(
                f"{directory} has {self._size} entries where {known.size} were seen; an older copy was put back"
            )
        if self.root_at(known.size) != known.root:
            raise LogDamaged(f"{directory} differs from what was seen of it at size {known.size}")

    # Pruning

    @property
    def pruned(self) -> Pruned:
        """What is no longer here."""
        return self._store.pruned

    def left_over(self) -> Iterator[int]:
        """Bundles that were pruned and are still here."""
        return self._store.left_over()

    def write_pruned(self, pruned: Pruned) -> None:
        """Let bundles go that a committed record says are pruned. Raises LogDamaged if it does not, OSError."""
        self._require_said(pruned)
        self._store.write_pruned(pruned)

    def remove_pruned(self, numbers: Sequence[int] | None = None) -> None:
        """Remove what is left over, or only these of it. Raises OSError."""
        self._store.remove_pruned(numbers)

    def _require_said(self, pruned: Pruned) -> None:
        if not pruned.bundles:
            return
        try:
            said = pruned.record < self._size and pruned.is_said_by(self.entry(pruned.record))
        except (EntryPruned, RecordError):
            said = False
        if not said:
            raise LogDamaged(f"no record of {self._store.directory} says that its entries were pruned; restore them")

    # Writing

    def _commit(self, entries: Sequence[bytes], first_index: tuple[int, ...]) -> Commit:
        self._store.append(self._size, entries)
        leaves = [leaf_hash(entry) for entry in entries]
        growth = merkle.Growth(self._size, self._tree.compact_range(), leaves)
        for entry, leaf in zip(entries, leaves, strict=True):
            self._tails.setdefault(self._tree.size // TILE_WIDTH, []).append(entry)
            self._tree.append(leaf)
        checkpoint = self._publish()
        return Commit(self.checkpoint_text, checkpoint.size, checkpoint.root, first_index, growth)

    def _publish(self) -> Checkpoint:
        """Sign the tree as it stands and make that the checkpoint: the moment at which it is committed."""
        checkpoint = Checkpoint(self.origin, self._tree.size, self._tree.root())
        text = sign_checkpoint(checkpoint, self._signer)
        self._store.write_checkpoint(text)
        self.checkpoint_text = text
        self._size = checkpoint.size
        return checkpoint

    def _seal_full_bundles(self) -> None:
        """Move full, committed bundles from the tail to their place: before each commit and at opening.

        Not right after a commit: what was acknowledged must not turn into an error by what follows it.
        """
        for number in sorted(self._tails):
            if (number + 1) * TILE_WIDTH > self._size:
                break
            completed = tiles.completed_by(number)
            self._store.seal(number, {tiles.tile_path(*key): b"".join(self._tree.full_tiles[key]) for key in completed})
            for key in completed:
                del self._tree.full_tiles[key]
            del self._tails[number]

    # Opening

    def _recover(self) -> None:
        text = self._store.read_checkpoint()
        if text is None:
            self._publish()
            return
        directory = self._store.directory
        try:
            checkpoint = open_checkpoint(text, self._signer.verifiers)
        except CheckpointError as error:
            raise LogDamaged(f"{directory}/checkpoint: {error}; restore it") from error
        sealed = self._store.sealed_bundles()
        if sealed * TILE_WIDTH > checkpoint.size:
            raise LogDamaged(f"{directory} holds committed entries beyond its checkpoint; restore the newest one")
        self._tree = merkle.Tree.load(sealed, self._read_tile)
        surplus = self._load_tails(sealed, checkpoint.size)
        if self._tree.root() != checkpoint.root:
            raise LogDamaged(f"{directory} does not have the root that its checkpoint says; restore it")
        self._size = checkpoint.size
        self.checkpoint_text = text
        self._require_said(self._store.pruned)
        self._cut(surplus)
        self._seal_full_bundles()
        for number, entries in self._tails.items():  # at most one is left: the unfinished bundle
            self._store.attach_tail(number, tiles.framed_bytes(entries))

    def _load_tails(self, sealed: int, size: int) -> dict[int, tuple[int, int]]:
        """Grow the tree by the committed entries of the tails; returns {tail: (bytes to keep, surplus)}."""
        surplus = {}
        tails = self._store.tails()
        for number in range(sealed, -(-size // TILE_WIDTH)):
            wanted = min(TILE_WIDTH, size - number * TILE_WIDTH)
            entries = tiles.unframe(tails.get(number, b""))[0][:wanted]
            if len(entries) < wanted:
                end = number * TILE_WIDTH + len(entries)
                raise LogTruncated(f"{self._store.directory} ends at entry {end}, its checkpoint at {size}; restore it")
            self._tails[number] = entries
            for entry in entries:
                self._tree.append(leaf_hash(entry))
        for number, data in tails.items():
            if number < sealed:
                raise LogDamaged(f"{self._store.directory}/tail/{number} is in its bundle already; move it away")
            keep = tiles.framed_bytes(self._tails.get(number, ()))
            if len(data) > keep or keep == 0:
                surplus[number] = (keep, len(data) - keep)
        return surplus

    def _cut(self, surplus: dict[int, tuple[int, int]]) -> None:
        kept = [
            self._store.cut_tail(number, keep, max(self._size, number * TILE_WIDTH))
            for number, (keep, _) in sorted(surplus.items())
        ]
        if cut_bytes := sum(cut for _, cut in surplus.values()):
            self.recovery = Recovery(self._size, cut_bytes, tuple(path for path in kept if path))

    # Reading

    def _checked_bundle(self, number: int) -> list[bytes]:
        entries = self._store.read_bundle(number)
        for offset, (entry, leaf) in enumerate(zip(entries, self._read_tile(0, number), strict=True)):
            if leaf_hash(entry) != leaf:
                if number < self._store.pruned.bundles:
                    raise EntryPruned(f"entry {number * TILE_WIDTH + offset} was pruned; its archive has another one")
                raise LogDamaged(f"entry {number * TILE_WIDTH + offset} does not have its hash; run audit verify")
        return entries

    def _require_working(self) -> None:
        if self._failed is not None:
            raise LogFailed(f"the log refuses appends until it is reopened, since: {self._failed}")
