"""SPIFFE ids of hosts, canonical or refused: a name that can be written in two ways can be pinned in one and used in
the other.

`spiffe://<trust domain>/host/<name>`, nothing before, between or after: OpenSSL's own URI constraint lets
`spiffe://domain:1/…` and `spiffe://user@domain/…` pass, so no URI parser is asked here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cryptography import x509

from certs.errors import UNREADABLE, IdentityError

MAX_LENGTH = 255
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_TRUST_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAME = re.compile(_LABEL)
_SERVICE_ID = re.compile(r"(spiffe://([a-z0-9.-]+))((?:/[A-Za-z0-9_-][A-Za-z0-9._-]{0,62}){1,8})")
_SPIFFE_ID = re.compile(r"spiffe://([a-z0-9.-]+)/host/([a-z0-9-]+)")


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A host's id. Whatever way it is made, it is canonical; else `IdentityError`."""

    trust_domain: str
    name: str

    def __post_init__(self) -> None:
        require_trust_domain(self.trust_domain)
        if not _NAME.fullmatch(self.name):
            raise IdentityError(f"{self.name!a:.80} is not a host name: 1-63 of a-z, 0-9 and inner hyphens")
        if len(str(self)) > MAX_LENGTH:
            raise IdentityError(f"a SPIFFE id of more than {MAX_LENGTH} characters")

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/host/{self.name}"

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Strict: no other scheme, case, port, user, query, fragment, escape or empty segment."""
        found = _SPIFFE_ID.fullmatch(text) if len(text) <= MAX_LENGTH else None
        if found is None:
            raise IdentityError(f"{text!a:.120} is not spiffe://<trust domain>/host/<name>")
        return cls(found[1], found[2])


@dataclass(frozen=True, slots=True, order=True)
class ServiceId:
    """A program's id: `spiffe://<trust domain>/<path>`, where the path is not one of a host. Canonical, as SpiffeId."""

    trust_domain: str
    path: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"

    @property
    def issuer(self) -> str:
        """Who vouches for it: the trust domain."""
        return f"spiffe://{self.trust_domain}"

    @classmethod
    def parse(cls, text: str) -> ServiceId:
        """Strict: segments of letters, digits, `.`, `_`, `-`, none of which begins with a dot; never `/host/…`."""
        found = _SERVICE_ID.fullmatch(text) if len(text) <= MAX_LENGTH else None
        if found is None:
            raise IdentityError(f"{text!a:.120} is not the SPIFFE id of a service")
        require_trust_domain(found[2])
        if found[3].split("/")[1].lower() == "host":
            raise IdentityError(f"{text!a:.120} is an id of a host, which is no service")
        return cls(found[2], found[3])


def require_trust_domain(text: str) -> str:
    """`text`, if it is a lower-case DNS name (an address is none); else `IdentityError`."""
    if len(text) > MAX_LENGTH or not _TRUST_DOMAIN.fullmatch(text):
        raise IdentityError(f"{text!a:.120} is not a trust domain: a lower-case DNS name")
    if text.rpartition(".")[2].isdigit():
        raise IdentityError(f"{text!a:.120} is not a trust domain: it reads as an address")
    return text


def service_id_of(certificate: x509.Certificate) -> ServiceId:
    """The same for the certificate of a service."""
    return ServiceId.parse(_only_uri(certificate))


def spiffe_id_of(certificate: x509.Certificate) -> SpiffeId:
    """The host's id: the only URI among the subject alternative names. Other kinds of names do not count.

    Two URIs are refused even if one of them is no SPIFFE id: which one counts must not depend on the reader.
    """
    return SpiffeId.parse(_only_uri(certificate))


def _only_uri(certificate: x509.Certificate) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise IdentityError("the certificate has no subject alternative name, so no SPIFFE id") from None
    except UNREADABLE as error:
        raise IdentityError(f"the certificate's extensions cannot be read: {error}") from None
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise IdentityError(f"the certificate has {len(uris)} URI names, not exactly one SPIFFE id")
    return uris[0]
