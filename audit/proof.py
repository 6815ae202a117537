"""RFC 6962 Merkle proofs: hashing and verification, pure and without I/O.

All that a relay needs to know that a permit is in the log. The length a path must have follows from index
and sizes alone and is checked before anything is hashed: a path with a node more or less is refused, so no
two paths prove the same thing. Algorithm: RFC 9162 sections 2.1.3.2 and 2.1.4.2, in the inner/border form of
transparency-dev/merkle.
"""

import hashlib
import hmac
from collections.abc import Sequence

from audit.errors import ProofError

HASH_BYTES = 32
MAX_TREE_SIZE = 2**63 - 1
EMPTY_ROOT = hashlib.sha256(b"").digest()

_LEAF = hashlib.sha256(b"\x00")
_NODE = hashlib.sha256(b"\x01")


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 ‖ entry). The prefix keeps a leaf from posing as an inner node (second preimage)."""
    digest = _LEAF.copy()
    digest.update(entry)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right)."""
    digest = _NODE.copy()
    digest.update(left)
    digest.update(right)
    return digest.digest()


def verify_inclusion(leaf: bytes, index: int, tree_size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf hash `leaf` is at `index` of the tree of `tree_size` leaves with `root`.

    Raises ProofError when it is not, or when anything is malformed.
    """
    _require_hashes(root)
    if not hmac.compare_digest(root_of_path(leaf, index, tree_size, path), root):
        raise ProofError(f"entry {index} is not in the tree of size {tree_size} with this root")


def root_of_path(leaf: bytes, index: int, tree_size: int, path: Sequence[bytes]) -> bytes:
    """The root of the tree of `tree_size` leaves in which `leaf` is at `index`, if `path` is its path there.

    Raises ProofError when there can be no such tree, or when anything is malformed.
    """
    _require_length(path, path_length(index, tree_size))
    _require_hashes(leaf, *path)
    inner, _ = _decompose(index, tree_size)
    return _fold_right(_fold(leaf, path[:inner], index), path[inner:])


def path_length(index: int, tree_size: int) -> int:
    """How many hashes the path of the leaf at `index` has in a tree of `tree_size`. Raises ProofError: no such leaf."""
    _require_size("tree size", tree_size)
    if not 0 <= index < tree_size:
        raise ProofError(f"index {index} is not in a tree of size {tree_size}")
    return sum(_decompose(index, tree_size))


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Check that the tree of `new_size` begins with all of the tree of `old_size`. Raises ProofError.

    An old size of 0 is refused: everything is consistent with an empty tree, so it would prove nothing.
    """
    _require_size("old tree size", old_size)
    _require_size("new tree size", new_size)
    if old_size > new_size:
        raise ProofError(f"a tree of size {new_size} cannot extend one of size {old_size}")
    _require_hashes(old_root, new_root, *path)
    if old_size == new_size:
        _require_length(path, 0)
        if not hmac.compare_digest(old_root, new_root):
            raise ProofError(f"two different roots for size {old_size}: a split view")
        return
    inner, border = _decompose(old_size - 1, new_size)
    shift = (old_size & -old_size).bit_length() - 1  # trailing zeros: height of the last whole subtree
    inner -= shift
    if old_size == 1 << shift:  # the old tree is one whole subtree: its root starts both folds
        seed, rest = old_root, path
        _require_length(path, inner + border)
    else:
        _require_length(path, 1 + inner + border)
        seed, rest = path[0], path[1:]
    position = (old_size - 1) >> shift
    old_found = _fold_right(
        _fold_right(seed, [node for level, node in enumerate(rest[:inner]) if position >> level & 1]),
        rest[inner:],
    )
    new_found = _fold_right(_fold(seed, rest[:inner], position), rest[inner:])
    if not hmac.compare_digest(old_found, old_root):
        raise ProofError(f"the proof does not reach the old root of size {old_size}")
    if not hmac.compare_digest(new_found, new_root):
        raise ProofError(f"the tree of size {new_size} does not extend the one of size {old_size}")


def _decompose(index: int, size: int) -> tuple[int, int]:
    """Number of path nodes below and above the point where the path meets the tree's right edge."""
    inner = (index ^ (size - 1)).bit_length()
    return inner, (index >> inner).bit_count()


def _fold(start: bytes, path: Sequence[bytes], position: int) -> bytes:
    found = start
    for level, sibling in enumerate(path):
        found = node_hash(sibling, found) if position >> level & 1 else node_hash(found, sibling)
    return found


def _fold_right(start: bytes, path: Sequence[bytes]) -> bytes:
    found = start
    for sibling in path:
        found = node_hash(sibling, found)
    return found


def _require_size(name: str, size: int) -> None:
    if not 1 <= size <= MAX_TREE_SIZE:
        raise ProofError(f"{name} {size} is out of range")


def _require_hashes(*hashes: bytes) -> None:
    if any(len(one) != HASH_BYTES for one in hashes):
        raise ProofError(f"a hash is not {HASH_BYTES} bytes")


def _require_length(path: Sequence[bytes], expected: int) -> None:
    if len(path) != expected:
        raise ProofError(f"the proof has {len(path)} nodes where {expected} are needed")
