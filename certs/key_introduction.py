"""How relays come to believe a new key of permits or of the log: both keys that they believe now sign for it.

    text       {"key": …, "kind": "sealane-key", "what": "permit" | "log"}     JSON, members sorted
    signed     "sealane-key-introduction/v1" LF text

Two signatures, ES256 of a permit key and Ed25519 of a log key: one stolen key alone introduces nothing, as it permits
nothing. The gateway's TLS key has no part in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from certs.errors import UNDECODABLE, CredentialError

MAX_KEY_INTRODUCTIONS: Final = 32
_DOMAIN: Final = b"sealane-key-introduction/v1\n"
_REMEDY: Final = "look at the gateway: who told it of this key?"

What = Literal["permit", "log"]
KeyId = Annotated[str, Meta(pattern=r"^[0-9a-f]{8,32}\Z")]
Verify = Callable[[bytes, bytes], bool]  # (message, signature) -> whether it is of this key


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`key`: the PEM of a permit key, the verifier key line of a log."""

    what: What
    key: Annotated[str, Meta(min_length=1, max_length=1024)]
    kind: Literal["sealane-key"] = "sealane-key"


class Introduction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`text`: of the statement, as it was signed. Signatures in base64; each key by its id."""

    text: Annotated[str, Meta(max_length=2048)]
    permit_key: KeyId
    permit_signature: bytes
    log_key: KeyId
    log_signature: bytes


def introduce(
    what: What, key: str, permit: tuple[str, ec.EllipticCurvePrivateKey], log: tuple[str, Callable[[bytes], bytes]]
) -> Introduction:
    """By the two keys that are in force, each with its id."""
    text = msgspec.json.encode(Statement(what, key), order="sorted")
    message = _DOMAIN + text
    (permit_id, permit_key), (log_id, sign) = permit, log
    by_permit = permit_key.sign(message, ec.ECDSA(hashes.SHA256()))
    return Introduction(text.decode(), permit_id, by_permit, log_id, sign(message))


def introduced_keys(
    introductions: Sequence[Introduction],
    permit_keys: Mapping[str, ec.EllipticCurvePublicKey],
    log_keys: Mapping[str, Verify],
    learn: Callable[[Statement], None],
) -> None:
    """Hand every statement that is signed by both kinds of keys to `learn`, which adds to the mappings what it says.

    A chain is followed in whatever order it comes. What is not signed by keys that are known is left: whoever was away
    for long may lack those of its time. Raises `CredentialError` for one that is no introduction at all.
    """
    if len(introductions) > MAX_KEY_INTRODUCTIONS:
        raise CredentialError(None, "too many introductions of keys", _REMEDY)
    waiting = list(introductions)
    while heard := [each for each in waiting if is_signed(each, permit_keys, log_keys)]:
        for each in heard:
            learn(_statement(each))
        waiting = [each for each in waiting if each not in heard]


def is_signed(
    introduction: Introduction,
    permit_keys: Mapping[str, ec.EllipticCurvePublicKey],
    log_keys: Mapping[str, Verify],
) -> bool:
    """By a known key of each kind."""
    message = _DOMAIN + introduction.text.encode()
    permit_key, verify = permit_keys.get(introduction.permit_key), log_keys.get(introduction.log_key)
    if permit_key is None or verify is None:
        return False
    try:
        permit_key.verify(introduction.permit_signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return verify(message, introduction.log_signature)


def _statement(introduction: Introduction) -> Statement:
    try:
        return msgspec.json.decode(introduction.text, type=Statement)
    except UNDECODABLE as error:
        raise CredentialError(None, f"an introduction of a key is malformed: {error}", _REMEDY) from None


def encode_introductions(introductions: Sequence[Introduction]) -> bytes:
    """For the file that the gateway keeps them in."""
    return msgspec.json.encode(list(introductions[-MAX_KEY_INTRODUCTIONS:]))


def decode_introductions(data: bytes) -> tuple[Introduction, ...]:
    """Raises `CredentialError`."""
    try:
        return tuple(msgspec.json.decode(data, type=list[Introduction]))
    except UNDECODABLE as error:
        raise CredentialError(None, f"these are no introductions of keys: {error}", "restore the file") from None


def documents(introductions: Sequence[Introduction]) -> list[dict[str, Any]]:
    """As relays are told."""
    return [msgspec.to_builtins(each) for each in introductions]
