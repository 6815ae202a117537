"""Checkpoints of the log: C2SP tlog-checkpoint bodies in a C2SP signed note with an Ed25519 key.

    <origin> LF  <size> LF  <base64 root> LF  LF  — <origin> <base64(key id[4] ‖ signature[64])> LF

Pure: signing and opening take and return text. Every text form here has exactly one spelling (canonical
decimal, canonical base64), so that no altered byte of a checkpoint goes unnoticed. Extension lines are
refused: no log of ours writes any, and what is not understood must not be trusted.
Sources: c2sp.org/signed-note, c2sp.org/tlog-checkpoint.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from audit.errors import CheckpointError
from audit.proof import HASH_BYTES, MAX_TREE_SIZE

MAX_CHECKPOINT_BYTES = 16 * 1024  # room for many witnesses' cosignatures; relays read these from a peer
MAX_SIGNATURES = 32
MAX_ORIGIN_CHARS = 255

_ED25519 = b"\x01"  # C2SP signature type
_KEY_ID_BYTES = 4
_ORIGIN = re.compile(r"[!-*,-~]+")  # printable ASCII without space and '+', which delimit keys and signatures
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNATURE_LINE = re.compile(r"— ([^ +]+) ([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log: `root` (32 bytes) is the RFC 6962 tree hash over its first `size` entries."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint as it was written: `body` is what is signed, `signatures` are (name, key id[4] ‖ signature)."""

    checkpoint: Checkpoint
    body: str
    signatures: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class LogVerifier:
    """A pinned log: its origin and Ed25519 public key. Written as `<origin>+<key id hex>+<base64>`."""

    origin: str
    public_key_bytes: bytes
    key_id: bytes
    _public_key: Ed25519PublicKey = field(repr=False, compare=False)

    @classmethod
    def of(cls, origin: str, public_key_bytes: bytes) -> Self:
        """Make a verifier from its parts; raises CheckpointError for a bad origin or key."""
        _require_origin(origin)
        try:
            public_key = Ed25519PublicKey.from_public_bytes(public_key_bytes)
        except ValueError as error:
            raise CheckpointError("a log key is not an Ed25519 public key") from error
        key_id = hashlib.sha256(origin.encode() + b"\n" + _ED25519 + public_key_bytes).digest()
        return cls(origin, public_key_bytes, key_id[:_KEY_ID_BYTES], public_key)

    @classmethod
    def parse(cls, vkey: str) -> Self:
        """Read a C2SP verifier key (surrounding whitespace of a file is allowed). Raises CheckpointError."""
        parts = vkey.strip().split("+", 2)
        if len(parts) != 3:
            raise CheckpointError("a log key is not of the form <origin>+<key id>+<key>")
        origin, key_id_hex, encoded = parts
        blob = _decode_base64(encoded, "log key")
        if blob[:1] != _ED25519:
            raise CheckpointError(f"log key of {origin!r} is not of the Ed25519 type")
        verifier = cls.of(origin, blob[1:])
        if key_id_hex != verifier.key_id.hex():
            raise CheckpointError(f"log key of {origin!r} does not match its key id")
        return verifier

    @property
    def vkey(self) -> str:
        """The C2SP verifier key, without line end."""
        encoded = base64.b64encode(_ED25519 + self.public_key_bytes).decode()
        return f"{self.origin}+{self.key_id.hex()}+{encoded}"

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` (64 bytes) is this key's over `message`."""
        try:
            self._public_key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


@dataclass(frozen=True, slots=True)
class LogSigner:
    """The private key of one log, bound to its origin. `former`: signs checkpoints, too, while keys are rolled over."""

    origin: str
    private_key: Ed25519PrivateKey = field(repr=False)
    former: "LogSigner | None" = field(default=None, repr=False)
    verifier: LogVerifier = field(init=False)

    def __post_init__(self) -> None:
        public = self.private_key.public_key().public_bytes_raw()
        object.__setattr__(self, "verifier", LogVerifier.of(self.origin, public))

    @property
    def verifiers(self) -> tuple[LogVerifier, ...]:
        """Of this key, and of the former one."""
        return (self.verifier,) if self.former is None else (self.verifier, *self.former.verifiers)

    @property
    def vkey(self) -> str:
        """The C2SP verifier key to pin at relays and auditors."""
        return self.verifier.vkey

    @property
    def key_id(self) -> str:
        """Name of the key inside records: the C2SP key id in hex."""
        return self.verifier.key_id.hex()

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature (64 bytes). Callers separate domains: see `record.py`."""
        return self.private_key.sign(message)


def sign_checkpoint(checkpoint: Checkpoint, signer: LogSigner) -> str:
    """The signed note for `checkpoint`."""
    if checkpoint.origin != signer.origin:
        raise CheckpointError(f"a key of {signer.origin!r} cannot sign for {checkpoint.origin!r}")
    body = note_body(checkpoint)
    signers = [signer] if signer.former is None else [signer, signer.former]
    lines = [signature_line(each.origin, each.verifier.key_id, each.sign(body.encode())) for each in signers]
    return f"{body}\n{''.join(lines)}"


def open_checkpoint(text: str, verifiers: Sequence[LogVerifier]) -> Checkpoint:
    """The checkpoint in `text`, signed by one of `verifiers` for that verifier's own origin.

    Signatures by unknown keys (witnesses) are ignored; a wrong signature by a known key refuses the whole
    note, as the specification demands. Raises CheckpointError.
    """
    note = read_note(text)
    checkpoint, message = note.checkpoint, note.body.encode()
    signed = False
    for name, blob in note.signatures:
        for verifier in verifiers:
            if (verifier.origin, verifier.key_id) != (name, blob[:_KEY_ID_BYTES]):
                continue
            if not verifier.verifies(message, blob[_KEY_ID_BYTES:]):
                raise CheckpointError(f"checkpoint carries a wrong signature of {name!r}")
            # A log's key speaks for its own origin only: another pinned log must not vouch for this one.
            signed = signed or name == checkpoint.origin
    if not signed:
        raise CheckpointError(f"checkpoint of {checkpoint.origin!r} is not signed by a pinned key of it")
    return checkpoint


def read_note(text: str) -> Note:
    """The parts of a checkpoint's note, of which nothing is verified yet. Raises CheckpointError."""
    if len(text) > MAX_CHECKPOINT_BYTES:
        raise CheckpointError(f"checkpoint is over {MAX_CHECKPOINT_BYTES} bytes")
    body, separator, signatures = text.rpartition("\n\n")
    if not separator:
        raise CheckpointError("checkpoint has no signature block")
    body += "\n"
    return Note(_parse_body(body), body, tuple(signature_lines(signatures)))


def note_body(checkpoint: Checkpoint) -> str:
    """What is signed of a checkpoint."""
    root = base64.b64encode(checkpoint.root).decode()
    return f"{checkpoint.origin}\n{checkpoint.size}\n{root}\n"


def signature_line(name: str, key_id: bytes, signature: bytes) -> str:
    """A line of a note's signature block, with its line end."""
    return f"— {name} {base64.b64encode(key_id + signature).decode()}\n"


def _parse_body(body: str) -> Checkpoint:
    lines = body.split("\n")
    if len(lines) != 4 or lines[3] != "":
        raise CheckpointError("checkpoint is not of the form origin, size, root")
    origin, size_text, root_text, _ = lines
    _require_origin(origin)
    if not _SIZE.fullmatch(size_text) or int(size_text) > MAX_TREE_SIZE:
        raise CheckpointError("checkpoint has a malformed size")
    root = _decode_base64(root_text, "checkpoint root")
    if len(root) != HASH_BYTES:
        raise CheckpointError(f"checkpoint root is not {HASH_BYTES} bytes")
    return Checkpoint(origin, int(size_text), root)


def signature_lines(block: str) -> list[tuple[str, bytes]]:
    """(name, key id ‖ signature) of each line of a signature block. Raises CheckpointError."""
    if not block.endswith("\n"):
        raise CheckpointError("checkpoint does not end in a line end")
    lines = block[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise CheckpointError(f"checkpoint has over {MAX_SIGNATURES} signatures")
    parsed = []
    for line in lines:
        match = _SIGNATURE_LINE.fullmatch(line)
        if match is None:
            raise CheckpointError("checkpoint has a malformed signature line")
        blob = _decode_base64(match[2], "signature")
        if len(blob) <= _KEY_ID_BYTES:
            raise CheckpointError("checkpoint has an empty signature")
        parsed.append((match[1], blob))
    return parsed


def _require_origin(origin: str) -> None:
    if len(origin) > MAX_ORIGIN_CHARS or not _ORIGIN.fullmatch(origin):
        raise CheckpointError("a log origin must be printable ASCII without spaces and '+'")


def _decode_base64(text: str, what: str) -> bytes:
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CheckpointError(f"{what} is not base64") from error
    # Unused bits of the last character are ignored by decoders: without this, two texts mean one signature.
    if base64.b64encode(blob).decode() != text:
        raise CheckpointError(f"{what} is not canonical base64")
    return blob
