"""Records, permits and a log key for the tests of this package."""

import base64
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.checkpoint import LogSigner
from audit.group import After, Draft, Unsigned
from audit.log import EntryBuilder
from audit.proof import leaf_hash
from audit.record import Actor, Record, Vm, encode_entry

ORIGIN = "gateway.example/sealane"
SIGNER = LogSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER_SIGNER = LogSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)))
VM_ID = "5f0c6d5e-3f0a-4a53-9a55-0a4d8f0f3d10"
SOURCE, DESTINATION = "spiffe://bank.example/host/a", "spiffe://bank.example/host/b"


def record(sequence: int, **changes: Any) -> Record:
    values: dict[str, Any] = {
        "kind": "migration.decision",
        "origin": ORIGIN,
        "sequence": sequence,
        "boot_id": "boot-1",
        "time": f"2026-11-22T21:{sequence // 60 % 60:02}:{sequence % 60:02}.000000Z",
        "monotonic_ns": sequence * 10**9,
        "migration_id": f"m-{sequence}",
        "outcome": "allowed",
        "actor": Actor("okta#alice", "alice", "oidc", "https://issuer.example", ("S-1-5-32-544",)),
        "vm": Vm(VM_ID, "web-1"),
        "source": SOURCE,
        "destination": DESTINATION,
        "reason": "maintenance",
        "details": {"policies": ["allow-operators"], "n": sequence},
    } | changes
    return Record(**values)


def entry(sequence: int, signer: LogSigner = SIGNER, **changes: Any) -> bytes:
    return encode_entry(record(sequence, **changes), signer.sign, signer.key_id)


def permit(decision_index: int, decision: bytes, **changes: Any) -> bytes:
    """What policy/permit.py makes, as far as the log knows it."""
    return permit_of(decision_index, leaf_hash(decision), **changes)


def permit_of(decision_index: int, decision_leaf_hash: bytes, **changes: Any) -> bytes:
    claims = {
        "jti": f"j-{decision_index}",
        "migration_id": f"m-{decision_index}",
        "vm": VM_ID,
        "source": SOURCE,
        "destination": DESTINATION,
    } | changes
    link = {"index": decision_index, "leaf_hash": base64.b64encode(decision_leaf_hash).decode()}
    document = {"kind": "sealane-permit", "decision": link, "claims": claims}
    return msgspec.json.encode(document, order="sorted")


@lru_cache(4096)  # signing is most of what a test of many records would wait for
def one(index: int) -> Sequence[bytes]:
    """A builder of one record."""
    return [entry(index)]


@lru_cache(4096)
def with_permit(index: int) -> Sequence[bytes]:
    """A builder of an allowing decision and its permit."""
    decision = entry(index)
    return [decision, permit(index, decision)]


def drafted(index: int) -> Sequence[Draft]:
    """A builder of one record, to be signed with those beside it."""
    return [Unsigned.of(record(index))]


def drafted_with_permit(index: int) -> Sequence[Draft]:
    """A builder of an allowing decision, to be signed with those beside it, and its permit."""
    return [Unsigned.of(record(index)), After(lambda leaf: permit_of(index, leaf))]


def raw(*entries: bytes) -> EntryBuilder:
    """A builder of these entries, whatever they are."""
    return lambda _index: entries
