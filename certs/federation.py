"""Trust in other sites: their roots as SPIFFE bundles, their CRLs; each vouches for its own trust domain and no other.

A bundle is a JWK Set (SPIFFE Trust Domain and Bundle, sections 4 and 6): of its keys those count whose `use` is
`x509-svid`; each holds one root in `x5c`. It does not say of which trust domain it is: that is the operator's word.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.crls import crl_number_of, hosts_crl_number
from certs.errors import UNREADABLE, CredentialError, IdentityError
from certs.files import read_certificates, read_crls
from certs.identity import require_trust_domain
from certs.verification import Trust

MAX_BUNDLE_BYTES: Final = 256 * 1024
MAX_ROOTS: Final = 16
X509_USE: Final = "x509-svid"
_PEM: Final = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class ForeignTrust:
    """What another site's hosts are judged by, and they alone."""

    trust_domain: str
    trust: Trust

    @property
    def crl_number(self) -> int:
        """To compare with the minimum in a permit of that site."""
        return hosts_crl_number(self.trust.crls, self.trust.anchors)


def load_foreign(trust_domain: str, bundle: Path, crls: Sequence[Path], own: str) -> ForeignTrust:
    """Read files of another site. `own`: our trust domain, which no other site may have.

    Raises `CredentialError`: a file that cannot do its part fails at the start, not at the first connection.
    """
    try:
        require_trust_domain(trust_domain)
    except IdentityError as error:
        raise CredentialError(None, str(error), "name the other site's trust domain") from None
    if trust_domain == own:
        raise CredentialError(None, f"{own} is this site's own trust domain", "two sites need two trust domains")
    roots = read_bundle(bundle, trust_domain)
    found = tuple(crl for path in crls for crl in read_crls(path))
    for crl in found:
        try:
            number = crl_number_of(crl)
        except UNREADABLE:
            number = None
        if number is None:
            raise CredentialError(bundle, f"has a CRL of {trust_domain} without a number", "fetch another")
    return ForeignTrust(trust_domain, Trust(roots, found))


def read_bundle(path: Path, trust_domain: str) -> tuple[x509.Certificate, ...]:
    """The roots of a SPIFFE bundle, or of a PEM file of them. Raises `CredentialError`."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BUNDLE_BYTES + 1)
    except OSError as error:
        raise CredentialError(path, f"cannot be read ({error.strerror})", "check the path") from None
    if len(data) > MAX_BUNDLE_BYTES:
        raise CredentialError(path, f"is larger than {MAX_BUNDLE_BYTES} bytes", "give the right file")
    if data.lstrip().startswith(_PEM):
        return _checked(read_certificates(path), trust_domain, path)
    return parse_bundle(data, trust_domain, path)


def parse_bundle(data: bytes, trust_domain: str, path: Path | None = None) -> tuple[x509.Certificate, ...]:
    """The roots in a SPIFFE bundle. Raises `CredentialError`."""
    try:
        document = json.loads(data, object_pairs_hook=_once)
        keys = document["keys"]
        certificates = [_root(key) for key in keys if key.get("use") == X509_USE]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, *UNREADABLE) as error:
        raise CredentialError(path, f"is no SPIFFE bundle ({error})", "export it again at the other site") from None
    return _checked(certificates, trust_domain, path)


def bundle_document(roots: Sequence[x509.Certificate], sequence: int, refresh_seconds: int = 300) -> dict[str, Any]:
    """The SPIFFE bundle of these roots. `sequence`: greater whenever they have changed."""
    return {
        "keys": [_jwk(root) for root in roots],
        "spiffe_sequence": sequence,
        "spiffe_refresh_hint": refresh_seconds,
    }


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    """One document must not pin other roots here than another reader finds in it."""
    if len({name for name, _ in members}) != len(members):
        raise ValueError("a member stands twice")
    return dict(members)


def _root(key: dict[str, Any]) -> x509.Certificate:
    (text,) = key["x5c"]
    try:
        return x509.load_der_x509_certificate(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise ValueError("x5c is not base64") from error


def _jwk(root: x509.Certificate) -> dict[str, Any]:
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CredentialError(None, "a root whose key is not EC P-256", "export its PEM file instead")
    numbers = key.public_numbers()
    x, y = (base64.urlsafe_b64encode(number.to_bytes(32)).rstrip(b"=").decode() for number in (numbers.x, numbers.y))
    der = base64.b64encode(root.public_bytes(Encoding.DER)).decode()
    return {"kty": "EC", "crv": "P-256", "x": x, "y": y, "use": X509_USE, "x5c": [der]}


def _checked(roots: Sequence[x509.Certificate], trust_domain: str, path: Path | None) -> tuple[x509.Certificate, ...]:
    if not 1 <= len(roots) <= MAX_ROOTS:
        raise CredentialError(path, f"has {len(roots)} roots, not 1 to {MAX_ROOTS}", "export it again")
    for root in roots:
        try:
            is_authority = root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            is_root = is_authority and root.issuer == root.subject  # names, too, are read only when they are asked for
            names = _uris(root)
        except (x509.ExtensionNotFound, *UNREADABLE):
            is_root, names = False, []
        if not is_root:
            raise CredentialError(path, "holds a certificate that is no root CA", "list roots only")
        if names and names != [f"spiffe://{trust_domain}"]:
            # Else a bundle laid into the wrong folder would let one site speak for another.
            raise CredentialError(path, f"is of {names[0]!a:.80}, not of {trust_domain}", "give that site's bundle")
    return tuple(roots)


def _uris(root: x509.Certificate) -> list[str]:
    try:
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)
