"""Merkle proofs: everything true is accepted, everything altered is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.errors import ProofError
from audit.proof import EMPTY_ROOT, leaf_hash, node_hash, verify_consistency, verify_inclusion
from tests.audit import naive_tree

# The eight leaves and the roots of certificate-transparency's reference tests (merkle_tree_test.cc).
RFC_LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
RFC_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def entries_of(size: int) -> list[bytes]:
    return [f"entry {index}".encode() for index in range(size)]


def test_the_reference_roots_of_rfc_6962_come_out() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for size, expected in enumerate(RFC_ROOTS, start=1):
        assert naive_tree.root(RFC_LEAVES[:size]).hex() == expected


def test_leaf_and_node_hashes_are_those_of_rfc_6962() -> None:
    assert leaf_hash(b"").hex() == RFC_ROOTS[0]
    assert node_hash(leaf_hash(RFC_LEAVES[0]), leaf_hash(RFC_LEAVES[1])).hex() == RFC_ROOTS[1]


def test_every_inclusion_proof_up_to_size_33_is_accepted_and_only_at_its_own_index() -> None:
    for size in range(1, 34):
        entries = entries_of(size)
        root = naive_tree.root(entries)
        for index in range(size):
            path = naive_tree.path(index, entries)
            verify_inclusion(leaf_hash(entries[index]), index, size, path, root)
            for other in range(size):
                if other != index:
                    with pytest.raises(ProofError):
                        verify_inclusion(leaf_hash(entries[index]), other, size, path, root)


def test_every_consistency_proof_up_to_size_33_is_accepted_and_only_for_its_own_sizes() -> None:
    for new_size in range(1, 34):
        entries = entries_of(new_size)
        new_root = naive_tree.root(entries)
        for old_size in range(1, new_size + 1):
            path = naive_tree.proof(old_size, entries)
            old_root = naive_tree.root(entries[:old_size])
            verify_consistency(old_size, old_root, new_size, new_root, path)
            for wrong in {old_size - 1, old_size + 1, new_size} - {old_size}:
                with pytest.raises(ProofError):
                    verify_consistency(wrong, old_root, new_size, new_root, path)


@st.composite
def mutated_paths(draw: st.DrawFn) -> tuple[str, int]:
    return draw(st.sampled_from(["flip", "drop", "repeat", "append", "short", "long"])), draw(st.integers(0, 2**16))


def mutate(path: list[bytes], how: str, where: int) -> list[bytes]:
    if not path and how in {"flip", "drop", "repeat", "short", "long"}:
        how = "append"
    position = where % max(1, len(path))
    match how:
        case "flip":
            node = bytearray(path[position])
            node[where % 32] ^= 1 << (where % 8)
            return [*path[:position], bytes(node), *path[position + 1 :]]
        case "drop":
            return [*path[:position], *path[position + 1 :]]
        case "repeat":
            return [*path[:position], path[position], *path[position:]]
        case "short":
            return [*path[:position], path[position][:-1], *path[position + 1 :]]
        case "long":
            return [*path[:position], path[position] + b"\x00", *path[position + 1 :]]
        case _:
            return [*path, bytes(32)]


@given(st.integers(1, 300), st.integers(0, 299), mutated_paths())
def test_a_mutated_inclusion_proof_is_refused(size: int, index: int, mutation: tuple[str, int]) -> None:
    index %= size
    entries = entries_of(size)
    path = mutate(naive_tree.path(index, entries), *mutation)
    with pytest.raises(ProofError):
        verify_inclusion(leaf_hash(entries[index]), index, size, path, naive_tree.root(entries))


@given(st.integers(1, 300), st.integers(1, 300), mutated_paths())
def test_a_mutated_consistency_proof_is_refused(old: int, new: int, mutation: tuple[str, int]) -> None:
    old, new = min(old, new), max(old, new)
    entries = entries_of(new)
    path = mutate(naive_tree.proof(old, entries), *mutation)
    with pytest.raises(ProofError):
        verify_consistency(old, naive_tree.root(entries[:old]), new, naive_tree.root(entries), path)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(0, 199))
def test_a_rewritten_history_has_no_consistency_proof_of_the_old_kind(old: int, new: int, at: int) -> None:
    old, new = min(old, new), max(old, new)
    entries = entries_of(new)
    rewritten = list(entries)
    rewritten[at % old] = b"rewritten"
    with pytest.raises(ProofError):
        verify_consistency(
            old,
            naive_tree.root(entries[:old]),
            new,
            naive_tree.root(rewritten),
            naive_tree.proof(old, rewritten),
        )


def test_an_inner_node_cannot_pose_as_a_leaf() -> None:
    entries = entries_of(4)
    left = naive_tree.root(entries[:2])
    right = naive_tree.root(entries[2:])
    with pytest.raises(ProofError):
        verify_inclusion(leaf_hash(left), 0, 2, [leaf_hash(right)], naive_tree.root(entries))


def test_sizes_and_indices_out_of_range_are_refused() -> None:
    root = naive_tree.root(entries_of(4))
    for index, size in ((0, 0), (-1, 4), (4, 4), (0, 2**63), (0, -1)):
        with pytest.raises(ProofError):
            verify_inclusion(leaf_hash(b""), index, size, [], root)
    for old, new in ((0, 4), (5, 4), (-1, 4), (1, 2**63)):
        with pytest.raises(ProofError):
            verify_consistency(old, EMPTY_ROOT, new, root, [])


def test_two_roots_for_one_size_are_called_a_split_view() -> None:
    with pytest.raises(ProofError, match="split view"):
        verify_consistency(4, naive_tree.root(entries_of(4)), 4, naive_tree.root(RFC_LEAVES[:4]), [])
