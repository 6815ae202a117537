"""Cosignatures of checkpoints (c2sp.org/tlog-cosignature): what a witness, or the log itself by ML-DSA-44, certifies.

    signature line      — <name> <base64( key id[4] ‖ u64 time ‖ signature )>
    key id              SHA-256( name ‖ LF ‖ type ‖ public key )[0:4]
    type 0x04           Ed25519 over   "cosignature/v1" LF "time " <time> LF <note body>
    type 0x06           ML-DSA-44 over "subtree/v1" LF 0x00 ‖ u8 length ‖ name ‖ u64 time
                                       ‖ u8 length ‖ origin ‖ u64 0 ‖ u64 size ‖ root[32]

Semantics: at `time` (unix seconds), this is the largest tree of that log that the cosigner has seen, and it extends all
others that it has seen. Pure; keys, time and text are arguments. ML-DSA verification needs an OpenSSL that has it.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from audit.checkpoint import Checkpoint, Note, read_note, signature_line, signature_lines
from audit.errors import CheckpointError

_KEY_ID_BYTES = 4
_TIME_BYTES = 8
_NAME = re.compile(r"[!-*,-~]{1,255}")  # printable ASCII without space and '+'
_MAX_TIME = 2**63 - 1

PrivateKey = Ed25519PrivateKey | MLDSA44PrivateKey
PublicKey = Ed25519PublicKey | MLDSA44PublicKey


class Algorithm(IntEnum):
    """C2SP signature types of cosignatures."""

    ED25519 = 4
    ML_DSA_44 = 6


@dataclass(frozen=True, slots=True)
class Cosignature:
    """A verified statement. `line` is it as text, with its line end."""

    name: str
    algorithm: Algorithm
    time: int
    line: str


@dataclass(frozen=True, slots=True)
class CosignerKey:
    """A pinned cosigner: `<name>+<key id hex>+<base64( type ‖ public key )>`."""

    name: str
    algorithm: Algorithm
    public_key_bytes: bytes
    key_id: bytes
    _public_key: PublicKey = field(repr=False, compare=False)

    @classmethod
    def of(cls, name: str, public_key: PublicKey) -> Self:
        """Raises CheckpointError for a name that cannot stand in a note."""
        if not _NAME.fullmatch(name):
            raise CheckpointError("a cosigner's name must be printable ASCII without spaces and '+'")
        algorithm = Algorithm.ED25519 if isinstance(public_key, Ed25519PublicKey) else Algorithm.ML_DSA_44
        blob = public_key.public_bytes_raw()
        digest = hashlib.sha256(name.encode() + b"\n" + bytes([algorithm]) + blob).digest()
        return cls(name, algorithm, blob, digest[:_KEY_ID_BYTES], public_key)

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """Read a verifier key of type 0x04 or 0x06. Raises CheckpointError."""
        try:
            name, key_id_hex, encoded = vkey.strip().split("+", 2)
            blob = base64.b64decode(encoded, validate=True)
            public_key: PublicKey = (
                Ed25519PublicKey.from_public_bytes(blob[1:])
                if Algorithm(blob[0]) is Algorithm.ED25519
                else MLDSA44PublicKey.from_public_bytes(blob[1:])
            )
        except (ValueError, IndexError, UnsupportedAlgorithm) as error:
            raise CheckpointError("not a cosigner's key: <name>+<key id>+<key of type 4 or 6>") from error
        key = cls.of(name, public_key)
        if vkey.strip() != key.vkey:
            raise CheckpointError(f"the cosigner key of {name!r} does not match its key id {key_id_hex[:16]!r}")
        return key

    @property
    def vkey(self) -> str:
        """The C2SP verifier key, without line end."""
        encoded = base64.b64encode(bytes([self.algorithm]) + self.public_key_bytes).decode()
        return f"{self.name}+{self.key_id.hex()}+{encoded}"

    def opened(self, note: Note, blob: bytes) -> Cosignature:
        """The statement in `blob` (key id ‖ time ‖ signature) about `note`. Raises CheckpointError."""
        time = int.from_bytes(blob[_KEY_ID_BYTES : _KEY_ID_BYTES + _TIME_BYTES])
        signature = blob[_KEY_ID_BYTES + _TIME_BYTES :]
        if not 0 < time <= _MAX_TIME:  # time 0 would state nothing about the newest tree
            raise CheckpointError(f"the cosignature of {self.name!r} has no time")
        try:
            self._public_key.verify(signature, _message(self.name, self.algorithm, note, time))
        except InvalidSignature:
            raise CheckpointError(f"the cosignature of {self.name!r} is wrong") from None
        return Cosignature(self.name, self.algorithm, time, signature_line(self.name, blob[:4], blob[4:]))


@dataclass(frozen=True, slots=True)
class Cosigner:
    """A private key that cosigns under a name. One key must not serve under two names (type 0x04 has no name in it)."""

    name: str
    private_key: PrivateKey = field(repr=False)
    key: CosignerKey = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", CosignerKey.of(self.name, self.private_key.public_key()))

    def cosign(self, note: Note, time: int) -> str:
        """The signature line, with its line end. The caller has checked what it states."""
        if not 0 < time <= _MAX_TIME:
            raise ValueError("the time of a cosignature is a positive count of seconds")
        signature = self.private_key.sign(_message(self.name, self.key.algorithm, note, time))
        return signature_line(self.name, self.key.key_id, time.to_bytes(_TIME_BYTES) + signature)


def cosignatures(text: str, keys: Sequence[CosignerKey]) -> list[Cosignature]:
    """The statements of pinned cosigners on the checkpoint `text`, in its order.

    Lines of unknown keys are ignored; a wrong one of a known key refuses the whole. The log's own signature is not
    looked at. Raises CheckpointError.
    """
    return _opened(read_note(text), keys)


def read_answer(note: Note, answer: str, keys: Sequence[CosignerKey]) -> list[Cosignature]:
    """As `cosignatures`, of a witness's answer to `note`: signature lines alone. Raises CheckpointError."""
    return _opened(Note(note.checkpoint, note.body, tuple(signature_lines(answer))), keys)


def _opened(note: Note, keys: Sequence[CosignerKey]) -> list[Cosignature]:
    return [
        key.opened(note, blob)
        for name, blob in note.signatures
        for key in keys
        if (key.name, key.key_id) == (name, blob[:_KEY_ID_BYTES])
    ]


def cosigners_of(found: Sequence[Cosignature]) -> set[str]:
    """The distinct names: two signatures of one witness are one opinion."""
    return {one.name for one in found}


def _message(name: str, algorithm: Algorithm, note: Note, time: int) -> bytes:
    if algorithm is Algorithm.ED25519:
        return f"cosignature/v1\ntime {time}\n{note.body}".encode()
    checkpoint: Checkpoint = note.checkpoint
    origin = checkpoint.origin.encode()
    return b"".join(
        (
            b"subtree/v1\n\0",
            bytes([len(name)]) + name.encode(),
            time.to_bytes(_TIME_BYTES),
            bytes([len(origin)]) + origin,
            bytes(8),  # start: a checkpoint begins at the first entry
            checkpoint.size.to_bytes(8),
            checkpoint.root,
        )
    )
