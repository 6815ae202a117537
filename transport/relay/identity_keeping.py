"""Keeps this host's identity fresh: notices changed files, renews the certificate, fetches CRLs. Touches no session."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Final, Protocol

import msgspec
import structlog
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Meta

from audit.errors import AuditError
from certs.changes import Marks, marks_of
from certs.enrolment import make_request
from certs.errors import UNREADABLE, CertificateError, CredentialError
from certs.files import write_atomically
from certs.introduction import authority_key_id, crl_id
from certs.renewal import renewal_due, require_successor, retry_delay
from transport.errors import UNDECODABLE
from transport.relay.gateway_answers import GatewayAway, GatewayRefuses
from transport.relay.host import RelayHost, now, pin_files
from transport.relay.pins import read_pins
from transport.relay.told_trust import ToldTrust, TrustNews

LOOK_SECONDS: Final = 5.0
LEAVING_SPREAD: Final = timedelta(seconds=60)  # within which all hosts leave a CA: a thousand are some 17 a second
_TRUST_RETRY_SECONDS: Final = 5.0
_MAX_TRUST_BYTES: Final = 32 * 1024 * 1024
_MAX_RENEWED_BYTES: Final = 256 * 1024
log = structlog.get_logger("sealane.relay")


class Asking(Protocol):
    """A gateway, or several of which one answers."""

    async def ask(self, path: str, body: dict[str, object], at_most: int) -> bytes: ...

    async def use_identity(self) -> None: ...


class _Renewed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    certificate: Annotated[str, Meta(max_length=64 * 1024)]


_decode_trust = msgspec.json.Decoder(ToldTrust | None).decode
_decode_renewed = msgspec.json.Decoder(_Renewed).decode


class IdentityKeeper:
    """`chance`: 0 ≤ x < 1, drawn once for this process."""

    def __init__(self, host: RelayHost, link: Asking, chance: float | None = None) -> None:
        self._host = host
        self._link = link
        self._chance = _chance() if chance is None else chance
        self._refused: Marks | None = None
        self._trust_versions: dict[Asking, str] = {}
        self._fetching = trio.Lock()
        self._pins_read = self._marks_of_pins()
        self._failures = 0
        self._not_before: datetime | None = None
        self._leaving: dict[Asking, frozenset[str]] = {}  # CAs that are about to go, as each gateway says of its own
        self._heard_leaving: datetime | None = None

    async def run(self) -> None:
        """For ever. Clocks may jump and files may be anything: each look begins from what is there."""
        while True:
            try:
                await self.look(now())
            except (CertificateError, OSError) as error:
                log.error("the identity stays as it is", cause=str(error))
            await trio.sleep(LOOK_SECONDS)

    async def look(self, moment: datetime) -> None:
        """One look: changed files, then a renewal that is due."""
        async with self._fetching:  # what is told is several files: none of them is taken without the others
            await self._look_at_pins()
            await self._look_at_files(moment)
        if self._host.config.identity.from_gateway and self._is_due(moment):
            await self._renew(moment)

    async def _look_at_pins(self) -> None:
        """Of a site that brings its files by another way: what cannot be read is said once, and left."""
        found = await self._host.on_disk(self._marks_of_pins)
        if found == self._pins_read:
            return
        self._pins_read, desk = found, self._host.permits
        try:
            pins = await self._host.on_disk(read_pins, *pin_files(self._host.config))
        except (AuditError, OSError, ValueError) as error:
            log.error("changed files of pinned keys are refused; the old keys stay", cause=str(error))
            return
        if pins != desk.pins:
            desk.pin(pins)
            log.info("pinned keys changed", keys=pins.names())

    def _marks_of_pins(self) -> Marks:
        permits, logs = pin_files(self._host.config)
        return marks_of([*permits, *logs])

    async def _look_at_files(self, moment: datetime) -> None:
        identity = self._host.identity
        found = await self._host.on_disk(marks_of, identity.files)
        if found not in {identity.marks, self._refused}:
            try:
                await self._take_files(moment)
            except CertificateError:
                self._refused = found  # said once; the next change is tried again
                raise

    async def hear(self, version: str | None, link: Asking | None = None) -> None:
        """What a gateway's poll says of its roots and CRLs: fetch what is news, before anything else is done.

        `link`: that gateway's; two of a site may not have the same at the same moment.

        Fails without harm: a permit that asks for a newer CRL than the one here is refused until it is fetched.
        """
        if version is None or not self._host.config.identity.from_gateway:
            return
        async with self._fetching:
            asked = link or self._link
            if version == self._trust_versions.get(asked):
                return
            try:
                with trio.fail_after(_TRUST_RETRY_SECONDS * 2):
                    await self._fetch_trust(asked)
            except (GatewayAway, GatewayRefuses, CertificateError, OSError, ValueError, trio.TooSlowError) as error:
                log.error("the newest CRLs and roots could not be taken", cause=str(error) or type(error).__name__)

    async def _fetch_trust(self, link: Asking) -> None:
        told = _decode_trust(await link.ask("/v1/relay/trust", {}, _MAX_TRUST_BYTES))
        if told is None:
            return
        self._leaving[link] = frozenset(told.leaving)
        news = TrustNews(self._host.identity, Path(self._host.config.gateway.trust_bundle), told, now())
        taken = await self._host.on_disk(news.take)
        if taken.any:
            await self._take_files(now())
        if taken.gateway_roots:
            await self._link.use_identity()
        await self._take_keys(told)
        if taken.refused is not None:
            log.error("what the gateway tells of roots is refused", cause=taken.refused)
            return
        self._trust_versions[link] = told.version

    async def _take_keys(self, told: ToldTrust) -> None:
        """Durable before they are believed. Raises `CredentialError`, OSError."""
        desk = self._host.permits
        pins = told.pins_after(desk.pins)
        if pins != desk.pins:
            await self._host.on_disk(pins.write, *pin_files(self._host.config))
            self._pins_read = await self._host.on_disk(self._marks_of_pins)
            desk.pin(pins)
            log.info("pinned keys changed", keys=pins.names())

    async def _take_files(self, moment: datetime) -> None:
        identity = self._host.identity
        before = identity.credentials.chain[0]
        await self._host.on_disk(identity.reload, moment)
        self._refused = None
        leaf = identity.credentials.chain[0]
        log.info("identity reloaded", crl_number=identity.credentials.crl_number, valid_until=_until(leaf))
        if leaf != before:
            await self._link.use_identity()

    def _is_due(self, moment: datetime) -> bool:
        leaf = self._host.credentials.chain[0]
        waits = self._not_before is not None and moment < self._not_before
        # After a jump of the clock the wait must not last for years.
        too_far = self._not_before is not None and self._not_before - moment > timedelta(hours=1)
        return self._wants_another(leaf, moment) and (too_far or not waits)

    def _wants_another(self, leaf: x509.Certificate, moment: datetime) -> bool:
        """Due by its age, or because the CA that issued it is about to go; all hosts hear of that at once."""
        if crl_id(authority_key_id(leaf)) not in frozenset().union(*self._leaving.values()):
            self._heard_leaving = None
            return moment >= renewal_due(leaf, self._chance)
        if self._heard_leaving is None or self._heard_leaving > moment:
            self._heard_leaving = moment
        return moment >= self._heard_leaving + LEAVING_SPREAD * self._chance

    async def _renew(self, moment: datetime) -> None:
        held = self._host.credentials
        try:
            with trio.fail_after(30):
                body: dict[str, object] = {"request": make_request(held.private_key).decode()}
                answer = _decode_renewed(await self._link.ask("/v1/relay/renewal", body, _MAX_RENEWED_BYTES))
            chain = tuple(x509.load_pem_x509_certificates(answer.certificate.encode()))
            require_successor(held, chain, moment)
        except (GatewayAway, GatewayRefuses, CredentialError, trio.TooSlowError, *UNREADABLE, *UNDECODABLE) as e:
            self._failures += 1
            self._not_before = moment + retry_delay(self._failures, _chance())
            self._say_failed(moment, held.chain[0], str(e) or "no answer in time")
            return
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
        await self._host.on_disk(write_atomically, Path(self._host.config.identity.certificate), pem)
        self._failures, self._not_before = 0, None
        await self._take_files(moment)

    def _say_failed(self, moment: datetime, leaf: x509.Certificate, cause: str) -> None:
        if moment >= leaf.not_valid_after_utc:
            log.error("the certificate has expired: enrol this host again (sealane relay enrol)", cause=cause)
        else:
            log.warning("the certificate could not be renewed yet", valid_until=_until(leaf), cause=cause)


def _chance() -> float:
    return secrets.randbelow(1 << 20) / (1 << 20)


def _until(leaf: x509.Certificate) -> str:
    return leaf.not_valid_after_utc.isoformat()
