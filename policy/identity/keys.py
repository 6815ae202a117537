"""An issuer's JSON Web Key Set (RFC 7517), read so that a `kid` means exactly one key of one kind.

Issuers publish mixed sets: keys for encryption, for algorithms that we do not take, with members that we do not
know. Such a key is kept with the reason why it is unusable, so that a token that names it is told that reason,
and the others stay usable. python-jose is never given a set: a mixed one fails there, and it would try each key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from policy.errors import TokenRefused
from policy.jws import (
    MAX_HEADER_VALUE,
    MAX_RSA_BITS,
    MIN_RSA_BITS,
    SUPPORTED_ALGORITHMS,
    UnverifiedToken,
    VerificationKey,
    check_key,
    decode_base64url,
    decode_object,
    key_id_of,
)

MAX_SET_BYTES: Final = 256 * 1024  # Entra's set, with certificates, is about 20 KiB
MAX_KEYS: Final = 100
_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_PRIVATE_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class _Unusable(Exception):
    """Why one key of a set cannot verify tokens."""


@dataclass(frozen=True, slots=True)
class JwkSet:
    """By `kid`: every key of that name, or why it cannot be used."""

    keys: Mapping[str, tuple[VerificationKey | str, ...]]

    @classmethod
    def parse(cls, document: bytes) -> JwkSet:
        """Read a set; TokenRefused("form") if it is no strict JSON of that shape or too large.

        A key that cannot be used does not spoil the set.
        """
        if len(document) > MAX_SET_BYTES:
            raise TokenRefused("form", f"key set of more than {MAX_SET_BYTES} bytes")
        entries = decode_object(document).get("keys")
        if not isinstance(entries, list) or len(entries) > MAX_KEYS:
            raise TokenRefused("form", f"key set without `keys`, or with more than {MAX_KEYS}")
        keys: dict[str, tuple[VerificationKey | str, ...]] = {}
        for entry in entries:
            key_id = entry.get("kid") if isinstance(entry, dict) else None
            if _is_key_id(key_id):
                keys[key_id] = (*keys.get(key_id, ()), _read_key(key_id, entry))
        return cls(keys)

    @classmethod
    def of(cls, *public_keys: ec.EllipticCurvePublicKey) -> JwkSet:
        """The set of our own P-256 keys, by `key_id_of`."""
        return cls({key_id_of(key): (VerificationKey(key_id_of(key), key, "ES256"),) for key in public_keys})

    def knows(self, key_id: str) -> bool:
        """Whether any key, usable or not, has that name; if not, the issuer may have a newer set."""
        return key_id in self.keys

    def key_for(self, token: UnverifiedToken) -> VerificationKey:
        """The one key that the token names, which suits its `alg`. Raises TokenRefused("key")."""
        named = self.keys.get(token.key_id, ())
        if len(named) != 1:
            raise TokenRefused("key", "two keys have that kid" if named else "no key has that kid")
        key = named[0]
        if isinstance(key, str):
            raise TokenRefused("key", f"the key of that kid cannot be used: {key}")
        check_key(token, key)
        return key


def _is_key_id(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_HEADER_VALUE and value.isprintable()


def _read_key(key_id: str, entry: Mapping[str, Any]) -> VerificationKey | str:
    try:
        _check_purpose(entry)
        if entry.get("kty") == "EC":
            return VerificationKey(key_id, _read_ec(entry), _algorithm(entry))
        if entry.get("kty") == "RSA":
            return VerificationKey(key_id, _read_rsa(entry), _algorithm(entry))
    except (_Unusable, TokenRefused, ValueError) as error:
        return str(error)
    return "its kty is neither EC nor RSA"


def _check_purpose(entry: Mapping[str, Any]) -> None:
    """RFC 7517 sections 4.2 and 4.3; and a set with a private key in it is public knowledge."""
    if not _PRIVATE_MEMBERS.isdisjoint(entry):
        raise _Unusable("it is private or symmetric")
    if entry.get("use", "sig") != "sig":
        raise _Unusable("its use is not sig")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise _Unusable("its key_ops do not include verify")


def _algorithm(entry: Mapping[str, Any]) -> str | None:
    algorithm = entry.get("alg")
    if "alg" not in entry:
        return None
    if not isinstance(algorithm, str) or algorithm not in SUPPORTED_ALGORITHMS:
        raise _Unusable("its alg is not supported")
    return algorithm


def _read_ec(entry: Mapping[str, Any]) -> ec.EllipticCurvePublicKey:
    name = entry.get("crv")
    curve = _CURVES.get(name) if isinstance(name, str) else None
    if curve is None:
        raise _Unusable("its crv is not supported")
    x, y = (_octets(entry, member) for member in ("x", "y"))
    size = (curve.key_size + 7) // 8
    if len(x) != size or len(y) != size:
        raise _Unusable("its coordinates are not of the curve's size")
    # `public_key` raises ValueError for a point that is not on the curve.
    return ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), curve).public_key()


def _read_rsa(entry: Mapping[str, Any]) -> rsa.RSAPublicKey:
    modulus, exponent = (int.from_bytes(_octets(entry, member)) for member in ("n", "e"))
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS:
        raise _Unusable(f"its modulus is not of {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
    if not 65_537 <= exponent < 2**32:  # a huge exponent makes each verification slow, a tiny one is fragile
        raise _Unusable("its exponent is out of range")
    return rsa.RSAPublicNumbers(exponent, modulus).public_key()


def _octets(entry: Mapping[str, Any], member: str) -> bytes:
    value = entry.get(member)
    if not isinstance(value, str):
        raise _Unusable(f"it has no {member}")
    return decode_base64url(value)
