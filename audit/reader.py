"""Committed entries straight from a log's files, by any thread and beside the writer: nothing is locked or written.

Each entry is checked against its hash tile where its bundle is sealed, so what is shown is what the tree covers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from audit.errors import EntryPruned, LogDamaged, LogTruncated
from audit.proof import HASH_BYTES, leaf_hash
from audit.pruned import read_pruned
from audit.tiles import MAX_FRAMED_BYTES, TILE_BYTES, TILE_WIDTH, bundle_path, frame, tile_path, unframe

_MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + MAX_FRAMED_BYTES)
_CACHED_BUNDLES = 8


class LogReader:
    """Reads the log in `directory`. Which entries are committed is for the caller to know: the checkpoint says."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sealed = lru_cache(_CACHED_BUNDLES)(self._read_sealed)  # immutable, so that they may be kept
        self._pruned = lru_cache(_CACHED_BUNDLES)(self._read_pruned)

    def __reduce__(self) -> tuple[type[LogReader], tuple[Path]]:
        """Another process reads for itself."""
        return LogReader, (self._directory,)

    def entry(self, index: int) -> bytes:
        """The committed entry `index`. Raises LogTruncated (it is not there), LogDamaged, OSError."""
        number, offset = divmod(index, TILE_WIDTH)
        bundle, tile = self._bundle(number)
        start = 0
        for _ in range(offset):  # the entries before it are stepped over, not made
            start += 2 + int.from_bytes(bundle[start : start + 2])
        end = start + 2 + int.from_bytes(bundle[start : start + 2])
        if start + 2 > len(bundle) or end > len(bundle):
            raise LogTruncated(f"entry {index} is missing in {self._directory}")
        return self._checked(bundle[start + 2 : end], index, tile)

    def entries(self, start: int, end: int) -> Iterator[bytes]:
        """The committed entries [start, end). Raises as `entry`."""
        for number in range(start // TILE_WIDTH, -(-end // TILE_WIDTH)):
            bundle, tile = self._bundle(number)
            entries, _ = unframe(bundle)
            first = number * TILE_WIDTH
            for index in range(max(start, first), min(end, first + TILE_WIDTH)):
                if index - first >= len(entries):
                    raise LogTruncated(f"entry {index} is missing in {self._directory}")
                yield self._checked(entries[index - first], index, tile)

    def _checked(self, entry: bytes, index: int, tile: bytes | None) -> bytes:
        place = index % TILE_WIDTH * HASH_BYTES
        if tile is not None and leaf_hash(entry) != tile[place : place + HASH_BYTES]:
            raise LogDamaged(f"entry {index} does not have its hash; run `sealane audit verify`")
        return entry

    def _bundle(self, number: int) -> tuple[bytes, bytes | None]:
        """Its framed entries, and its tile if it is sealed. Sealing renames the tail: one look of three finds it."""
        try:
            return self._sealed(number)
        except FileNotFoundError:
            pass
        try:
            return _read(self._directory / "tail" / str(number), _MAX_BUNDLE_BYTES), None
        except FileNotFoundError:
            pass
        try:
            return self._sealed(number)
        except FileNotFoundError:
            first = number * TILE_WIDTH
            if number < read_pruned(self._directory).bundles:
                return self._pruned(number)
            raise LogTruncated(f"entries {first} to {first + TILE_WIDTH - 1} are not in {self._directory}") from None

    def _read_pruned(self, number: int) -> tuple[bytes, bytes]:
        """Of the archive that has it; the tile is the log's own."""
        tile = self._read_tile(number)
        try:
            entries = read_pruned(self._directory).read_bundle(number)
        except EntryPruned as error:
            raise LogTruncated(str(error)) from error
        return b"".join(map(frame, entries)), tile

    def _read_sealed(self, number: int) -> tuple[bytes, bytes]:
        bundle = _read(self._directory / bundle_path(number), _MAX_BUNDLE_BYTES)
        return bundle, self._read_tile(number)

    def _read_tile(self, number: int) -> bytes:
        tile = _read(self._directory / tile_path(0, number), TILE_BYTES)
        if len(tile) != TILE_BYTES:
            raise LogDamaged(f"hash tile 0/{number} is not whole; run `sealane audit verify`")
        return tile


@dataclass(frozen=True, slots=True)
class CommittedLog:
    """The first `size` entries of the log `origin`, as the query index reads a log."""

    origin: str
    size: int
    reader: LogReader

    def entry(self, index: int) -> bytes:
        """See LogReader."""
        return self.reader.entry(index)

    def entries(self, start: int, end: int) -> Iterator[bytes]:
        """See LogReader."""
        return self.reader.entries(start, end)


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit)
