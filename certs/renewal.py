"""When a certificate is renewed, and what a new one must be before it takes the old one's place. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from certs.credentials import HostCredentials
from certs.errors import CredentialError, IdentityError
from certs.identity import spiffe_id_of
from certs.introduction import authority_key_id

JITTER: Final = 0.1  # of the lifetime: hosts that were enrolled together do not come back together
_RETRY_FIRST = timedelta(seconds=15)
_RETRY_MOST = timedelta(minutes=10)


def renewal_due(certificate: x509.Certificate, chance: float) -> datetime:
    """At two thirds of the lifetime, less up to a tenth of it. `chance` is 0 ≤ x < 1, the same for one certificate."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begin + (end - begin) * (2 / 3 - JITTER * chance)


def retry_delay(failures: int, chance: float) -> timedelta:
    """After so many failures in a row: doubled each time up to ten minutes, of which a half is chance."""
    most = min(_RETRY_MOST, _RETRY_FIRST * (1 << min(failures, 10)))
    return most * (0.5 + chance / 2)


def require_successor(held: HostCredentials, chain: tuple[x509.Certificate, ...], now: datetime) -> None:
    """What a gateway answers must be this host, this key, longer than before, and pass at every peer by our own rule.

    Of another CA, in a rollover, it may last as long as the old one, which may be a second old. Raises
    `CredentialError`: the old certificate stays.
    """
    remedy = "look at the gateway's certificate authority"
    try:
        same_host = bool(chain) and spiffe_id_of(chain[0]) == held.spiffe_id
    except IdentityError:
        same_host = False
    if not same_host:
        raise CredentialError(None, "the new certificate is of another host", remedy)
    if chain[0].public_key() != held.private_key.public_key():
        raise CredentialError(None, "the new certificate is of another key", remedy)
    gained = chain[0].not_valid_after_utc - held.chain[0].not_valid_after_utc
    is_of_same_ca = authority_key_id(chain[0]) == authority_key_id(held.chain[0])
    if gained < timedelta() or (is_of_same_ca and not gained):
        raise CredentialError(None, "the new certificate does not last longer than the old one", remedy)
    HostCredentials(chain, held.private_key, held.trust_anchors, held.crls).require_usable(now)
