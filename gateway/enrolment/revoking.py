"""Hosts out: the end of every certificate of a host that this authority issued, and of its tokens.

It is on record first, and then the CRL is in force before the caller hears of it. What is on record and could not be
done, because the disk was full say, is tried again every minute and at the next start; until it is done the host gets
neither token nor certificate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
import trio

from audit.record import format_time
from certs.errors import CertificateError
from certs.identity import SpiffeId
from gateway.enrolment.crls import Crls
from gateway.enrolment.errors import EnrolmentRefused
from gateway.enrolment.one_thread import OneThread
from gateway.enrolment.recalling import REVOKED, recall_keys
from gateway.enrolment.register import Register, issued
from gateway.errors import GatewayError, NotKnown
from gateway.gate import Gate
from gateway.hosts_seen import HostsSeen
from gateway.recording import Event, History
from gateway.rollover.authorities import Authorities

TOKEN_ISSUED: Final = "host.token_issued"  # noqa: S105 - a kind of record
UNFINISHED_AT_MOST: Final = timedelta(days=31)  # a gateway was away so long, in the middle of a revocation
RETRY_SECONDS: Final = 60.0
SERIALS_OF_A_RECORD: Final = 500  # 22 KiB; whoever has the key of a host renews as often as hosts may

log = structlog.get_logger("gateway.enrolment")


class Revoking:
    """`thread`: the register's and the CAs' only one."""

    def __init__(
        self,
        gate: Gate,
        authorities: Authorities,
        register: Register,
        thread: OneThread,
        seen: HostsSeen,
        crls: Crls,
    ) -> None:
        self._gate = gate
        self._authorities = authorities
        self._register = register
        self._thread = thread
        self._seen = seen
        self._crls = crls
        self._times: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()
        self._unfinished: dict[str, set[str]] = {}  # serials, which may be none, by host

    def times(self, name: str) -> int:
        """How often the host was revoked; to compare at the end. Errors: EnrolmentRefused while it is being revoked."""
        if self._under_way[name] or name in self._unfinished:
            raise EnrolmentRefused("the host is being revoked", code="being_revoked")
        return self._times[name]

    def require_none_since(self, times: int, name: str) -> None:
        """Else a certificate that is made while serials are collected would outlive the revocation: it stays here."""
        if self._times[name] != times:
            raise EnrolmentRefused("the host was revoked meanwhile", code="being_revoked")

    async def revoke(self, event: Event, host: SpiffeId, now: datetime) -> dict[str, Any]:
        """`event`: of what was permitted. In force here on return.

        Errors: LogUnavailable, AuthorityFailed (it is tried again), NotKnown where there is nothing to revoke.
        """
        with self._closed_to(host.name):
            serials = set(await self._thread.do(self._register.valid_serials, host.name, int(now.timestamp())))
            if (shown := self._seen.certificate(str(host))) is not None and self._authorities.issued(shown):
                by_hand = issued(host.name, shown)
                await self._thread.do(self._register.know, by_hand)  # so that a revocation that is cut off is finished
                serials.add(by_hand.serial)
            with trio.CancelScope(shield=True):  # what is on record is done, whatever becomes of the request
                for part in _parts(sorted(serials)):
                    details = {**event.details, "serials": part}
                    await self._gate.recorder.append(replace(event, outcome="allowed", details=details))
                await self._take_out(host.name, serials, now)
        log.warning("host revoked", host=str(host), certificates=len(serials))
        if not serials:
            raise NotKnown(
                "this authority knows no valid certificate of that host; its tokens are withdrawn, and keys that it "
                "had are certified no more",
                next_step="revoke what was issued by hand: sealane certs publish-crl DIR --revoke-serial HEX",
            )
        return {"host": str(host), "serials": sorted(serials), "crl_number": self._gate.minimum_crl_number}

    async def finish(self, history: History, host_lifetime: timedelta) -> None:
        """At start: what is on record and was not done, because the gateway ended in between, or is not known any more.
        Errors: LogUnavailable, AuthorityFailed."""
        now = self._gate.clock.wall()
        longest = max(host_lifetime, UNFINISHED_AT_MOST)
        seconds, since = int(now.timestamp()), now - longest
        out: dict[str, int] = {}  # with no newer token: since when
        for _, record in await history.records_since((REVOKED, TOKEN_ISSUED), format_time(since)):
            if record.get("outcome") != "allowed":
                continue
            name = str(record["source"]).rpartition("/")[2]
            if record["kind"] == TOKEN_ISSUED:
                out.pop(name, None)
                continue
            out[name] = int(datetime.fromisoformat(record["time"]).timestamp())
            valid = await self._thread.do(self._register.valid_serials, name, seconds)
            if left := set(valid) & set(record["details"]["serials"]):
                await self._take_out(name, left, now)
                log.warning("a revocation was finished", host=record["source"], certificates=len(left))
        for name, moment in out.items():  # what it was given since, by another gateway's word or by hand, is none of it
            await self._thread.do(self._register.revoke, name, (), moment)
        await recall_keys(self._register, self._thread, history, longest)
        for name in await self._thread.do(self._register.hosts_out):
            self._seen.take_out(str(SpiffeId(self._authorities.trust_domain, name)))

    async def run(self) -> None:
        """For ever: try again what is on record and could not be done."""
        while True:
            await trio.sleep(RETRY_SECONDS)
            await self.finish_unfinished()

    async def finish_unfinished(self) -> None:
        for name in list(self._unfinished):
            try:
                with self._closed_to(name):
                    await self._take_out(name, set(), self._gate.clock.wall())
            except (CertificateError, GatewayError, OSError) as error:
                log.error("a host that was revoked still counts; it is tried again", host=name, error=str(error))
            else:
                log.warning("a revocation was finished", host=name)

    async def _take_out(self, name: str, serials: set[str], now: datetime) -> None:
        serials = serials | self._unfinished.pop(name, set())
        try:
            if serials:
                await self._crls.revoke([int(serial, 16) for serial in serials], now)
            if await self._thread.do(self._register.revoke, name, sorted(serials), int(now.timestamp())):
                self._seen.take_out(str(SpiffeId(self._authorities.trust_domain, name)))
        except BaseException:
            self._unfinished.setdefault(name, set()).update(serials)
            raise

    @contextmanager
    def _closed_to(self, name: str) -> Iterator[None]:
        """Nothing is issued for this host, and what is being issued is not given out."""
        self._times[name] += 1
        self._under_way[name] += 1
        try:
            yield
        finally:
            self._under_way[name] -= 1


def _parts(serials: list[str]) -> list[list[str]]:
    """For records; at least one, which may be empty."""
    return [serials[at : at + SERIALS_OF_A_RECORD] for at in range(0, len(serials), SERIALS_OF_A_RECORD)] or [[]]
