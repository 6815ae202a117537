"""The office that lets hosts in: token → enrolment → renewals; and out, by `revoking`.

Order of each step: may it be → note durably → record → take effect. Revocation is the exception that fails safe.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from audit.record import Actor
from certs.enrolment import SECRET_BYTES, EnrolmentToken, public_key_sha256, requested_key
from certs.errors import CertificateError, CredentialError
from certs.identity import SpiffeId
from gateway.asking import decide
from gateway.counted import counted
from gateway.crowds import crowd_of
from gateway.deciding import decision_document
from gateway.enrolment.crls import Crls
from gateway.enrolment.errors import AuthorityFailed, EnrolmentRefused, KeyRevoked
from gateway.enrolment.one_thread import OneThread
from gateway.enrolment.recalling import REVOKED
from gateway.enrolment.refused_renewals import RefusedRenewals
from gateway.enrolment.register import Note, Register, Spend, Token, issued
from gateway.enrolment.revoking import TOKEN_ISSUED, Revoking
from gateway.enrolment.writer import Writer
from gateway.errors import NotAllowed, NotKnown, RelayRefused, RequesterError, RequestRefused, Throttled
from gateway.gate import Gate
from gateway.hosts_seen import HostsSeen
from gateway.recorded_refusals import of_strangers
from gateway.recording import Event, actor_of, host_actor, identity_of
from gateway.rollover.authorities import Authorities
from gateway.throttle import Throttle
from gateway.times import rfc3339
from policy.facts import Context, HostFacts, Person, Question

log = structlog.get_logger("gateway.enrolment")


@dataclass(frozen=True, slots=True)
class Terms:
    """`root`: the CA that vouches for the gateway's own certificate, as it is now. Every host gets what is `pinned`."""

    root: x509.Certificate
    token_minutes: int
    host_lifetime: timedelta
    pinned: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class NewToken:
    token: EnrolmentToken
    host: SpiffeId
    expires: int


