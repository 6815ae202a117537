"""The CRLs of the office's CAs: fresh, with what is revoked, without what nobody could use any more.

A certificate that ended long ago leaves its CRL with one of those that are published by the clock, as RFC 5280
(section 3.3) has it: not before it was on one that was published after its end (`Authority.publish_crl`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog
import trio

from certs.authority import CRL_LIFETIME
from certs.crls import FORGOTTEN_AFTER
from certs.errors import CertificateError
from certs.files import read_crl
from gateway.enrolment.errors import AuthorityFailed
from gateway.enrolment.one_thread import OneThread
from gateway.enrolment.register import Register
from gateway.errors import GatewayError
from gateway.gate import Gate
from gateway.rollover.authorities import Authorities

CHECK_SECONDS: Final = 60.0

log = structlog.get_logger("gateway.enrolment")


class Crls:
    """`publish` puts the CRLs on disk in force in this gateway."""

    def __init__(
        self,
        gate: Gate,
        authorities: Authorities,
        register: Register,
        thread: OneThread,
        publish: Callable[[], Awaitable[None]],
    ) -> None:
        self._gate = gate
        self._authorities = authorities
        self._register = register
        self._thread = thread
        self._publish = publish

    async def revoke(self, serials: Sequence[int], now: datetime) -> None:
        """In force in this gateway on return, and relays are told. Errors: AuthorityFailed."""
        try:
            known = _counting(await self._ends(), now)
            await self._thread.do(self._authorities.revoke_all, [*serials, *known], now)
        except (CertificateError, OSError) as error:
            log.error("nothing was revoked: the CRL cannot be published", error=str(error))
            raise AuthorityFailed(f"nothing was revoked: {error}") from error
        await self._publish()
        self._gate.bell.ring()
        self._gate.dispatch.wake_all()

    async def keep_fresh(self) -> None:
        """For ever: publish the next one when half of the time of the last one is over, whatever else happens."""
        while True:
            try:
                await self._renew(self._gate.clock.wall())
            except (CertificateError, GatewayError, OSError) as error:
                log.error("the CRL could not be renewed", error=str(error))
            await trio.sleep(CHECK_SECONDS)

    async def _renew(self, now: datetime) -> None:
        ends = await self._ends()
        known = _counting(ends, now)
        for authority in self._authorities.all:
            crl = await self._thread.do(read_crl, authority.crl_file)
            # One from the future was published while this clock was ahead: nobody believes it, nor any host.
            is_early = crl.last_update_utc > now
            lacks = not known <= await self._thread.do(authority.revoked)  # forgotten while this clock was ahead
            if is_early or lacks or crl.next_update_utc is None or crl.next_update_utc - now < CRL_LIFETIME / 2:
                number = await self._thread.do(partial(authority.publish_crl, now, ends=ends))
                log.info("CRL renewed", number=number, authority=authority.certificate.subject.rfc4514_string())
                await self._publish()

    async def _ends(self) -> dict[int, datetime]:
        """Of all that was ever revoked. A register that cannot be read keeps no CRL from being published."""
        try:
            found = await self._thread.do(self._register.revoked)
        except AuthorityFailed:  # it was logged
            return {}
        return {int(serial, 16): datetime.fromtimestamp(end, UTC) for serial, end in found.items()}


def _counting(ends: Mapping[int, datetime], now: datetime) -> frozenset[int]:
    """What belongs on every CRL."""
    return frozenset(serial for serial, end in ends.items() if end + FORGOTTEN_AFTER >= now)
