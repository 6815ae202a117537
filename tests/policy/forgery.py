"""Tokens as a hostile or careless signer would make them: any bytes for header and payload, any signature.

`FORGERIES` is the list of the reference (`identity-and-policy.md`, OIDC) and of RFC 8725, for tokens and permits
alike. All but those about the signature are signed with the right key: only strictness can refuse them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from policy.permit import P256_ORDER

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsegment(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def dump(value: Any) -> bytes:
    """Canonical JSON as it is; anything else than a dict or list is taken to be bytes already."""
    if isinstance(value, bytes):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def raw_signature(key: PrivateKey, message: bytes) -> bytes:
    """ES256 or ES384 with low s, or RS256."""
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    size = (key.key_size + 7) // 8
    if key.curve.name == "secp256r1":
        s = min(s, P256_ORDER - s)
    return r.to_bytes(size) + s.to_bytes(size)


def forge(header: Any, payload: Any, key: PrivateKey) -> str:
    signing_input = f"{segment(dump(header))}.{segment(dump(payload))}"
    return f"{signing_input}.{segment(raw_signature(key, signing_input.encode()))}"


def with_signature(token: str, signature: bytes) -> str:
    return f"{token.rpartition('.')[0]}.{segment(signature)}"


def signature_of(token: str) -> bytes:
    return unsegment(token.rpartition(".")[2])


def other_spelling(token: str) -> str:
    """The same ES256 signature with n - s in place of s: as valid, by all mathematics."""
    signature = signature_of(token)
    return with_signature(token, signature[:32] + (P256_ORDER - int.from_bytes(signature[32:])).to_bytes(32))


@dataclass(frozen=True)
class Material:
    """What a forger has: the parts of a good token, the key that signed it, and a key of their own."""

    header: dict[str, Any]
    claims: dict[str, Any]
    key: ec.EllipticCurvePrivateKey
    stranger: ec.EllipticCurvePrivateKey

    @cached_property
    def good(self) -> str:
        """Signed once: an ECDSA signature differs each time."""
        return forge(self.header, self.claims, self.key)

    def header_with(self, **members: Any) -> str:
        return forge({**self.header, **members}, self.claims, self.key)

    def header_without(self, name: str) -> str:
        header = {k: v for k, v in self.header.items() if k != name}
        return forge(header, self.claims, self.key)

    def claims_with(self, **members: Any) -> str:
        return forge(self.header, {**self.claims, **members}, self.key)

    def claims_without(self, name: str) -> str:
        claims = {k: v for k, v in self.claims.items() if k != name}
        return forge(self.header, claims, self.key)

    def claims_text(self, member: bytes) -> str:
        """One more member, spelled in bytes."""
        return forge(self.header, dump(self.claims)[:-1] + b"," + member + b"}", self.key)

    def hmac_with(self, secret: bytes) -> str:
        signing_input = f"{segment(dump({**self.header, 'alg': 'HS256'}))}.{segment(dump(self.claims))}"
        return f"{signing_input}.{segment(hmac.digest(secret, signing_input.encode(), hashlib.sha256))}"

    def public_bytes(self, encoding: serialization.Encoding) -> bytes:
        return self.key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


def _loose_bits(m: Material) -> str:
    """64 bytes leave 4 bits of the last character unused: 15 more spellings of the same signature."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return m.good[:-1] + alphabet[alphabet.index(m.good[-1]) ^ 1]


def _flipped(m: Material) -> str:
    signature = bytearray(signature_of(m.good))
    signature[5] ^= 1
    return with_signature(m.good, bytes(signature))


def _der(m: Material) -> str:
    return with_signature(m.good, m.key.sign(m.good.rpartition(".")[0].encode(), ec.ECDSA(hashes.SHA256())))


def _swapped_payload(m: Material) -> str:
    header, _, signature = m.good.split(".")
    return f"{header}.{segment(dump({**m.claims, 'iss': 'https://evil.test'}))}.{signature}"


@dataclass(frozen=True)
class Forgery:
    name: str
    check: str
    make: Callable[[Material], str]