class Office:
    """`publish` puts the CRL on disk in force in this gateway. `read_root`: the CA that vouches for it now."""

    def __init__(  # noqa: PLR0913, PLR0917 - its pieces
        self,
        gate: Gate,
        authorities: Authorities,
        register: Register,
        terms: Terms,
        seen: HostsSeen,
        publish: Callable[[], Awaitable[None]],
        monotonic: Callable[[], float],
        read_root: Callable[[], x509.Certificate],
    ) -> None:
        self.terms = terms
        self._read_root = read_root
        self._gate = gate
        self.authorities = authorities
        self._register = register
        # No settings: only what is refused counts, so that nobody behind the same address is held up by it; and a
        # certificate of an hour, the shortest, is renewed after forty minutes.
        self._failing = Throttle(10, 3.0, monotonic)
        self._renewing = Throttle(6, 300.0, monotonic)
        self._refusals = of_strangers(gate.recorder, monotonic)
        self.refused_renewals = RefusedRenewals(gate.recorder, monotonic)
        self.thread = OneThread()
        self._signing = trio.CapacityLimiter(2)
        self._writer = Writer(register, self.thread)
        self._crls = Crls(gate, authorities, register, self.thread, publish)
        self.revoking = Revoking(gate, authorities, register, self.thread, seen, self._crls)

    async def new_token(self, person: Person, name: str, minutes: int | None, address: str) -> NewToken:
        """For a host that the inventory lists. Errors: NotAllowed (recorded), NotKnown, RequestRefused,
        EnrolmentRefused (it is being revoked)."""
        now = self._gate.clock.wall()
        spiffe_id = self._spiffe_id(name)
        event = await self._permitted("EnrolHost", TOKEN_ISSUED, person, spiffe_id, None, now, address)
        self._listed(spiffe_id)
        revocations = self.revoking.times(name)
        if minutes is None:
            minutes = self.terms.token_minutes
        elif minutes > self.terms.token_minutes:
            # Cut in silence, somebody would rely on a token that has ended.
            raise RequestRefused(
                f"a token waits {counted(self.terms.token_minutes, 'minute')} at most here, not {minutes}",
                next_step="ask for fewer minutes, or set token_minutes of [enrolment] in the gateway's file",
            )
        expires = int(now.timestamp()) + minutes * 60
        root_sha256 = self.terms.root.fingerprint(hashes.SHA256())
        token = EnrolmentToken(name, root_sha256, secrets.token_bytes(SECRET_BYTES))
        kept = Token(name, expires, person.id, None)
        details = {"token_sha256": token.sha256().hex(), "expires": expires}
        await self._gate.recorder.append(_with(event, "allowed", details))
        await self.thread.do(self._register.add_token, token.sha256(), kept, int(now.timestamp()))
        self.revoking.require_none_since(revocations, name)
        return NewToken(token, spiffe_id, expires)

    async def enrol(self, text: str, request: bytes, address: str) -> dict[str, Any]:
        """A host's first certificate, and all that it pins. Errors: EnrolmentRefused, Throttled, AuthorityFailed."""
        now = self._gate.clock.wall()
        try:
            sha256, token = await self._token(text, int(now.timestamp()))
            spiffe_id = self._spiffe_id(token.host)
            facts = self._listed(spiffe_id)
            revocations = self.revoking.times(token.host)
            self._require_patience(spiffe_id)
            key = requested_key(request)
            key_sha256 = public_key_sha256(key)
            await self._require_not_revoked(key_sha256)
            chain = await self._issue(token.host, key, now)
            certificate = issued(token.host, chain[0])
            if not await self._writer.write(Spend(sha256, key_sha256, certificate, int(now.timestamp()))):
                raise EnrolmentRefused("the token was used already, for another key", code="token_used")
        except (CredentialError, EnrolmentRefused, NotKnown, RequestRefused) as error:
            await self._refuse(error, text, address)
            if isinstance(error, KeyRevoked):
                raise
            raise EnrolmentRefused("the token is not accepted: unknown, expired, withdrawn or used already") from error
        details = {
            "client_address": address,
            "token_sha256": sha256.hex(),
            "token_issued_by": token.issued_by,
            **_certificate_facts(chain[0], key_sha256),
        }
        host = str(spiffe_id)
        event = Event("host.enrolled", "completed", actor=host_actor(host), source=host, details=details)
        await self._gate.recorder.append(event)
        self.revoking.require_none_since(revocations, token.host)
        log.info("host enrolled", host=str(spiffe_id), serial=certificate.serial)
        return {
            "host": str(spiffe_id),
            "certificate": _pem(chain),
            "address": facts.address,
            "gateway_bundle": _pem([self.terms.root]),
            **self.terms.pinned,
        }

    async def renew(
        self, judge: Callable[[], Awaitable[SpiffeId]], shown: bytes | None, request: bytes, address: str
    ) -> dict[str, Any]:
        """Another certificate for the host that asks. `judge`: who that is, by the certificate that is `shown` (DER),
        now; it must not wait. A refusal is on record within a rate.

        Errors: what `judge` raises, RequestRefused, Throttled, EnrolmentRefused, AuthorityFailed.
        """
        try:
            return await self._renew(judge, request, address)
        except (RelayRefused, RequesterError) as error:
            await self.refused_renewals.note(shown, error, address)
            raise

    async def _renew(self, judge: Callable[[], Awaitable[SpiffeId]], request: bytes, address: str) -> dict[str, Any]:
        host = await judge()
        revocations = self.revoking.times(host.name)
        if host.trust_domain != self.authorities.trust_domain:
            raise RequestRefused("this authority does not issue for that trust domain")
        self._require_patience(host)
        now = self._gate.clock.wall()
        try:
            key = requested_key(request)
        except CredentialError as error:
            raise RequestRefused(str(error)) from error
        key_sha256 = public_key_sha256(key)
        await self._require_not_revoked(key_sha256)
        chain = await self._issue(host.name, key, now)
        await self._writer.write(Note(issued(host.name, chain[0]), int(now.timestamp())))
        details = {"client_address": address, **_certificate_facts(chain[0], key_sha256)}
        await self._gate.recorder.append(
            Event("host.renewed", "completed", actor=host_actor(str(host)), source=str(host), details=details)
        )
        self.revoking.require_none_since(revocations, host.name)
        return {"certificate": _pem(chain)}

    async def revoke(self, person: Person, name: str, reason: str, address: str) -> dict[str, Any]:
        """See `Revoking.revoke`. Errors: NotAllowed (recorded), and those of it."""
        now = self._gate.clock.wall()
        spiffe_id = self._spiffe_id(name)
        event = await self._permitted("RevokeHost", REVOKED, person, spiffe_id, reason, now, address)
        return await self.revoking.revoke(event, spiffe_id, now)

    def find_root(self) -> None:
        """After the gateway's own certificate may have changed: tokens name the root that vouches for it now."""
        try:
            self.terms = replace(self.terms, root=self._read_root())
        except CertificateError as error:
            log.error("the root of this gateway cannot be read", error=str(error))

    def pin(self, pinned: dict[str, list[str]]) -> None:
        """From now on, hosts that enrol get these keys."""
        self.terms = replace(self.terms, pinned=pinned)

    async def run(self) -> None:
        """For ever: writes what others wait for, keeps the CRLs fresh, and finishes revocations."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._writer.run)
            nursery.start_soon(self._crls.keep_fresh)
            nursery.start_soon(self.revoking.run)

    async def _require_not_revoked(self, key_sha256: bytes) -> None:
        """Errors: KeyRevoked."""
        if await self.thread.do(self._register.has_revoked, key_sha256):
            raise KeyRevoked("the key of this host was revoked: somebody else may have it")

    def _require_patience(self, host: SpiffeId) -> None:
        """Also for a token that was used, by the same key: each certificate is a record, and may become a line of CRLs.

        Errors: Throttled.
        """
        if not self._renewing.admits(str(host)):
            raise Throttled("this host has got several certificates in a row")

    async def _token(self, text: str, now: int) -> tuple[bytes, Token]:
        sha256 = EnrolmentToken.parse(text).sha256()
        token = await self.thread.do(self._register.token, sha256)
        if token is None:
            raise EnrolmentRefused("nobody issued this token, or a newer one took its place", code="token_unknown")
        if token.expires <= now:
            raise EnrolmentRefused("the token has expired", code="token_expired")
        return sha256, token

    async def _refuse(self, error: Exception, text: str, address: str) -> None:
        """On record within a rate. Errors: Throttled, LogUnavailable, Overloaded."""
        if not self._failing.admits(crowd_of(address)):
            raise Throttled("too many enrolments from this address were refused") from error
        try:
            host: str | None = EnrolmentToken.parse(text).host  # what it claims: the actor is nobody
        except CredentialError:
            host = None
        details = {"client_address": address, "claimed_host": host, "because": str(error)[:500]}
        await self._refusals.record(Event("host.enrolment_refused", "denied", details=details))

    async def _permitted(  # noqa: PLR0913, PLR0917
        self,
        action: str,
        kind: str,
        person: Person,
        host: SpiffeId,
        reason: str | None,
        now: datetime,
        address: str,
    ) -> Event:
        """The event, yet without its outcome. Errors: NotAllowed, recorded."""
        context = Context(time=now, reason_given=bool(reason and reason.strip()))
        decision = decide(self._gate.engine, Question(action, person, None, None, None, context))
        details = {"host": str(host), "client_address": address, "decision": decision_document(decision)}
        actor: Actor = actor_of(person)
        details |= identity_of(person)
        event = Event(kind, actor=actor, source=str(host), reason=reason, details=details)  # `host:` finds it
        if not decision.allowed:
            recorded = await self._gate.recorder.append(_with(event, "denied", {}))
            raise NotAllowed(f"{action} is denied", decision.denied_because, recorded.index)
        return event

    def _spiffe_id(self, name: str) -> SpiffeId:
        try:
            return SpiffeId(self.authorities.trust_domain, name)
        except CertificateError as error:
            raise RequestRefused(str(error)) from error

    def _listed(self, host: SpiffeId) -> HostFacts:
        facts = self._gate.inventory.host(str(host))
        if facts is None:
            raise NotKnown(
                f"the inventory has no host {host}",
                next_step="list it in the inventory first: its zone and address are not the host's own to say",
            )
        return facts

    async def _issue(self, name: str, key: Any, now: datetime) -> list[x509.Certificate]:
        try:
            # In a thread: a key in a token takes its time.
            issue = partial(self.authorities.current.issue_host, name, key, now, self.terms.host_lifetime)
            return await trio.to_thread.run_sync(issue, limiter=self._signing)
        except CertificateError as error:
            log.error("no certificate can be issued", error=str(error))
            raise AuthorityFailed("the certificate authority cannot issue now") from error


def _with(event: Event, outcome: str, details: dict[str, Any]) -> Event:
    return replace(event, outcome=outcome, details={**event.details, **details})


def _certificate_facts(leaf: x509.Certificate, key_sha256: bytes) -> dict[str, Any]:
    return {
        "serial": f"{leaf.serial_number:x}",
        "sha256": leaf.fingerprint(hashes.SHA256()).hex(),
        "key_sha256": key_sha256.hex(),
        "not_after": rfc3339(leaf.not_valid_after_utc),
    }


def _pem(chain: Sequence[x509.Certificate]) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in chain)
