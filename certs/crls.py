"""CRLs: which of an issuer's is the newest, and whether every CA of a path has one that is complete and current.

OpenSSL looks at them too, and lets pass what ours do not: one that never ends, or covers a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509

from certs.errors import Check, PeerRefused
from certs.introduction import authority_key_id

FORGOTTEN_AFTER = timedelta(days=90)
"""How long after a certificate's end a CRL tells that it was revoked; whatever was signed with it (a receipt that was
kept back) counts no longer than that either."""


def newest_crls(
    crls: Sequence[x509.CertificateRevocationList],
) -> tuple[x509.CertificateRevocationList, ...]:
    """Of each issuer the CRL with the highest number, so that an old file left beside it cannot be preferred."""
    newest: dict[tuple[bytes, bytes], x509.CertificateRevocationList] = {}
    for crl in crls:
        issuer = (crl.issuer.public_bytes(), authority_key_id(crl) or b"")
        held = newest.get(issuer)
        if held is None or (crl_number_of(crl) or 0) > (crl_number_of(held) or 0):
            newest[issuer] = crl
    return tuple(newest.values())


def hosts_crl_number(crls: Sequence[x509.CertificateRevocationList], anchors: Sequence[x509.Certificate]) -> int:
    """The lowest number among the newest CRLs of CAs below the roots; of the roots where none is below; 0 without any.

    The CRL of a root whose key is away stays the same for months: its number says nothing of revoked hosts.
    """
    newest = newest_crls(crls)
    roots = {anchor.subject.public_bytes() for anchor in anchors}
    below = [crl for crl in newest if crl.issuer.public_bytes() not in roots]
    return min((crl_number_of(crl) or 0 for crl in below or newest), default=0)


def crl_number_of(crl: x509.CertificateRevocationList) -> int | None:
    """RFC 5280 section 5.2.3; None if the CRL has none."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def require_fresh_crls(
    path: Sequence[x509.Certificate], crls: Sequence[x509.CertificateRevocationList], now: datetime
) -> int:
    """Every CA of the path, the root too, has a complete CRL that is current. The number of the leaf's CA's CRL.

    Raises PeerRefused.
    """
    numbers = [_require_fresh_crl(authority, crls, now) for authority in path[1:]]
    if not numbers:
        raise PeerRefused(Check.UNTRUSTED, "the leaf itself is a trust anchor")
    return numbers[0]


def _require_fresh_crl(
    authority: x509.Certificate, crls: Sequence[x509.CertificateRevocationList], now: datetime
) -> int:
    name = authority.subject.rfc4514_string()
    crl = next((crl for crl in newest_crls(crls) if _is_issued_by(crl, authority)), None)
    if crl is None:
        raise PeerRefused(Check.CRL_MISSING, f"no CRL of {name}: fetch it from that CA")
    if crl.last_update_utc > now:
        raise PeerRefused(Check.CRL_STALE, f"the CRL of {name} is from the future: is this clock right?")
    if crl.next_update_utc is None or crl.next_update_utc <= now:  # OpenSSL lets a CRL without an end pass
        raise PeerRefused(Check.CRL_STALE, f"the CRL of {name} has ended or never ends: fetch a new one")
    for partial in (x509.DeltaCRLIndicator, x509.IssuingDistributionPoint):
        if any(isinstance(extension.value, partial) for extension in crl.extensions):
            raise PeerRefused(Check.CRL_INVALID, f"the CRL of {name} does not cover all of its certificates")
    number = crl_number_of(crl)
    if number is None:
        raise PeerRefused(Check.CRL_INVALID, f"the CRL of {name} has no number")
    return number


def is_forged(crl: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]) -> bool:
    """It names one of `authorities`, and that one has not signed it. The CRL of another CA cannot be judged here."""
    named = [each for each in authorities if each.subject == crl.issuer and _may_have_signed(each, crl)]
    return bool(named) and not is_issued_by_one(crl, named)


def is_issued_by_one(crl: x509.CertificateRevocationList, authorities: Sequence[x509.Certificate]) -> bool:
    """By its signature, and for the key that made it: a CA that names others would have any number of CRLs."""
    return any(_is_issued_by(crl, each) and _names_key_of(each, crl) for each in authorities)


def _may_have_signed(authority: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    """By the key that the CRL names: CAs of one name may have different keys, as in a rollover."""
    return _key_id(authority) is None or _names_key_of(authority, crl)


def _names_key_of(authority: x509.Certificate, crl: x509.CertificateRevocationList) -> bool:
    return authority_key_id(crl) in {None, b"", _key_id(authority)}


def _key_id(authority: x509.Certificate) -> bytes | None:
    try:
        return authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        return None


class _Same:
    """A CRL as the very object that it is: it cannot be hashed, and hashing it would take as long as reading it."""

    def __init__(self, crl: x509.CertificateRevocationList) -> None:
        self.crl = crl

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.crl is other.crl

    def __hash__(self) -> int:
        return id(self.crl)


def _is_issued_by(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    return crl.issuer == authority.subject and _is_signed_by(_Same(crl), authority)


@lru_cache(maxsize=16)
def _is_signed_by(same: _Same, authority: x509.Certificate) -> bool:
    """Remembered: each request of a host asks again, and ten thousand lines take 8 ms."""
    try:
        return same.crl.is_signature_valid(authority.public_key())  # type: ignore[arg-type]
    except TypeError:  # a key that signs no CRLs (X25519): the same as not signed by it
        return False
