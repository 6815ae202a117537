"""The file CA: one P-256 CA in a folder, a root or below one. Its CRL file is its only state, so nothing can disagree.

ca.pem    certificate; its URI name `spiffe://<trust domain>` says which trust domain it speaks for
ca.key    private key, 0600, in the clear or with a passphrase, or the name of one in a token (`certs.pkcs11`)
crl.pem   what is revoked, under a number that only grows
root.pem  of an issuing CA only: the root above it, its CRL `root-crl.pem` as it was last brought here, and both CAs
          in `bundle.pem`
introductions.pem   of a root that followed another, and of the issuing CAs below it: see `certs.introduction`
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from certs.crls import FORGOTTEN_AFTER, crl_number_of
from certs.errors import CredentialError, IdentityError
from certs.files import (
    MAX_KEY_BYTES,
    read_certificates,
    read_crl,
    read_private,
    write_atomically,
    write_private_key,
)
from certs.identity import ServiceId, SpiffeId, require_trust_domain
from certs.introduction import MAX_INTRODUCTIONS
from certs.pkcs11 import signing_key, token_key
from certs.profiles import CLOCK_SKEW, TRUST_DOMAIN_SCHEME, authority_name, authority_profile, leaf_profile

CA_LIFETIME = timedelta(days=3652)
HOST_LIFETIME = timedelta(hours=24)
GATEWAY_LIFETIME = timedelta(days=90)
CRL_LIFETIME = timedelta(days=7)
ISSUING_LIFETIME = timedelta(days=366)
OFFLINE_CRL_LIFETIME = timedelta(days=180)  # of a root whose key is away: somebody must fetch it for each CRL
ROOT_CRL = "root-crl.pem"
INTRODUCTIONS = "introductions.pem"
NEXT_TLS = "gateway-tls.pem"  # what a new root certified for the gateway that there is
BROUGHT_BY_ROOT = (INTRODUCTIONS, NEXT_TLS)  # from its folder into those of issuing CAs, with which the gateway gets it


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA whose files are in `directory`. Several processes may use one folder: changes of the CRL take a lock."""

    directory: Path
    certificate: x509.Certificate
    trust_domain: str
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def is_root(self) -> bool:
        return self.certificate.issuer == self.certificate.subject

    @property
    def crl_file(self) -> Path:
        return self.directory / "crl.pem"

    @classmethod
    def create(
        cls,
        directory: Path,
        trust_domain: str,
        now: datetime,
        passphrase: bytes | None = None,
        token_file: Path | None = None,
    ) -> Authority:
        """A new CA with an empty CRL, number 1. Raises `KeyFileError` if the folder holds a CA already."""
        require_trust_domain(trust_domain)
        key = _new_key(directory / "ca.key", passphrase, token_file)
        certificate = _root(key, trust_domain, now)
        write_atomically(directory / "ca.pem", certificate.public_bytes(Encoding.PEM))
        authority = cls(directory, certificate, trust_domain, key)
        authority._write_crl({}, 1, now, CRL_LIFETIME)
        return authority

    def create_issuing(
        self,
        directory: Path,
        now: datetime,
        lifetime: timedelta = ISSUING_LIFETIME,
        passphrase: bytes | None = None,
        token_file: Path | None = None,
    ) -> Authority:
        """A CA below this root, in an empty folder: it issues hosts, and its key may be where the root's must not.

        The root publishes a CRL that lasts while its key is away. Raises `KeyFileError` or `CredentialError`.
        """
        if not self.is_root:
            raise CredentialError(self.directory / "ca.pem", "is no root", "make issuing CAs with the root")
        key = _new_key(directory / "ca.key", passphrase, token_file)
        certificate = self._issue_authority(key, now, lifetime)
        write_atomically(directory / "ca.pem", certificate.public_bytes(Encoding.PEM))
        issuing = Authority(directory, certificate, self.trust_domain, key)
        issuing._write_crl({}, 1, now, CRL_LIFETIME)
        self.publish_crl(now, OFFLINE_CRL_LIFETIME)
        root = self.certificate.public_bytes(Encoding.PEM)
        write_atomically(directory / "root.pem", root)
        write_atomically(directory / "bundle.pem", root + certificate.public_bytes(Encoding.PEM))
        for name in BROUGHT_BY_ROOT:
            if (self.directory / name).exists():
                write_atomically(directory / name, (self.directory / name).read_bytes())
        write_atomically(directory / ROOT_CRL, self.crl_file.read_bytes())  # the last: with it the folder is whole
        return issuing

    def create_successor(
        self,
        directory: Path,
        now: datetime,
        passphrase: bytes | None = None,
        token_file: Path | None = None,
    ) -> Authority:
        """The next root, in an empty folder, which this one introduces. Raises `KeyFileError` or `CredentialError`."""
        if not self.is_root:
            raise CredentialError(self.directory / "ca.pem", "is no root", "give the folder of the root")
        successor = Authority.create(directory, self.trust_domain, now, passphrase, token_file)
        ends = min(self.certificate.not_valid_after_utc, successor.certificate.not_valid_after_utc)
        name, key = successor.certificate.subject, successor._key
        builder = authority_profile(name, self.certificate.subject, key, self.trust_domain, now, ends, path_length=1)
        introduction = builder.add_extension(self._authority_key_id(), critical=False).sign(self._key, hashes.SHA256())
        former = self.directory / INTRODUCTIONS
        chain = (*(read_certificates(former) if former.exists() else ()), introduction)[-MAX_INTRODUCTIONS:]
        pem = b"".join(each.public_bytes(Encoding.PEM) for each in chain)
        write_atomically(directory / INTRODUCTIONS, pem)
        return successor

    @classmethod
    def load(cls, directory: Path, passphrase: bytes | None = None) -> Authority:
        """Raises `KeyFileError` or `CredentialError`."""
        path = directory / "ca.pem"
        certificate = read_certificates(path)[0]
        key = signing_key(directory / "ca.key", passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise CredentialError(path, "does not belong to ca.key", "restore both from one backup")
        authority = cls(directory, certificate, _trust_domain_in(certificate, path), key)
        authority._read_crl()
        return authority

    def issue_host(
        self, name: str, public_key: PublicKeyTypes, now: datetime, lifetime: timedelta = HOST_LIFETIME
    ) -> list[x509.Certificate]:
        """Leaf first, without the root. The URI is its only name: a common name would tempt someone to trust it."""
        if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
            raise CredentialError(None, f"the key of {name} is not EC P-256", "make one: it signs receipts too")
        uri = x509.UniformResourceIdentifier(str(SpiffeId(self.trust_domain, name)))
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        return [self._issue(x509.Name([]), [uri], usages, public_key, now, lifetime), *self._above]

    def issue_service(
        self, name: str, public_key: PublicKeyTypes, now: datetime, lifetime: timedelta = HOST_LIFETIME
    ) -> list[x509.Certificate]:
        """For a program that asks the gateway, `/service/<name>`: a client only, so it can never pass for a host."""
        service = ServiceId.parse(f"spiffe://{self.trust_domain}/service/{name}")
        uri = x509.UniformResourceIdentifier(str(service))
        leaf = self._issue(x509.Name([]), [uri], [ExtendedKeyUsageOID.CLIENT_AUTH], public_key, now, lifetime)
        return [leaf, *self._above]

    def issue_gateway(
        self,
        name: str,
        public_key: PublicKeyTypes,
        dns_names: Sequence[str],
        ip_addresses: Sequence[str],
        now: datetime,
        lifetime: timedelta = GATEWAY_LIFETIME,
    ) -> list[x509.Certificate]:
        """For the gateway's HTTPS server. It has no URI name, so it can never pass for a host."""
        try:
            names: list[x509.GeneralName] = [x509.DNSName(dns) for dns in dns_names]
            names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ip_addresses]
        except ValueError as error:
            raise CredentialError(None, f"the gateway's names cannot be used: {error}", "give A-label names") from None
        if not names:
            raise CredentialError(None, "the gateway has neither name nor address", "give at least one")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SpiffeId(self.trust_domain, name).name)])
        leaf = self._issue(subject, names, [ExtendedKeyUsageOID.SERVER_AUTH], public_key, now, lifetime)
        return [leaf, *self._above]

    def revoke(self, serial: int, now: datetime) -> int:
        """Revoke a certificate and publish at once; the new CRL's number. Relays must still be given the file."""
        return self.revoke_all([serial], now)

    def revoke_all(
        self, serials: Sequence[int], now: datetime, lifetime: timedelta = CRL_LIFETIME, at_least: int = 0
    ) -> int:
        """The same for several at once, in one CRL, whose number is `at_least` that."""
        with self._locked():
            revoked, number = self._read_crl()
            for serial in serials:
                revoked.setdefault(serial, now)
            return self._write_next(revoked, number, now, lifetime, at_least)

    def publish_crl(
        self,
        now: datetime,
        lifetime: timedelta = CRL_LIFETIME,
        at_least: int = 0,
        ends: Mapping[int, datetime] | None = None,
    ) -> int:
        """Write crl.pem anew, under the next number, with what is revoked; the new number.

        `ends`: of all that is known to be revoked, when each certificate ends, by serial. One that is on the CRL which
        was published FORGOTTEN_AFTER past its end, or later, is left out of this one (RFC 5280, section 3.3). A
        verifier takes no CRL from the future, so by the clock of each that takes this one the certificate has ended as
        well. What was left out while this CA's own clock was ahead is listed again.
        """
        with self._locked():
            before = read_crl(self.crl_file).last_update_utc
            revoked, number = self._read_crl()
            for serial, end in (ends or {}).items():
                if end + FORGOTTEN_AFTER >= now:
                    revoked.setdefault(serial, now)
                elif end + FORGOTTEN_AFTER < before <= now:
                    revoked.pop(serial, None)
            return self._write_next(revoked, number, now, lifetime, at_least)

    def revoked(self) -> frozenset[int]:
        """The serials on the CRL. Raises `CredentialError`."""
        return frozenset(self._read_crl()[0])

    @property
    def _above(self) -> list[x509.Certificate]:
        """What a host sends after its leaf."""
        return [] if self.is_root else [self.certificate]

    def _issue_authority(self, key: ec.EllipticCurvePrivateKey, now: datetime, lifetime: timedelta) -> x509.Certificate:
        ends = min(now + lifetime, self.certificate.not_valid_after_utc)
        name = authority_name("issuing CA", key)
        builder = authority_profile(name, self.certificate.subject, key, self.trust_domain, now, ends, path_length=0)
        return builder.add_extension(self._authority_key_id(), critical=False).sign(self._key, hashes.SHA256())

    def _issue(
        self,
        subject: x509.Name,
        names: Sequence[x509.GeneralName],
        usages: Sequence[x509.ObjectIdentifier],
        public_key: PublicKeyTypes,
        now: datetime,
        lifetime: timedelta,
    ) -> x509.Certificate:
        ends = min(now + lifetime, self.certificate.not_valid_after_utc)
        if ends <= now:
            raise CredentialError(
                self.directory / "ca.pem", "cannot issue: no lifetime is left", "check the lifetime, the CA, the clock"
            )
        builder = leaf_profile(subject, self.certificate.subject, names, usages, public_key, now, ends)
        return builder.add_extension(self._authority_key_id(), critical=False).sign(self._key, hashes.SHA256())

    def _authority_key_id(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def _read_crl(self) -> tuple[dict[int, datetime], int]:
        path = self.directory / "crl.pem"
        crl = read_crl(path)
        number = crl_number_of(crl)
        if number is None or not crl.is_signature_valid(self._key.public_key()):
            raise CredentialError(path, "is not this CA's CRL", "restore it: it holds what was revoked")
        return {entry.serial_number: entry.revocation_date_utc for entry in crl}, number

    def _write_next(
        self, revoked: dict[int, datetime], number: int, now: datetime, lifetime: timedelta, at_least: int
    ) -> int:
        number = max(number + 1, at_least)
        self._write_crl(revoked, number, now, lifetime)
        return number

    def _write_crl(self, revoked: dict[int, datetime], number: int, now: datetime, lifetime: timedelta) -> None:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - CLOCK_SKEW)
            .next_update(now + lifetime)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._authority_key_id(), critical=False)
        )
        for serial, since in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
            builder = builder.add_revoked_certificate(entry.build())
        crl = builder.sign(self._key, hashes.SHA256())
        write_atomically(self.directory / "crl.pem", crl.public_bytes(Encoding.PEM))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: two revocations at once must both be in the CRL that stays."""
        descriptor = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _root(key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime) -> x509.Certificate:
    name = authority_name("host CA", key)
    return authority_profile(name, name, key, trust_domain, now, now + CA_LIFETIME, path_length=1).sign(
        key, hashes.SHA256()
    )


def _new_key(path: Path, passphrase: bytes | None, token_file: Path | None) -> ec.EllipticCurvePrivateKey:
    """A key in a file of its own; or `path` names the one that `token_file` names, which is in its token already."""
    if token_file is None:
        key = ec.generate_private_key(ec.SECP256R1())
        write_private_key(path, key, passphrase)
        return key
    named = read_private(token_file, MAX_KEY_BYTES)
    found = token_key(token_file, named)
    if path.exists():
        raise CredentialError(path, "exists", "move the old key away first if it is no longer needed")
    write_atomically(path, named, 0o600)
    return found


def trust_domain_of(path: Path) -> str:
    """Of which trust domain the CA certificate in this file speaks. Raises `CredentialError`."""
    return _trust_domain_in(read_certificates(path)[0], path)


def _trust_domain_in(certificate: x509.Certificate, path: Path) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return require_trust_domain(uri.removeprefix(TRUST_DOMAIN_SCHEME))
    except (x509.ExtensionNotFound, ValueError, IdentityError):
        raise CredentialError(path, "does not say its trust domain", "use a CA made by `sealane certs init`") from None
