"""Signatures of webhooks, as Standard Webhooks (version 1) has them: receivers find a verifier in their language.

    webhook-id         the same for each delivery of the same batch: what a receiver deduplicates by
    webhook-timestamp  seconds since the epoch, when it was signed: what is older than some minutes is a replay
    webhook-signature  for each key, separated by spaces: `v1,` base64 of HMAC-SHA-256, or `v1a,` base64 of Ed25519,
                       over `<id>.<timestamp>.<body>`

A key is a line of its file: `whsec_` and base64 of 24 to 64 random bytes, or `whsk_` and base64 of an Ed25519 key's 32
bytes. Two lines sign with both, so that a key can be replaced without a gap.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_KEYS: Final = 4
SYMMETRIC: Final = "whsec_"
ASYMMETRIC: Final = "whsk_"


@dataclass(frozen=True, slots=True)
class HmacKey:
    secret: bytes = field(repr=False)

    def sign(self, message: bytes) -> str:
        return f"v1,{base64.b64encode(hmac.digest(self.secret, message, hashlib.sha256)).decode()}"


@dataclass(frozen=True, slots=True)
class Ed25519Key:
    key: Ed25519PrivateKey = field(repr=False)

    def sign(self, message: bytes) -> str:
        return f"v1a,{base64.b64encode(self.key.sign(message)).decode()}"


Key = HmacKey | Ed25519Key


def parse_keys(text: str) -> Sequence[Key]:
    """The keys of a file. ValueError says which line is wrong, and never what it holds."""
    lines = text.split()
    if not 1 <= len(lines) <= MAX_KEYS:
        raise ValueError(f"holds {len(lines)} keys, and 1 to {MAX_KEYS} are expected")
    return [_parse_key(line, number) for number, line in enumerate(lines, 1)]


def signed_headers(keys: Sequence[Key], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers for `body`. `message_id` holds no full stop, which separates what is signed."""
    message = b"%s.%d.%s" % (message_id.encode("ascii"), timestamp, body)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(key.sign(message) for key in keys),
    }


def _parse_key(line: str, number: int) -> Key:
    try:
        if line.startswith(SYMMETRIC):
            secret = base64.b64decode(line.removeprefix(SYMMETRIC), validate=True)
            if 24 <= len(secret) <= 64:
                return HmacKey(secret)
        elif line.startswith(ASYMMETRIC):
            seed = base64.b64decode(line.removeprefix(ASYMMETRIC), validate=True)
            if len(seed) in {32, 64}:  # libsodium writes the public key behind the seed
                return Ed25519Key(Ed25519PrivateKey.from_private_bytes(seed[:32]))
    except (binascii.Error, ValueError):
        pass
    raise ValueError(
        f"line {number} is neither `whsec_` with 24 to 64 bytes nor `whsk_` with an Ed25519 key, in base64"
    )
