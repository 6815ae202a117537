"""The CAs that certify hosts: the one in force, and during a rollover the one before or after it.

A host is revoked at all of them, whichever certified it, so that no CRL of theirs falls behind: the lowest of their
numbers is the minimum of each permit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509

from certs.authority import NEXT_TLS, Authority
from certs.errors import CredentialError
from certs.files import read_certificates, write_atomically
from gateway.rollover.places import Places, Stage
from gateway.rollover.telling import root_of


@dataclass(slots=True)
class Authorities:
    """`beside`: the former or the next one, once a rollover was begun. Not for two threads at once."""

    places: Places
    passphrase: bytes | None = field(repr=False)
    current: Authority
    beside: tuple[Authority, ...]

    @classmethod
    def load(cls, folder: Path, passphrase: bytes | None) -> Authorities:
        """Raises `CertificateError`, OSError."""
        places = Places(folder)
        places.mend()
        current = Authority.load(folder, passphrase)
        return cls(places, passphrase, current, tuple(Authority.load(each, passphrase) for each in places.beside()))

    @property
    def trust_domain(self) -> str:
        return self.current.trust_domain

    @property
    def stage(self) -> Stage:
        return self.places.stage

    @property
    def all(self) -> tuple[Authority, ...]:
        return (self.current, *self.beside)

    def issued(self, certificate: x509.Certificate) -> bool:
        return any(certificate.issuer == each.certificate.subject for each in self.all)

    def revoke_all(self, serials: Sequence[int], now: datetime) -> None:
        """At every CA. Raises `CertificateError`, OSError: then some may have done it, and it is to be done again."""
        for authority in self.all:
            authority.revoke_all(serials, now)

    def look_at_next(self) -> Authority:
        """The prepared one, if it can follow. Raises `CredentialError`."""
        if self.current.is_root:
            raise _of_a_root(self.places.current)
        if self.stage is not Stage.PREPARED:
            folder = self.places.next
            raise CredentialError(folder, "is not prepared", f"make it: sealane certs init-issuing ROOT {folder}")
        following = Authority.load(self.places.next, self.passphrase)
        if following.trust_domain != self.trust_domain:
            raise CredentialError(self.places.next, "is of another trust domain", "make it below the right root")
        if following.certificate.public_key() == self.current.certificate.public_key():
            raise CredentialError(self.places.next, "has the key that is to be replaced", "make a new one")
        if following.is_root:
            raise _of_a_root(self.places.next)
        return following

    def is_under_new_root(self) -> bool:
        """Whether the next one is below another root."""
        return root_of(self.places.next) != root_of(self.places.current)

    def begin(self, now: datetime, at_least: int) -> None:
        """From now on the next one counts, with a CRL whose number is no step back. Raises `CertificateError`."""
        following = self.look_at_next()
        following.publish_crl(now, at_least=at_least)
        self.places.begin()
        self.beside = (following,)

    def switch(self, tls: Path) -> None:
        """`tls`: the gateway's certificate, which a new root has certified anew. Raises `CertificateError`, OSError."""
        certified = self.places.next / NEXT_TLS
        if certified.exists() and self.is_under_new_root():
            write_atomically(tls, _same_key(certified, tls))
        self.places.switch()
        self._load_again()

    def retire(self) -> Path:
        """Where the former one lies now."""
        retired = self.places.retire(f"{self.beside[0].certificate.serial_number:x}"[:16])
        self._load_again()
        return retired

    def _load_again(self) -> None:
        fresh = Authorities.load(self.places.current, self.passphrase)
        self.current, self.beside = fresh.current, fresh.beside


@dataclass(frozen=True, slots=True)
class BesideFiles:
    """Files of trust that count besides those that the configuration names."""

    bundles: tuple[Path, ...]
    crls: tuple[Path, ...]


def beside_files(folder: Path) -> BesideFiles:
    """Of the CA beside the one in `folder`."""
    found = Places(folder).beside()
    crls = [each / name for each in found for name in ("crl.pem", "root-crl.pem")]
    return BesideFiles(tuple(each / "bundle.pem" for each in found), tuple(crl for crl in crls if crl.exists()))


def root_that_certified(tls: Path, roots: Sequence[x509.Certificate]) -> x509.Certificate:
    """Of several the one that vouches for the gateway's certificate, else the first. Raises `CredentialError`."""
    top = read_certificates(tls)[-1]
    return next((root for root in roots if top.issuer == root.subject), roots[0])


def _same_key(certified: Path, tls: Path) -> bytes:
    """The certificate that a new root made, if it is for the key that the gateway has."""
    if read_certificates(certified)[0].public_key() != read_certificates(tls)[0].public_key():
        raise CredentialError(certified, "is for another key than the gateway's", "certify the gateway anew")
    return certified.read_bytes()


def _of_a_root(folder: Path) -> CredentialError:
    return CredentialError(
        folder,
        "a root that certifies hosts itself cannot be rolled over",
        "make an issuing CA below it first, and name that as [enrolment] authority",
    )
