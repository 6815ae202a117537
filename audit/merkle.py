"""The writer's RFC 6962 tree: grows by leaves, gives roots, full tiles and proofs. Pure but for `read_tile`.

In memory stand only the right edge (the compact range: one hash for each whole subtree, and the unfinished
tile of every tile level) and the full tiles that are not yet written; all else is read back from tiles.
A *subtree* here is always whole: [low, high) with a power of two as width and low a multiple of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from audit.proof import EMPTY_ROOT, node_hash
from audit.tiles import TILE_WIDTH

ReadTile = Callable[[int, int], Sequence[bytes]]  # (tile level, number) -> the tile's 256 hashes
Subtree = Callable[[int, int], bytes]  # (low, high) -> hash of that whole subtree


class Tree:
    """A growing tree. Not safe for concurrent use."""

    def __init__(self, read_tile: ReadTile) -> None:
        self.size = 0
        self.full_tiles: dict[tuple[int, int], tuple[bytes, ...]] = {}  # until the store has them
        self._read_tile = read_tile
        self._edges: list[list[bytes]] = [[]]
        self._range: list[bytes] = []

    @classmethod
    def load(cls, bundles: int, read_tile: ReadTile) -> "Tree":
        """The tree over `bundles` full bundles whose tiles `read_tile` gives: at most 255 reads a level."""
        tree = cls(read_tile)
        tree.size = bundles * TILE_WIDTH
        level, nodes = 1, bundles
        while nodes:
            first = nodes - nodes % TILE_WIDTH
            tree._edges.append([subtree_hash(read_tile(level - 1, n)) for n in range(first, nodes)])
            level, nodes = level + 1, nodes // TILE_WIDTH
        tree._range = [tree.subtree(low, high) for low, high in whole_subtrees(tree.size)]
        return tree

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash. Tiles that it completes appear in `full_tiles`."""
        node, level = leaf, 0
        while True:
            if level % 8 == 0:
                self._extend_edge(level // 8, node)
            if not self.size >> level & 1:
                break
            node = node_hash(self._range.pop(), node)
            level += 1
        self._range.append(node)
        self.size += 1

    def root(self) -> bytes:
        """Tree hash of all leaves."""
        if not self._range:
            return EMPTY_ROOT
        root = self._range[-1]
        for left in reversed(self._range[:-1]):
            root = node_hash(left, root)
        return root

    def compact_range(self) -> dict[tuple[int, int], bytes]:
        """The hashes of the whole subtrees that make up the tree, by (low, high)."""
        return dict(zip(whole_subtrees(self.size), self._range, strict=True))

    def subtree(self, low: int, high: int) -> bytes:
        """Hash of a whole subtree within the tree."""
        tile_level = ((high - low).bit_length() - 1) // 8
        start, end = low >> 8 * tile_level, high >> 8 * tile_level
        number, offset = divmod(start, TILE_WIDTH)
        return subtree_hash(self.tile(tile_level, number)[offset : offset + end - start])

    def tile(self, level: int, number: int) -> Sequence[bytes]:
        """The hashes of a tile, so far as it is filled."""
        if number == (self.size >> 8 * level) // TILE_WIDTH:
            return self._edges[level]
        return self.full_tiles.get((level, number)) or self._read_tile(level, number)

    def _extend_edge(self, level: int, node: bytes) -> None:
        if level == len(self._edges):
            self._edges.append([])
        edge = self._edges[level]
        edge.append(node)
        if len(edge) == TILE_WIDTH:
            number = (self.size >> 8 * level) // TILE_WIDTH
            self.full_tiles[level, number] = tuple(edge)
            self._edges[level] = []


@dataclass(frozen=True, slots=True)
class Growth:
    """What one commit added: enough to prove inclusion of its entries, and independent of the tree since.

    `before` is the compact range of the tree without the commit, `leaves` the leaf hashes it added.
    """

    old_size: int
    before: Mapping[tuple[int, int], bytes]
    leaves: Sequence[bytes]

    def subtree(self, low: int, high: int) -> bytes:
        """Hash of a whole subtree that is new, or stands in the old compact range, or spans both."""
        if known := self.before.get((low, high)):
            return known
        if high - low == 1:
            return self.leaves[low - self.old_size]
        middle = (low + high) // 2
        return node_hash(self.subtree(low, middle), self.subtree(middle, high))


def inclusion_path(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """RFC 6962 PATH(index, D[0:size]), from the leaf up."""
    low, high, path = 0, size, []
    while high - low > 1:
        split = low + _split(high - low)
        if index < split:
            path.append(_range_hash(split, high, subtree))
            high = split
        else:
            path.append(subtree(low, split))
            low = split
    return path[::-1]


def consistency_path(old_size: int, new_size: int, subtree: Subtree) -> list[bytes]:
    """RFC 6962 PROOF(old_size, D[0:new_size]) for 1 <= old_size <= new_size."""
    low, high, path = 0, new_size, []
    while old_size < high:
        split = low + _split(high - low)
        if old_size <= split:
            path.append(_range_hash(split, high, subtree))
            high = split
        else:
            path.append(subtree(low, split))
            low = split
    if low > 0:  # at low == 0 the old tree is this very subtree, whose root the verifier has
        path.append(_range_hash(low, high, subtree))
    return path[::-1]


def root_of(size: int, subtree: Subtree) -> bytes:
    """Tree hash of the first `size` leaves."""
    return _range_hash(0, size, subtree) if size else EMPTY_ROOT


def whole_subtrees(size: int) -> list[tuple[int, int]]:
    """The whole subtrees, from the left, that make up a tree of `size` leaves."""
    parts, low = [], 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            parts.append((low, low + (1 << level)))
            low += 1 << level
    return parts


def subtree_hash(nodes: Sequence[bytes]) -> bytes:
    """Hash over adjacent nodes of one level, a power of two of them."""
    while len(nodes) > 1:
        nodes = [node_hash(nodes[i], nodes[i + 1]) for i in range(0, len(nodes), 2)]
    return nodes[0]


def _range_hash(low: int, high: int, subtree: Subtree) -> bytes:
    """MTH(D[low:high]) where the range begins at a split, so that its left part is a whole subtree."""
    width = high - low
    if width & (width - 1) == 0:
        return subtree(low, high)
    split = low + _split(width)
    return node_hash(subtree(low, split), _range_hash(split, high, subtree))


def _split(width: int) -> int:
    """The largest power of two smaller than `width`."""
    return 1 << ((width - 1).bit_length() - 1)
