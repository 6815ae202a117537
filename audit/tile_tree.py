"""Proofs out of tiles alone: what any client of a tlog-tiles log can compute, whoever serves it.

A tile source gives hash tiles and entry bundles of a log at one size; here they become inclusion paths, and the nodes
beside a range of entries, from which its root follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from audit import merkle
from audit.errors import EntryPruned, LogDamaged, LogTruncated
from audit.merkle import subtree_hash, whole_subtrees
from audit.proof import HASH_BYTES, leaf_hash
from audit.pruned import read_pruned
from audit.tiles import TILE_WIDTH, bundle_path, tile_path, unframe

_CACHED_TILES = 64


class TileSource(Protocol):
    """Where tiles come from. `width`: how many nodes or entries the wanted one holds in the tree that is asked of."""

    def tile(self, level: int, number: int, width: int) -> Sequence[bytes]:
        """The first `width` hashes of a hash tile."""

    def bundle(self, number: int, width: int) -> list[bytes]:
        """The first `width` entries of an entry bundle."""


class TileTree:
    """The tree of the first `size` entries. Nothing of it is believed here: who gets a proof checks it."""

    def __init__(self, source: TileSource, size: int) -> None:
        self.size = size
        self._source = source
        self._tile = lru_cache(_CACHED_TILES)(source.tile)
        self._bundle = lru_cache(8)(source.bundle)

    def entry(self, index: int) -> bytes:
        """One entry. Raises IndexError, LogDamaged, and what the source raises."""
        if not 0 <= index < self.size:
            raise IndexError(f"entry {index} is not in a log of size {self.size}")
        number, offset = divmod(index, TILE_WIDTH)
        entries = self._bundle(number, min(TILE_WIDTH, self.size - number * TILE_WIDTH))
        if offset >= len(entries):
            raise LogTruncated(f"entry {index} is missing")
        return entries[offset]

    def entries(self, start: int, end: int) -> Iterator[bytes]:
        """Entries [start, end)."""
        return (self.entry(index) for index in range(start, end))

    def inclusion_path(self, index: int) -> list[bytes]:
        """RFC 6962 audit path of entry `index`."""
        if not 0 <= index < self.size:
            raise IndexError(f"entry {index} is not in a log of size {self.size}")
        return merkle.inclusion_path(index, self.size, self._subtree)

    def beside(self, start: int, end: int) -> tuple[list[bytes], list[bytes]]:
        """The whole subtrees left of [start, end) and right of it, each from left to right.

        Left ones are those that make up a tree of `start` leaves; a right one is as large as its place allows.
        """
        left = [self._subtree(low, high) for low, high in whole_subtrees(start)]
        right, low = [], end
        while low < self.size:
            width = low & -low if low else 1 << (self.size.bit_length() - 1)
            while low + width > self.size:
                width //= 2
            right.append(self._subtree(low, low + width))
            low += width
        return left, right

    def _subtree(self, low: int, high: int) -> bytes:
        level = ((high - low).bit_length() - 1) // 8
        start, end = low >> 8 * level, high >> 8 * level
        number, offset = divmod(start, TILE_WIDTH)
        width = min(TILE_WIDTH, (self.size >> 8 * level) - number * TILE_WIDTH)
        nodes = self._tile(level, number, width)[offset : offset + end - start]
        if len(nodes) != end - start:
            raise LogDamaged(f"hash tile {level}/{number} is too short")
        return subtree_hash(nodes)


class FolderTiles:
    """The tiles of a log's folder, or of a copy of it. Partial ones are not kept there, so they are computed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def tile(self, level: int, number: int, width: int) -> Sequence[bytes]:
        """See TileSource. Raises LogTruncated, LogDamaged, OSError."""
        if width == TILE_WIDTH:
            try:
                return split((self._directory / tile_path(level, number)).read_bytes())
            except FileNotFoundError:
                pass  # full, but not sealed yet
        if level == 0:
            return [leaf_hash(entry) for entry in self.bundle(number, width)]
        first = number * TILE_WIDTH
        return [subtree_hash(self.tile(level - 1, child, TILE_WIDTH)) for child in range(first, first + width)]

    def bundle(self, number: int, width: int) -> list[bytes]:
        """See TileSource. Raises LogTruncated, OSError."""
        sealed, tail = self._directory / bundle_path(number), self._directory / "tail" / str(number)
        for path in (sealed, tail, sealed):  # sealing renames the one to the other
            try:
                return unframe(path.read_bytes())[0][:width]
            except FileNotFoundError:
                continue
        if number < (pruned := read_pruned(self._directory)).bundles:
            try:
                return pruned.read_bundle(number)[:width]
            except EntryPruned as error:
                raise LogTruncated(str(error)) from error
        first = number * TILE_WIDTH
        raise LogTruncated(f"entries {first} to {first + width - 1} are not in {self._directory}")


def split(tile: bytes) -> list[bytes]:
    """The hashes of a tile, full or partial. Raises LogDamaged."""
    if len(tile) % HASH_BYTES:
        raise LogDamaged("a hash tile is not a number of hashes")
    return [tile[start : start + HASH_BYTES] for start in range(0, len(tile), HASH_BYTES)]
