"""How those who trust an old root come to trust a new one: a certificate of the new root's key, signed by the old root.

It is RFC 4210's "new with old". It serves for this one question and for no path of a host: who speaks for the gateway
over TLS alone cannot make one, so a stolen TLS key adds no root to any relay.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certs.errors import UNREADABLE, CredentialError

MAX_ROOTS: Final = 8
MAX_INTRODUCTIONS: Final = 16  # of one after the other: for who was away during several rollovers
_REMEDY: Final = "look at the gateway: who told it of this root?"


def root_id(root: x509.Certificate) -> str:
    """By which relays and gateways name a root to each other."""
    return f"root:{root.fingerprint(hashes.SHA256()).hex()[:32]}"


def crl_id(key_id: bytes | None) -> str:
    """By which they name a CA that publishes a CRL: its key identifier."""
    return f"crl:{(key_id or b'').hex()[:64]}"


def authority_key_id(signed: x509.Certificate | x509.CertificateRevocationList) -> bytes | None:
    """The key identifier of the CA that signed it."""
    try:
        return signed.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return None


def introduced_roots(
    held: Sequence[x509.Certificate],
    told: Sequence[x509.Certificate],
    introductions: Sequence[x509.Certificate],
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    """Those of `told` that are not `held` yet; each must be introduced by who is trusted.

    Raises `CredentialError` for a root that nobody introduced; then nothing changes.
    """
    if len(told) > MAX_ROOTS or len(introductions) > MAX_INTRODUCTIONS:
        raise CredentialError(None, f"the gateway tells of {len(told)} roots", _REMEDY)
    try:
        trusted = _all_introduced(held, introductions, now)
        for root in told:
            if root not in held and _identity(root) not in trusted:
                name = root.subject.rfc4514_string()
                raise CredentialError(None, f"no root that is trusted here introduces {name}", _REMEDY)
            _require_root(root)
    except UNREADABLE as error:
        raise CredentialError(None, f"a root cannot be read: {error}", _REMEDY) from None
    return tuple(root for root in told if root not in held)


def _all_introduced(
    held: Sequence[x509.Certificate], introductions: Sequence[x509.Certificate], now: datetime
) -> set[tuple[bytes, bytes]]:
    """Name and key of each root that is trusted or introduced by one that is, over any number of steps."""
    certificates = list(held)
    trusted = {_identity(root) for root in held}
    for _ in introductions:
        for each in introductions:
            if _identity(each) not in trusted and _is_introduction(each, certificates, now):
                trusted.add(_identity(each))
                certificates.append(each)
    return trusted


def _is_introduction(each: x509.Certificate, trusted: Sequence[x509.Certificate], now: datetime) -> bool:
    if not each.not_valid_before_utc <= now < each.not_valid_after_utc or not _is_authority(each):
        return False
    return any(_speaks_for(root) == _speaks_for(each) and _is_issued_by(each, root) for root in trusted)


def _is_issued_by(each: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        each.verify_directly_issued_by(root)
    except (InvalidSignature, TypeError, ValueError):
        return False
    return True


def _require_root(root: x509.Certificate) -> None:
    """Its own signature, too: the name and key that were introduced must be what peers will use."""
    if root.issuer != root.subject or not _is_authority(root) or not _is_issued_by(root, root):
        raise CredentialError(None, f"{root.subject.rfc4514_string()} is no root", _REMEDY)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _speaks_for(certificate: x509.Certificate) -> list[str]:
    """The trust domain: a root introduces none of another."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _identity(root: x509.Certificate) -> tuple[bytes, bytes]:
    key = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return root.subject.public_bytes(), key
