"""Which host is speaking: a client certificate with exactly one SPIFFE id, of a host that the inventory lists.

The handshake has verified the certificate already. It is judged again at each request, because a connection may
outlive the certificate, or the CRL by which it was accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.x509 import verification

from certs.crls import FORGOTTEN_AFTER, hosts_crl_number
from certs.errors import UNREADABLE, CertificateError, Check, PeerRefused
from certs.files import read_certificates, read_crls
from certs.identity import ServiceId, SpiffeId, spiffe_id_of
from certs.verification import Trust, verify_chain, verify_service
from gateway.errors import RelayRefused, RelayRevoked, StartRefused
from gateway.rollover.telling import NOTHING_ROLLS, Rolling
from policy.inventory import Inventory


@dataclass(frozen=True, slots=True)
class HostTrust:
    """Anchors and CRLs for the certificates of hosts, as read from files; replaced as a whole at a reload."""

    trust: Trust
    rolling: Rolling = NOTHING_ROLLS

    @classmethod
    def load(
        cls, bundles: tuple[Path, ...], crls: tuple[Path, ...], rolling: Callable[[], Rolling] = Rolling
    ) -> HostTrust:
        """Errors: StartRefused, naming the file."""
        try:
            found = tuple(dict.fromkeys(each for path in bundles for each in read_certificates(path)))
            return cls(_trust(found, tuple(crl for path in crls for crl in read_crls(path))), rolling())
        except CertificateError as error:
            raise StartRefused(str(error)) from error

    @property
    def crl_number(self) -> int:
        """What relays must have at least (`hosts_crl_number`)."""
        return hosts_crl_number(self.trust.crls, self.trust.anchors)

    def host_of(self, chain: tuple[x509.Certificate, ...], now: datetime) -> SpiffeId:
        """Whose chain it is, at `now`: of any trust domain, for the anchors are this site's CAs alone. Whether it
        counts here, the inventory says (`relay_of`), or the migration (`gateway.receipts`).

        Errors: certs.PeerRefused, certs.IdentityError.
        """
        claimed = spiffe_id_of(chain[0])
        return verify_chain(chain, self.trust, claimed.trust_domain, now).spiffe_id

    def service_of(self, chain: tuple[x509.Certificate, ...], now: datetime) -> ServiceId:
        """Which service's chain it is, at `now`. Errors: certs.PeerRefused."""
        return verify_service(chain, self.trust, now)

    def past_host_of(self, chain: tuple[x509.Certificate, ...], moment: datetime, now: datetime) -> SpiffeId:
        """Whose chain it was at a past `moment`: for receipts that waited until their certificate was renewed.

        The CRLs of today say nothing of their own past validity, so only the path is judged as of then; a serial
        that they list is refused whenever it was revoked. Errors: certs.PeerRefused, certs.IdentityError.
        """
        if chain[0].not_valid_after_utc + FORGOTTEN_AFTER < now:
            days = FORGOTTEN_AFTER.days
            raise PeerRefused(Check.CRL_STALE, f"it ended over {days} days ago: CRLs tell no more if it was revoked")
        builder = verification.PolicyBuilder().store(verification.Store(list(self.trust.anchors))).time(moment)
        try:
            builder.build_client_verifier().verify(chain[0], [*chain[1:], *self.trust.intermediates])
        except verification.VerificationError as error:
            raise PeerRefused("untrusted", f"not valid at {moment.isoformat()}: {error}") from error
        for crl in self.trust.crls:
            if any(crl.get_revoked_certificate_by_serial_number(each.serial_number) is not None for each in chain):
                raise PeerRefused("revoked", "a certificate of the chain has been revoked")
        return spiffe_id_of(chain[0])


def _trust(certificates: tuple[x509.Certificate, ...], crls: tuple[x509.CertificateRevocationList, ...]) -> Trust:
    """Of a bundle the roots are trusted; issuing CAs in it only help where a connection shows no more than the leaf."""
    roots = tuple(each for each in certificates if each.issuer == each.subject)
    return Trust(roots, crls, tuple(each for each in certificates if each not in roots))


def relay_of(certificate_der: bytes | None, trust: HostTrust, inventory: Inventory, now: datetime) -> SpiffeId:
    """The host that the connection's client certificate names. Errors: RelayRefused; its cause only in our own log.

    Beside one thing: whoever has the key of a certificate that was good is told that it was revoked.
    """
    if certificate_der is None:
        raise RelayRefused("relay calls need a client certificate")
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        host = trust.host_of((certificate,), now)
    except PeerRefused as error:
        if error.check == Check.REVOKED:
            raise RelayRevoked from error
        raise RelayRefused("the client certificate is not that of a host of this site") from error
    except (CertificateError, *UNREADABLE) as error:
        raise RelayRefused("the client certificate is not that of a host of this site") from error
    if inventory.host(str(host)) is None:
        raise RelayRefused("the host is not in the inventory") from LookupError(str(host))
    return host
