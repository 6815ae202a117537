"""What a certificate and its key are together: strong enough, of one pair, for the name under which it is called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from certs.errors import UNREADABLE, CertificateError
from certs.files import read_certificates, read_private_key
from gateway.doctor.finding import Finding

_RSA_BITS: Final = 3072
_EC_BITS: Final = 256


def pair_findings(certificate: Path, private_key: Path) -> Iterator[Finding]:
    try:
        leaf = read_certificates(certificate)[0]
        public = leaf.public_key()
        own = read_private_key(private_key)
    except (CertificateError, *UNREADABLE):
        return  # told by the findings about each file
    if own.public_key() != public:
        yield Finding(
            "key_pair", "wrong", f"{private_key} is not the key of {certificate}", "bring both from one place"
        )
        return
    is_weak = (isinstance(public, rsa.RSAPublicKey) and public.key_size < _RSA_BITS) or (
        isinstance(public, ec.EllipticCurvePublicKey) and public.curve.key_size < _EC_BITS
    )
    if is_weak:
        yield Finding("key_pair", "wrong", f"the key of {certificate} is weak", "issue it for a new EC P-256 key")
    else:
        yield Finding("key_pair", "ok", f"{private_key} is the key of {certificate}")


def name_finding(certificate: Path, host: str) -> Finding | None:
    """Whether a server's certificate has the name or address by which it is called. None: it cannot be read."""
    try:
        names = read_certificates(certificate)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (CertificateError, x509.ExtensionNotFound, *UNREADABLE):
        return None
    known = {name.lower() for name in names.get_values_for_type(x509.DNSName)}
    known |= {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    if host.lower() in known:
        return Finding("certificate_name", "ok", f"{certificate} has the name {host}")
    message = f"{certificate} is for {', '.join(sorted(known)) or 'no name'}, not for {host}"
    return Finding("certificate_name", "attention", message, "call the gateway by a name that the certificate has")
