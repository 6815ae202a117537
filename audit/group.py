"""Records that are committed together are signed together: one Ed25519 signature over a Merkle tree of them.

    leaf       = SHA-256( 0x00 ‖ salt[16] ‖ canonical record )       node = SHA-256( 0x01 ‖ left ‖ right )
    signature  = Ed25519( GROUP_CONTEXT ‖ size as u16 ‖ root[32] )   RFC 6962's tree over the leaves, in their order

Each entry carries the signature, its index, the size and its path, so that it verifies alone, with nothing but the key.
The salt is known to holders of the entry only: without it, who was given one record could try, by its path, what the
record beside it says, which was kept from them. A record that is alone is signed as itself: no group has one member.

Here is also what builders of entries give, before anything is signed: `Draft`. Pure but for `random`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from audit import tiles
from audit.checkpoint import LogSigner
from audit.errors import RecordInvalid
from audit.proof import leaf_hash, node_hash
from audit.record import SALT_BYTES, Group, Record, canonical_record, grouped_entry, signed_entry

WRITTEN_SIZE: Final = 64  # records of a group that we write: more would lengthen every path and save nothing


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A record on its way into the log, which the log's key will sign, alone or with those committed beside it."""

    record_bytes: bytes

    @classmethod
    def of(cls, record: Record) -> "Unsigned":
        """Raises RecordInvalid, or RecordTooLarge."""
        return cls(canonical_record(record))


@dataclass(frozen=True, slots=True)
class After:
    """An entry that names the leaf hash of the record right before it, as a permit entry does. Its size does not
    depend on that hash."""

    make: Callable[[bytes], bytes]


Draft = bytes | Unsigned | After
"""What one entry is made of: bytes are the entry itself, as it is."""


def require_draft(draft: Draft) -> None:
    """Refuse what could not be written, before anything is signed. Raises RecordError, and what `make` raises."""
    if isinstance(draft, Unsigned):
        return
    entry = draft.make(bytes(32)) if isinstance(draft, After) else draft
    if not entry:
        raise RecordInvalid("a builder gave an empty entry")
    tiles.require_fits(entry)


def sign_drafts(drafts: Sequence[Draft], signer: LogSigner, random: Callable[[int], bytes] = os.urandom) -> list[bytes]:
    """The entries of one commit, in order; its records signed together. `random` gives so many secret bytes."""
    records = [draft.record_bytes for draft in drafts if isinstance(draft, Unsigned)]
    signed = iter(
        [
            entry
            for first in range(0, len(records), WRITTEN_SIZE)
            for entry in sign_records(records[first : first + WRITTEN_SIZE], signer, random)
        ]
    )
    entries: list[bytes] = []
    for draft in drafts:
        if isinstance(draft, Unsigned):
            entries.append(next(signed))
        elif isinstance(draft, After):
            if not entries:
                raise RecordInvalid("an entry that names the record before it has none before it")
            entries.append(draft.make(leaf_hash(entries[-1])))
        else:
            entries.append(draft)
    return entries


def sign_records(
    records: Sequence[bytes], signer: LogSigner, random: Callable[[int], bytes] = os.urandom
) -> list[bytes]:
    """The entries of canonical records: one group, or the one record by itself."""
    if len(records) == 1:
        return [signed_entry(records[0], signer.sign, signer.key_id)]
    size = len(records)
    salts = [random(SALT_BYTES) for _ in records]
    root, paths = _tree([leaf_hash(salt + record) for salt, record in zip(salts, records, strict=True)])
    signature = signer.sign(Group.message(size, root))
    return [
        grouped_entry(record, Group(index, size, salt, path), signature, signer.key_id)
        for index, (record, salt, path) in enumerate(zip(records, salts, paths, strict=True))
    ]


def _tree(leaves: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """RFC 6962's root over the leaf hashes, and the audit path of each, from the leaf up, joined."""
    if len(leaves) == 1:
        return leaves[0], [b""]
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    (left, left_paths), (right, right_paths) = _tree(leaves[:split]), _tree(leaves[split:])
    return node_hash(left, right), [path + right for path in left_paths] + [path + left for path in right_paths]