FORGERIES: tuple[Forgery, ...] = (
    # Size and form.
    Forgery("empty text", "form", lambda _: ""),
    Forgery("more than 16 KiB", "size", lambda m: m.claims_with(padding="x" * 16_384)),
    Forgery("a header of one megabyte", "size", lambda m: m.header_with(x5t="x" * 1_000_000)),
    Forgery("two segments", "form", lambda m: m.good.rpartition(".")[0]),
    Forgery("four segments", "form", lambda m: m.good + ".AAAA"),
    Forgery("five segments, as of a JWE", "form", lambda m: m.good + ".AAAA.AAAA"),
    Forgery("an empty signature", "form", lambda m: m.good.rpartition(".")[0] + "."),
    Forgery("an empty payload", "form", lambda m: ".".join((m.good.split(".")[0], "", m.good.split(".")[2]))),
    Forgery("padding", "form", lambda m: m.good + "=="),
    Forgery("junk characters in the signature", "form", lambda m: m.good[:-4] + "!" + m.good[-4:]),
    Forgery("a standard base64 alphabet", "form", lambda m: m.good[:-4] + "+/+A"),
    Forgery("left-over bits in the signature", "form", _loose_bits),
    Forgery("a newline at the end", "form", lambda m: m.good + "\n"),
    Forgery("a space in front", "form", lambda m: " " + m.good),
    Forgery("a character that is not ASCII", "form", lambda m: m.good[:-1] + "\uff21"),
    # JSON.
    Forgery(
        "a duplicate header member",
        "form",
        lambda m: forge(dump(m.header)[:-1] + b',"alg":"ES256"}', m.claims, m.key),
    ),
    Forgery("a duplicate claim", "form", lambda m: m.claims_text(b'"iss":"https://evil.test"')),
    Forgery("a duplicate claim, escaped", "form", lambda m: m.claims_text(b'"\\u0069ss":"https://evil.test"')),
    Forgery("a duplicate member deeper in", "form", lambda m: m.claims_text(b'"x":[{"a":1,"a":2}]')),
    Forgery("NaN", "form", lambda m: m.claims_text(b'"x":NaN')),
    Forgery("Infinity", "form", lambda m: m.claims_text(b'"x":-Infinity')),
    Forgery("a number that overflows to infinity", "form", lambda m: m.claims_text(b'"x":1e999')),
    Forgery("an integer of 5,000 digits", "form", lambda m: m.claims_text(b'"x":' + b"9" * 5000)),
    Forgery("nine levels", "form", lambda m: m.claims_text(b'"x":' + b"[" * 8 + b"]" * 8)),
    Forgery("five thousand levels", "form", lambda m: m.claims_text(b'"x":' + b"[" * 5000 + b"]" * 5000)),
    Forgery("bytes that are not UTF-8", "form", lambda m: m.claims_text(b'"x":"\xff"')),
    Forgery("a lone surrogate", "form", lambda m: m.claims_text(b'"x":"\\ud800"')),
    Forgery("a byte order mark", "form", lambda m: forge(m.header, b"\xef\xbb\xbf" + dump(m.claims), m.key)),
    Forgery("UTF-16", "form", lambda m: forge(m.header, dump(m.claims).decode().encode("utf-16"), m.key)),
    Forgery("text behind the JSON", "form", lambda m: forge(m.header, dump(m.claims) + b"{}", m.key)),
    Forgery("claims that are a list", "form", lambda m: forge(m.header, [m.claims], m.key)),
    Forgery("a header that is a list", "form", lambda m: forge([m.header], m.claims, m.key)),
    # Header members.
    Forgery("crit", "header", lambda m: m.header_with(crit=["exp"])),
    Forgery("b64 false", "header", lambda m: m.header_with(b64=False, crit=["b64"])),
    Forgery("jku", "header", lambda m: m.header_with(jku="https://evil.test/keys")),
    Forgery("x5u", "header", lambda m: m.header_with(x5u="https://evil.test/cert")),
    Forgery("x5c", "header", lambda m: m.header_with(x5c=["AAAA"])),
    Forgery("jwk", "header", lambda m: m.header_with(jwk={"kty": "oct", "k": "AAAA"})),
    Forgery("zip", "header", lambda m: m.header_with(zip="DEF")),
    Forgery("an unknown header member", "header", lambda m: m.header_with(note="hello")),
    Forgery("a kid that is a number", "header", lambda m: m.header_with(kid=1)),
    Forgery("a kid with a line break", "header", lambda m: m.header_with(kid="a\nb")),
    Forgery("a kid of 257 characters", "header", lambda m: m.header_with(kid="k" * 257)),
    Forgery("a typ that is a list", "header", lambda m: m.header_with(typ=[m.header["typ"]])),
    # Algorithm.
    Forgery("no alg", "algorithm", lambda m: m.header_without("alg")),
    Forgery("alg none without a signature", "form", lambda m: m.header_with(alg="none").rpartition(".")[0] + "."),
    Forgery("alg none with a signature", "algorithm", lambda m: m.header_with(alg="none")),
    Forgery("alg NoNe", "algorithm", lambda m: m.header_with(alg="NoNe")),
    Forgery("alg es256 in lower case", "algorithm", lambda m: m.header_with(alg="es256")),
    Forgery("an alg that the issuer does not use", "algorithm", lambda m: m.header_with(alg="ES512")),
    Forgery(
        "HS256 with the public key's PEM as secret",
        "algorithm",
        lambda m: m.hmac_with(m.public_bytes(serialization.Encoding.PEM)),
    ),
    Forgery(
        "HS256 with the public key's DER as secret",
        "algorithm",
        lambda m: m.hmac_with(m.public_bytes(serialization.Encoding.DER)),
    ),
    # Key and signature.
    Forgery("no kid", "key", lambda m: m.header_without("kid")),
    Forgery("a kid of nobody", "key", lambda m: m.header_with(kid="0123456789abcdef")),
    Forgery("another key's signature", "signature", lambda m: forge(m.header, m.claims, m.stranger)),
    Forgery("a flipped bit in the signature", "signature", _flipped),
    Forgery("junk behind the signature", "signature", lambda m: with_signature(m.good, signature_of(m.good) + b"xy")),
    Forgery("a shortened signature", "signature", lambda m: with_signature(m.good, signature_of(m.good)[:-1])),
    Forgery("a signature in DER", "signature", _der),
    Forgery("a signature of zeros", "signature", lambda m: with_signature(m.good, bytes(64))),
    Forgery("s and r of the group's order", "signature", lambda m: with_signature(m.good, P256_ORDER.to_bytes(32) * 2)),
    Forgery("claims under another's signature", "signature", _swapped_payload),
    # Type.
    Forgery("no typ", "type", lambda m: m.header_without("typ")),
    Forgery("typ JWT", "type", lambda m: m.header_with(typ="JWT")),
    Forgery("typ of a logout token", "type", lambda m: m.header_with(typ="logout+jwt")),
)
