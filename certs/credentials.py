"""What a host proves itself with and judges its peers by, read whole from files at start or refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.crls import crl_number_of, hosts_crl_number
from certs.errors import UNREADABLE, Check, CredentialError, IdentityError, KeyFileError, PeerRefused
from certs.federation import ForeignTrust
from certs.files import read_certificates, read_crls, read_private_key
from certs.identity import SpiffeId, spiffe_id_of
from certs.verification import Trust, verify_chain


@dataclass(frozen=True, slots=True)
class HostCredentials:
    """`chain` is the leaf, then its intermediates. The key is EC P-256: it signs receipts too."""

    chain: tuple[x509.Certificate, ...]
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)
    trust_anchors: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...]
    foreign: tuple[ForeignTrust, ...] = ()  # other sites, each for its own trust domain

    @property
    def spiffe_id(self) -> SpiffeId:
        return spiffe_id_of(self.chain[0])

    @property
    def authorities(self) -> tuple[x509.Certificate, ...]:
        """The CAs that are known before any peer has shown its own."""
        return (*self.trust_anchors, *self.chain[1:])

    @property
    def trust(self) -> Trust:
        return Trust(self.trust_anchors, self.crls)

    def trust_of(self, trust_domain: str) -> Trust | None:
        """By what hosts of this trust domain are judged: ours, or another site's. None: by nothing."""
        if trust_domain == self.spiffe_id.trust_domain:
            return self.trust
        return next((each.trust for each in self.foreign if each.trust_domain == trust_domain), None)

    @property
    def crl_number(self) -> int:
        """Of the CRL of hosts' CAs (`hosts_crl_number`), to compare with a permit's minimum."""
        return hosts_crl_number(self.crls, self.trust_anchors)

    @classmethod
    def load(cls, certificate: Path, private_key: Path, trust_bundle: Path, crls: Sequence[Path]) -> HostCredentials:
        """Read PEM files. A file that cannot do its part fails here, not at the first connection.

        Raises `KeyFileError` or `CredentialError`, with the file and what to do. No clock: see `require_usable`.
        """
        chain = read_certificates(certificate)
        try:
            spiffe_id_of(chain[0])
        except IdentityError as error:
            raise CredentialError(certificate, str(error), "issue a host certificate with one SPIFFE id") from None
        key = read_private_key(private_key)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise KeyFileError(private_key, "is not an EC P-256 key", "issue the host certificate for such a key")
        if key.public_key() != _public_key_of(chain[0], certificate):
            raise KeyFileError(private_key, f"does not belong to {certificate}", "give the key of that certificate")
        if not crls:
            raise CredentialError(None, "no CRL is configured", "name the CRL of every CA: without one no peer passes")
        return cls(chain, key, _anchors(trust_bundle), tuple(crl for path in crls for crl in _crls(path)))

    def require_usable(self, now: datetime) -> None:
        """Refuse at start what every peer would refuse: our own chain, by our own rule. Raises `CredentialError`."""
        try:
            verify_chain(self.chain, self.trust, self.spiffe_id.trust_domain, now)
        except PeerRefused as refused:
            remedy = "correct the files or this machine's clock; if it has expired, enrol again (sealane relay enrol)"
            if refused.check == Check.REVOKED:
                remedy = (
                    "ask why; if this host may come back, move its host.key away, and enrol again (sealane relay enrol)"
                )
            problem = f"this host's own certificate would be refused ({refused.check}: {refused.detail})"
            raise CredentialError(None, problem, remedy) from None


def _public_key_of(leaf: x509.Certificate, path: Path) -> object:
    try:
        return leaf.public_key()
    except UNREADABLE:
        raise CredentialError(path, "holds a public key that cannot be read", "issue the certificate anew") from None


def _anchors(path: Path) -> tuple[x509.Certificate, ...]:
    anchors = read_certificates(path)
    for anchor in anchors:
        name = ""
        try:
            name = anchor.subject.rfc4514_string()
            is_authority = anchor.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            is_root = is_authority and anchor.issuer == anchor.subject
        except (x509.ExtensionNotFound, *UNREADABLE):
            is_root = False
        if not is_root:
            problem = f"holds {name or 'a certificate'}, which is no root CA"
            raise CredentialError(path, problem, "list only the root CAs of hosts")
    return anchors


def _crls(path: Path) -> tuple[x509.CertificateRevocationList, ...]:
    crls = read_crls(path)
    for crl in crls:
        try:
            number = crl_number_of(crl)
        except UNREADABLE:
            number = None
        if number is None:
            raise CredentialError(path, "is a CRL without a number", "let its CA publish CRLs as RFC 5280 says")
    return crls
