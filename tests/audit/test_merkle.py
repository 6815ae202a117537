"""The writer's tree against RFC 6962 written down literally, and its proofs against the verifier of proofs."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from audit import merkle
from audit.merkle import Growth, Tree
from audit.proof import leaf_hash, verify_consistency, verify_inclusion
from tests.audit import naive_tree
from tests.audit.test_proof import RFC_LEAVES, RFC_ROOTS


class TileShelf:
    """Tiles as the store would keep them: every full tile, and nothing else."""

    def __init__(self) -> None:
        self.tiles: dict[tuple[int, int], tuple[bytes, ...]] = {}

    def read(self, level: int, number: int) -> tuple[bytes, ...]:
        return self.tiles[level, number]

    def take_from(self, tree: Tree) -> None:
        self.tiles |= tree.full_tiles
        tree.full_tiles.clear()


def leaves_of(size: int) -> list[bytes]:
    return [hashlib.sha256(index.to_bytes(8)).digest() for index in range(size)]


def grown(size: int, shelf: TileShelf | None = None) -> tuple[Tree, TileShelf]:
    shelf = shelf or TileShelf()
    tree = Tree(shelf.read)
    for leaf in leaves_of(size):
        tree.append(leaf)
    shelf.take_from(tree)
    return tree, shelf


def fast_root(leaves: list[bytes]) -> bytes:
    """Another way to the root: level by level, an odd node moves up as it is."""
    while len(leaves) > 1:
        pairs = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(leaves[::2], leaves[1::2], strict=False)]
        leaves = pairs + ([leaves[-1]] if len(leaves) % 2 else [])
    return leaves[0]


def test_the_reference_roots_of_rfc_6962_come_out() -> None:
    tree = Tree(TileShelf().read)
    for entry, root in zip(RFC_LEAVES, RFC_ROOTS, strict=True):
        tree.append(leaf_hash(entry))
        assert tree.root().hex() == root


@given(st.integers(1, 70), st.data())
def test_paths_are_those_of_the_literal_definition(size: int, data: st.DataObject) -> None:
    entries = [bytes([index]) for index in range(size)]
    tree = Tree(TileShelf().read)
    for entry in entries:
        tree.append(leaf_hash(entry))
    index = data.draw(st.integers(0, size - 1))
    assert tree.root() == naive_tree.root(entries)
    assert merkle.inclusion_path(index, size, tree.subtree) == naive_tree.path(index, entries)
    assert merkle.consistency_path(index + 1, size, tree.subtree) == naive_tree.proof(index + 1, entries)
    assert merkle.root_of(index + 1, tree.subtree) == naive_tree.root(entries[: index + 1])


BIG, BIG_SHELF = grown(66_600)  # three tile levels: 256² is 65,536
BIG_LEAVES = leaves_of(BIG.size)


@settings(max_examples=40)
@given(st.data())
def test_proofs_across_tile_levels_verify(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, BIG.size) | st.integers(65_530, 65_800))
    index = data.draw(st.integers(0, size - 1))
    root = merkle.root_of(size, BIG.subtree)
    path = merkle.inclusion_path(index, size, BIG.subtree)
    verify_inclusion(BIG_LEAVES[index], index, size, path, root)
    consistency = merkle.consistency_path(index + 1, size, BIG.subtree)
    verify_consistency(index + 1, merkle.root_of(index + 1, BIG.subtree), size, root, consistency)


def test_the_root_of_three_tile_levels_is_right() -> None:
    assert BIG.root() == fast_root(BIG_LEAVES)
    assert sorted({level for level, _ in BIG_SHELF.tiles}) == [0, 1]


def test_a_tree_loaded_from_tiles_goes_on_like_the_one_that_wrote_them() -> None:
    for bundles in (0, 1, 2, 3, 255, 256, 257, 260):
        size = bundles * 256
        tree = Tree.load(bundles, BIG_SHELF.read)
        assert tree.size == size
        for leaf in BIG_LEAVES[size : size + 300]:
            tree.append(leaf)
        end = min(size + 300, BIG.size)
        assert tree.root() == merkle.root_of(end, BIG.subtree)
        assert merkle.inclusion_path(size, end, tree.subtree) == merkle.inclusion_path(size, end, BIG.subtree)


@given(st.integers(0, 600), st.integers(1, 300), st.data())
def test_a_commit_proves_its_entries_without_the_tree(old: int, added: int, data: st.DataObject) -> None:
    tree, _ = grown(old)
    growth = Growth(old, tree.compact_range(), BIG_LEAVES[old : old + added])
    index = data.draw(st.integers(old, old + added - 1))
    expected = merkle.inclusion_path(index, old + added, BIG.subtree)
    assert merkle.inclusion_path(index, old + added, growth.subtree) == expected
