"""The certificates by which relays were last heard, and who was taken out: who is revoked is not heard any more."""

from __future__ import annotations

from datetime import datetime

from cryptography import x509

from certs.errors import CertificateError, Check, PeerRefused
from gateway.relays import HostTrust


class HostsSeen:
    """By SPIFFE id, as many as the inventory has hosts: only those are heard."""

    def __init__(self) -> None:
        self._certificates: dict[str, bytes] = {}
        self._since: dict[str, float] = {}
        self._judged: dict[str, tuple[bytes, HostTrust, bool]] = {}
        self._taken_out: set[str] = set()

    def note(self, host: str, certificate_der: bytes, now: float) -> None:
        """It has just been found good. `now`: Unix seconds."""
        self._taken_out.discard(host)
        if self._certificates.get(host) != certificate_der:
            self._certificates[host] = certificate_der
            self._since[host] = now

    def shown_since(self, host: str) -> float:
        """When it first showed the certificate that it last showed, as far as this gateway has heard; 0 for never."""
        return self._since.get(host, 0.0)

    def certificate(self, host: str) -> x509.Certificate | None:
        """What it last showed."""
        der = self._certificates.get(host)
        return None if der is None else x509.load_der_x509_certificate(der)

    def take_out(self, host: str) -> None:
        """It was revoked here, and is out until it shows a good certificate: what it showed last ends some day."""
        self._taken_out.add(host)

    def is_out(self, host: str, trust: HostTrust, now: datetime) -> bool:
        """Whether it is revoked for all that is known, also where it was not heard since the start."""
        return host in self._taken_out or self.is_revoked(host, trust, now)

    def is_revoked(self, host: str, trust: HostTrust, now: datetime) -> bool:
        """Whether what it last showed is on a CRL of `trust`. Expiry is no revocation."""
        der = self._certificates.get(host)
        if der is None:
            return False
        known = self._judged.get(host)
        if known is None or known[0] != der or known[1] is not trust:
            known = self._judged[host] = (der, trust, _is_on_crl(der, trust, now))
        return known[2]


def _is_on_crl(certificate_der: bytes, trust: HostTrust, now: datetime) -> bool:
    try:
        trust.host_of((x509.load_der_x509_certificate(certificate_der),), now)
    except PeerRefused as error:
        return error.check == Check.REVOKED
    except (CertificateError, ValueError):
        return False
    return False
