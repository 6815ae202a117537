"""The strict check in front of python-jose, for tokens and permits alike.

python-jose 3.5 was seen to accept a 1 MB header, unknown `crit`, `b64: false`, duplicate JSON members, junk in
base64, a `kid` of another key, ES256 under a P-384 key and RSA-1024, and to raise whatever its parsers raise.
So a token is first read here, whole and in one spelling only; the library then does the signature; and anything
that it raises is a refusal. Sources: RFC 7515 (JWS), RFC 7518 (signature sizes), RFC 8725 (JWT best practice).
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jose import jwk, jws
from jose.backends.base import Key

from policy import strict_json
from policy.errors import TokenRefused

MAX_TOKEN_BYTES: Final = 16 * 1024
MAX_DEPTH: Final = 8  # of the header or the claims; Keycloak's `resource_access` is the deepest seen, with 4
MAX_HEADER_VALUE: Final = 256
# What a header may say. Not here on purpose: jku, x5u, jwk, x5c (a key of the sender's choice), crit and b64
# (python-jose ignores both, so the meaning would differ from the one that was signed), zip, epk.
HEADER_MEMBERS: Final = frozenset({"alg", "kid", "typ", "cty", "x5t", "x5t#S256"})

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192  # time of a verification grows with the square: an issuer must not choose it freely
CURVES: Final[Mapping[str, str]] = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}
RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512"})
SUPPORTED_ALGORITHMS: Final = RSA_ALGORITHMS | frozenset(CURVES)

_SEGMENT: Final = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A compact JWS in the one accepted spelling. NOTHING in it is proven before `verify_signature`."""

    token: str = field(repr=False)  # a bearer token must not reach a log by way of a repr
    header: Mapping[str, str]
    claims: Mapping[str, Any]
    payload: bytes
    signature: bytes

    @property
    def algorithm(self) -> str:
        """The header's `alg`, one of those that the caller allowed."""
        return self.header["alg"]

    @property
    def key_id(self) -> str:
        """The header's `kid`, never empty."""
        return self.header["kid"]

    @property
    def signing_input(self) -> bytes:
        """What the signature covers: header and payload as they came, RFC 7515 section 5.1."""
        return self.token.rpartition(".")[0].encode("ascii")


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key under the name by which tokens call it; `algorithm` None: any that suits the key."""

    key_id: str
    public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    algorithm: str | None = None


def parse_strict(
    token: str,
    *,
    algorithms: frozenset[str],
    header_members: frozenset[str] = HEADER_MEMBERS,
    max_bytes: int = MAX_TOKEN_BYTES,
) -> UnverifiedToken:
    """Read a compact JWS in its only accepted spelling, without looking at the signature.

    `algorithms` is the issuer's own allow list, never the token's word.
    Raises TokenRefused (size, form, header, algorithm, key); ValueError if we allow an unsupported algorithm.
    """
    if not algorithms <= SUPPORTED_ALGORITHMS:
        raise ValueError(f"unsupported algorithms {sorted(algorithms - SUPPORTED_ALGORITHMS)}")
    if len(token) > max_bytes:
        raise TokenRefused("size", f"more than {max_bytes} bytes")
    segments = token.split(".", 3)
    if len(segments) != 3:
        raise TokenRefused("form", "not exactly three segments")
    header_bytes, payload, signature = (decode_base64url(segment) for segment in segments)
    header = _check_header(decode_object(header_bytes), header_members)
    if header["alg"] not in algorithms:
        raise TokenRefused("algorithm", "alg is not on the allow list")
    claims = decode_object(payload)
    return UnverifiedToken(token, header, claims, payload, signature)


def verify_signature(token: UnverifiedToken, key: VerificationKey) -> None:
    """Check the signature with the one key that the token names; then its claims are the signer's.

    Raises TokenRefused: `key` if key and token disagree about kid, kind, curve or strength, else `signature`.
    """
    prepared = jose_key(token, key)
    try:
        payload = jws.verify(token.token, prepared, [token.algorithm])
    except Exception as error:  # python-jose raises far more than JOSEError; each is a refusal
        raise TokenRefused("signature", "the signature does not verify") from error
    if payload != token.payload:
        raise TokenRefused("signature", "python-jose read another payload than we did")


def jose_key(token: UnverifiedToken, key: VerificationKey) -> Key:
    """The key in python-jose's form, once it is sure that it suits the token and the signature's length.

    Raises TokenRefused (key, signature).
    """
    check_key(token, key)
    if len(token.signature) != _signature_size(key.public_key):
        raise TokenRefused("signature", "wrong length of signature for the key")
    # python-jose takes keys of `cryptography` as they are; its type stubs do not know.
    return jwk.construct(cast(str, key.public_key), token.algorithm)


def sign(payload: bytes, private_key: ec.EllipticCurvePrivateKey, *, key_id: str, token_type: str) -> str:
    """Make a compact JWS by ES256 with a P-256 key: what this project signs, in the spelling that it accepts."""
    headers = {"kid": key_id, "typ": token_type}
    key = jwk.construct(cast(str, private_key), "ES256")  # cast: see `jose_key`
    return jws.sign(payload, key, headers=headers, algorithm="ES256")


def check_key(token: UnverifiedToken, key: VerificationKey) -> None:
    """Require that the key is the one that the token names, and of a kind that its `alg` means.

    Without it ES256 verifies under a P-384 key, and a public key can serve as an HMAC secret.
    Raises TokenRefused("key").
    """
    algorithm, public_key = token.algorithm, key.public_key
    if key.key_id != token.key_id:
        raise TokenRefused("key", "kid names another key")
    if key.algorithm is not None and key.algorithm != algorithm:
        raise TokenRefused("key", "the key is for another algorithm")
    if algorithm in RSA_ALGORITHMS:
        if not isinstance(public_key, rsa.RSAPublicKey):
            raise TokenRefused("key", f"{algorithm} needs an RSA key")
        if not MIN_RSA_BITS <= public_key.key_size <= MAX_RSA_BITS:
            raise TokenRefused("key", f"RSA key is not of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
    elif not isinstance(public_key, ec.EllipticCurvePublicKey) or public_key.curve.name != CURVES[algorithm]:
        raise TokenRefused("key", f"{algorithm} needs a key on {CURVES[algorithm]}")


def key_id_of(public_key: ec.EllipticCurvePublicKey) -> str:
    """The id under which our own keys sign: the first 16 hex digits of SHA-256(SubjectPublicKeyInfo)."""
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(public_key.public_bytes(encoding, form)).hexdigest()[:16]


def decode_base64url(text: str) -> bytes:
    """Decode base64url without padding; the one spelling of some bytes, or TokenRefused("form").

    The library skips characters outside the alphabet and ignores left-over bits: many spellings of one
    signature, so that a token's text (and any hash of it) could be changed without breaking it.
    """
    if not _SEGMENT.match(text) or len(text) % 4 == 1:
        raise TokenRefused("form", "a segment is empty or not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if encode_base64url(data) != text:
        raise TokenRefused("form", "a segment is not canonical base64url")
    return data


def encode_base64url(data: bytes) -> str:
    """Encode as base64url without padding, RFC 7515 section 2."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode_object(data: bytes, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """A JSON object that every parser reads alike (`policy.strict_json`). Raises TokenRefused("form")."""
    try:
        value = strict_json.decode(data, max_depth)
    except strict_json.NotStrict as error:
        raise TokenRefused("form", str(error)) from error
    if not isinstance(value, dict):
        raise TokenRefused("form", "not a JSON object")
    return value


def _check_header(header: Mapping[str, Any], allowed: frozenset[str]) -> dict[str, str]:
    if not header.keys() <= allowed:
        raise TokenRefused("header", "a header member that is not on the allow list")
    for value in header.values():
        if not isinstance(value, str) or not value or len(value) > MAX_HEADER_VALUE or not value.isprintable():
            raise TokenRefused("header", "a header member that is not short printable text")
    if "alg" not in header:
        raise TokenRefused("algorithm", "no alg")
    if "kid" not in header:
        raise TokenRefused("key", "no kid")
    return dict(header)


def _signature_size(public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> int:
    """RFC 7518 sections 3.3 and 3.4: the modulus, or two numbers of the curve's size, never shorter or longer."""
    size = (public_key.key_size + 7) // 8
    return size if isinstance(public_key, rsa.RSAPublicKey) else 2 * size
