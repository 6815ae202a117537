"""Watches the files of a log that nobody should ever touch again: full bundles and tiles, by name, size and contents.

The log itself reads them only when it is asked about old entries, so a deleted or shortened file could go unnoticed
for years. A `Watch` remembers each bundle's size (tiles have but one) and looks at all names and sizes in slices, a few
system calls for each file, so that a slice costs little however long the log is. What it sees for the first time, and
one bundle more with each slice, it reads and compares with the hash tiles: alterations that keep the size are found
within hours. `sizes` may be kept between runs; without them, everything is read once more.

Synchronous, one caller at a time (it locks); never writes. Raises LogTruncated, LogDamaged, and OSErrors of the system.
"""

import os
import stat
import threading
from pathlib import Path

from audit import tiles
from audit.errors import LogDamaged, LogTruncated
from audit.merkle import subtree_hash
from audit.proof import leaf_hash
from audit.pruned import read_pruned
from audit.tiles import TILE_WIDTH

MAX_FRESH = 64  # bundles read for the first time in one slice: 16,384 entries


class Watch:
    """Over the log in `directory`. `sizes` of bundles 0, 1, … as an earlier Watch left them."""

    def __init__(self, directory: Path, sizes: list[int] | None = None) -> None:
        self._directory = directory
        self._top = str(directory / "tile")
        self._sizes = sizes if sizes is not None else []
        self._next = 0  # where the next slice begins
        self._next_read = 0
        self._pruned = (
            0  # bundles below this may be missing: whoever opened or pruned the log has held it against its record
        )
        self._lock = threading.Lock()

    @property
    def sizes(self) -> list[int]:
        """A copy, to be kept for the next run."""
        with self._lock:
            return self._sizes[:]

    def let_go(self, bundles: int) -> None:
        """Bundles below this were pruned, which whoever says so has held against the log: they may be missing."""
        with self._lock:
            self._pruned = max(self._pruned, bundles)

    def check_all(self) -> None:
        """Names and sizes of everything that is known, at once: before a log is trusted again."""
        with self._lock:
            self._pruned = read_pruned(self._directory).bundles
            for number in range(len(self._sizes)):
                self._check_files(number)

    def check_slice(self, log_size: int, slices: int) -> None:
        """One of `slices` parts of everything known; then what is new in a log of `log_size` entries."""
        with self._lock:
            known = len(self._sizes)
            for number in range(self._next, min(known, self._next + -(-known // slices))):
                self._check_files(number)
                self._next = number + 1
            self._next = 0 if self._next >= known else self._next
            if known:
                self._next_read = max(self._next_read % known, min(self._pruned, known - 1))
                if self._next_read >= self._pruned:
                    self._read_whole(self._next_read)
                self._next_read += 1
            self._take_new(log_size)

    def _take_new(self, log_size: int) -> None:
        first = len(self._sizes)
        for number in range(first, min(log_size // TILE_WIDTH, first + MAX_FRESH)):
            if not self._is_sealed(number):
                return
            self._sizes.append(self._read_whole(number) if number >= self._pruned else 0)

    def _is_sealed(self, number: int) -> bool:
        """Whether bundle `number`, which is full, has left the tail. The log may move it between two looks."""
        if number < self._pruned:
            return True
        bundle, tail = self._directory / tiles.bundle_path(number), self._directory / "tail" / str(number)
        if bundle.exists():
            return True
        if tail.exists():
            return False
        if bundle.exists():
            return True
        raise LogTruncated(f"{bundle} is missing; restore it")

    def _check_files(self, number: int) -> None:
        if number >= self._pruned:
            _require_size(f"{self._top}/entries/{tiles.number_text(number)}", self._sizes[number])
        for level, tile in tiles.completed_by(number):
            _require_size(f"{self._top}/{level}/{tiles.number_text(tile)}", tiles.TILE_BYTES)

    def _read_whole(self, number: int) -> int:
        """Compare a bundle's entries with its tile, and that with the tile above it. Returns the bundle's size."""
        path = self._directory / tiles.bundle_path(number)
        data = _read(path)
        entries, used = tiles.unframe(data)
        leaves = self._tile(0, number)
        if used != len(data) or [leaf_hash(entry) for entry in entries] != leaves:
            raise LogDamaged(f"{path} does not have the entries that its hash tile says; restore it")
        self._check_tiles_above(number, leaves)
        return len(data)

    def _check_tiles_above(self, number: int, nodes: list[bytes]) -> None:
        """A tile's hash stands in the tile above, once that is full; the last one of a tile checks that one's, too."""
        level = 1
        while (path := self._directory / tiles.tile_path(level, number // TILE_WIDTH)).exists():
            above = self._tile(level, number // TILE_WIDTH)
            if above[number % TILE_WIDTH] != subtree_hash(nodes):
                raise LogDamaged(f"{path} does not have the hashes of the tiles below it; restore it")
            if number % TILE_WIDTH != TILE_WIDTH - 1:
                return
            level, number, nodes = level + 1, number // TILE_WIDTH, above

    def _tile(self, level: int, number: int) -> list[bytes]:
        path = self._directory / tiles.tile_path(level, number)
        data = _read(path)
        if len(data) != tiles.TILE_BYTES:
            raise LogTruncated(f"{path} is not a full tile; restore it")
        return list(tiles.split_tile(data))


def _require_size(path: str, size_bytes: int) -> None:
    try:
        status = os.stat(path, follow_symlinks=False)  # noqa: PTH116 - Path costs more than the system call
    except FileNotFoundError:
        raise LogTruncated(f"{path} is missing; restore it") from None
    if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
        raise LogTruncated(f"{path} has {status.st_size} bytes where it had {size_bytes}; restore it")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LogTruncated(f"{path} is missing; restore it") from None
