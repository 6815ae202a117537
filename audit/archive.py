"""A growing copy of a log that proves itself: what is kept elsewhere, for when the log is lost or doubted.

    ARCHIVE/checkpoint, tile/…, tail/<N>    as in the log's own folder: `sealane audit verify` checks it alone
    ARCHIVE/keys                            of a log whose key was replaced: see log_keys.py
    ARCHIVE/incoming/                       what an update has fetched; worthless until it is verified
    ARCHIVE/lock                            flock of the process that updates it

An update takes entries from any source of tiles and believes none of them: all leaves are hashed, and the tree over
them must pass through the root of the checkpoint that was archived before and reach that of the new one, which the
log's key has signed. Only then are files moved to their places, the checkpoint last. So an archive is never replaced
by another history: a log that was put back, or forked, is refused, and the archive is the evidence of it.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from audit import tiles
from audit.checkpoint import Checkpoint, LogVerifier, open_checkpoint
from audit.disk import Disk, lock
from audit.errors import LogDamaged, LogLocked, LogTruncated
from audit.log_keys import KEYS_FILE, read_successors
from audit.merkle import Tree
from audit.proof import leaf_hash
from audit.tile_tree import TileSource
from audit.tiles import TILE_WIDTH
from audit.verify_keys import MAX_BYTES


class Archive:
    """The archive in `directory`, made if it is missing."""

    def __init__(self, directory: Path, verifiers: Sequence[LogVerifier], disk: Disk | None = None) -> None:
        """Raises CheckpointError if its checkpoint is not signed by one of `verifiers`, OSError."""
        self.directory = directory
        self._verifiers = verifiers
        self._disk = disk or Disk()
        directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        self.checkpoint = self._read_checkpoint()

    @property
    def size(self) -> int:
        """How many entries are archived."""
        return self.checkpoint.size if self.checkpoint is not None else 0

    def update(
        self,
        checkpoint_text: str,
        source: TileSource,
        progress: Callable[[int, int], None] | None = None,
        *,
        successors: bytes = b"",
    ) -> Checkpoint:
        """Archive what `source` has up to the checkpoint; returns it. Nothing changes if anything is wrong.

        `successors`: lines of the log's file `keys` that the caller has checked, each joined to a key that it trusts.
        What the archive has of them stays.

        Raises CheckpointError, LogTruncated (it is older than the archive), LogDamaged (it is another history, or the
        source does not have what its checkpoint says), LogLocked, what the source raises, and OSError.
        """
        try:
            locked = lock(self.directory / "lock")
        except BlockingIOError:
            raise LogLocked(f"another process updates {self.directory}; wait for its end") from None
        try:
            self.checkpoint = self._read_checkpoint()  # another one may have updated it since
            return self._update(checkpoint_text, source, progress, successors)
        finally:
            os.close(locked)

    def _update(
        self, checkpoint_text: str, source: TileSource, progress: Callable[[int, int], None] | None, successors: bytes
    ) -> Checkpoint:
        new = open_checkpoint(checkpoint_text, self._verifiers)
        old = self.checkpoint
        if old is not None and old.origin != new.origin:
            raise LogDamaged(f"{self.directory} is an archive of {old.origin}, not of {new.origin}")
        if new.size < self.size:
            raise LogTruncated(f"the log has {new.size} entries where {self.size} are archived: it was put back")
        shutil.rmtree(self.directory / "incoming", ignore_errors=True)
        keys = self._keys_with(successors)
        written = self._fetch(new, source, progress)
        self._keep_keys(keys)
        self._publish(written, new, checkpoint_text)
        self.checkpoint = new
        return new

    def _fetch(
        self, new: Checkpoint, source: TileSource, progress: Callable[[int, int], None] | None
    ) -> list[PurePosixPath]:
        """Write what is missing to `incoming`, hashed up to the new root; returns the files."""
        first = self.size // TILE_WIDTH
        tree = Tree.load(first, self._read_tile)
        self._compare(tree)
        written: list[PurePosixPath] = []
        for number in range(first, -(-new.size // TILE_WIDTH)):
            width = min(TILE_WIDTH, new.size - number * TILE_WIDTH)
            entries = source.bundle(number, width)
            if len(entries) != width:
                raise LogTruncated(f"the log ends at entry {number * TILE_WIDTH + len(entries)}, before its checkpoint")
            for entry in entries:
                tree.append(leaf_hash(entry))
                self._compare(tree)
            data = b"".join(map(tiles.frame, entries))
            name = tiles.bundle_path(number) if width == TILE_WIDTH else PurePosixPath("tail", str(number))
            full = {tiles.tile_path(*key): b"".join(hashes) for key, hashes in tree.full_tiles.items()}
            tree.full_tiles.clear()
            for path, content in {**full, name: data}.items():
                self._write(path, content)
                written.append(path)
            if progress is not None:
                progress(number * TILE_WIDTH + width, new.size)
        if tree.root() != new.root:
            raise LogDamaged("the entries do not have the root that the checkpoint says: run `sealane audit verify`")
        return written

    def _compare(self, tree: Tree) -> None:
        old = self.checkpoint
        if old is not None and tree.size == old.size and tree.root() != old.root:
            raise LogDamaged(f"this is another history than the one archived in {self.directory} at size {old.size}")

    def _publish(self, written: Sequence[PurePosixPath], new: Checkpoint, checkpoint_text: str) -> None:
        """Move verified files to their places, tiles and bundles before the tail, the checkpoint last."""
        folders = set()
        for path in written:
            target = self.directory / path
            target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._disk.rename(self.directory / "incoming" / path, target)
            folders.add(target.parent)
        for folder in sorted(folders):
            while folder != self.directory.parent:
                self._disk.sync_folder(folder)
                folder = folder.parent  # noqa: PLW2901 - up to the archive itself
        self._write(PurePosixPath("checkpoint"), checkpoint_text.encode())
        self._disk.rename(self.directory / "incoming" / "checkpoint", self.directory / "checkpoint")
        self._disk.sync_folder(self.directory)
        shutil.rmtree(self.directory / "incoming", ignore_errors=True)
        for tail in (self.directory / "tail").glob("*"):
            if tail.name != str(new.size // TILE_WIDTH) or new.size % TILE_WIDTH == 0:
                tail.unlink()

    def _keys_with(self, successors: bytes) -> bytes:
        """What `keys` shall be; empty if it is that already. It must stay one that an auditor's tool reads."""
        known = read_successors(self.directory)
        held = known.splitlines()
        new = b"".join(line + b"\n" for line in successors.splitlines() if line not in held)
        if new and len(known + new) > MAX_BYTES:
            raise LogDamaged("the log's keys were replaced more often than an archive can tell")
        return known + new if new else b""

    def _keep_keys(self, keys: bytes) -> None:
        """Before the checkpoint, which the newest key may have signed: an auditor may pin any of them."""
        if keys:
            self._write(PurePosixPath(KEYS_FILE), keys)
            self._disk.rename(self.directory / "incoming" / KEYS_FILE, self.directory / KEYS_FILE)
            self._disk.sync_folder(self.directory)

    def _write(self, path: PurePosixPath, data: bytes) -> None:
        target = self.directory / "incoming" / path
        target.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = self._disk.overwrite(target)
        try:
            self._disk.write(descriptor, data)
            self._disk.sync_data(descriptor)
        finally:
            os.close(descriptor)

    def _read_tile(self, level: int, number: int) -> tuple[bytes, ...]:
        data = (self.directory / tiles.tile_path(level, number)).read_bytes()
        if len(data) != tiles.TILE_BYTES:
            raise LogDamaged(f"{self.directory}: hash tile {level}/{number} is not whole; begin another archive")
        return tiles.split_tile(data)

    def _read_checkpoint(self) -> Checkpoint | None:
        try:
            text = (self.directory / "checkpoint").read_text("utf-8")
        except FileNotFoundError:
            return None
        return open_checkpoint(text, self._verifiers)
