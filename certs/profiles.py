"""What certificates that we issue say: the profiles of a CA and of a leaf, unsigned. Pure but for serial numbers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.x509.oid import NameOID

from certs.errors import CredentialError

CLOCK_SKEW = timedelta(minutes=5)  # what we issue is valid this much earlier, for clocks that are behind
TRUST_DOMAIN_SCHEME = "spiffe://"


def authority_name(kind: str, key: ec.EllipticCurvePrivateKey) -> x509.Name:
    """A name of its own for each CA: during a rollover the CRLs of two CAs must not be mistaken for each other."""
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Sealane {kind} {key_id.digest[:4].hex()}")])


def authority_profile(  # noqa: PLR0913, PLR0917 - what a CA's certificate says
    name: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    trust_domain: str,
    now: datetime,
    ends: datetime,
    path_length: int,
) -> x509.CertificateBuilder:
    """Its URI name says for which trust domain it speaks."""
    speaks_for = x509.UniformResourceIdentifier(f"{TRUST_DOMAIN_SCHEME}{trust_domain}")
    return (
        _started(name, issuer, key.public_key(), now, ends)
        .add_extension(x509.SubjectAlternativeName([speaks_for]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )


def leaf_profile(  # noqa: PLR0913, PLR0917 - what a leaf says
    subject: x509.Name,
    issuer: x509.Name,
    names: Sequence[x509.GeneralName],
    usages: Sequence[x509.ObjectIdentifier],
    public_key: PublicKeyTypes,
    now: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    """Of a host, a service or the gateway. Raises `CredentialError` for a key that is not of an elliptic curve."""
    return (
        _started(subject, issuer, public_key, now, ends)
        .add_extension(x509.SubjectAlternativeName(names), critical=not list(subject))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )


def _started(
    subject: x509.Name, issuer: x509.Name, public_key: PublicKeyTypes, now: datetime, ends: datetime
) -> x509.CertificateBuilder:
    if now.tzinfo is None:
        raise ValueError("now must know its time zone")
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise CredentialError(None, "the key to certify is not an EC key", "make an EC P-256 key")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - CLOCK_SKEW)
        .not_valid_after(ends.astimezone(UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
