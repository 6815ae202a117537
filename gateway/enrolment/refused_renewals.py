"""Renewals that were refused, on record once an hour for each host and reason: somebody may have its key, or want it.

A relay that was revoked asks on by itself, and whoever has stolen a key asks as often as they like: `left_out_before`
of the next record says how often it was, the metrics count each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from cryptography import x509

from certs.errors import UNREADABLE, IdentityError
from certs.identity import spiffe_id_of
from gateway.errors import GatewayError
from gateway.recorded_refusals import RecordedRefusals
from gateway.recording import Event, Recorder, host_actor
from gateway.throttle import Throttle

KIND: Final = "host.renewal_refused"
SECONDS: Final = 3600.0


class RefusedRenewals:
    """`counts`: since the start, by the code of the answer."""

    def __init__(self, recorder: Recorder, monotonic: Callable[[], float]) -> None:
        self._refusals = RecordedRefusals(recorder, Throttle(1, SECONDS, monotonic))
        self.counts: Counter[str] = Counter()

    async def note(self, shown: bytes | None, error: GatewayError, address: str) -> None:
        """`shown`: the certificate (DER) of the connection, whose handshake has proven its key; without one it is
        nobody's, and only counted. Errors: LogUnavailable, Overloaded."""
        self.counts[error.code] += 1
        if shown is None:
            return
        try:
            certificate = x509.load_der_x509_certificate(shown)
            host = str(spiffe_id_of(certificate))
        except (IdentityError, *UNREADABLE):  # of a service, say
            return
        details = {
            "client_address": address,
            "code": error.code,
            "because": error.detail[:500],
            "serial": f"{certificate.serial_number:x}",
        }
        event = Event(KIND, "denied", actor=host_actor(host), source=host, details=details)
        await self._refusals.record(event, f"{error.code} {host}")
