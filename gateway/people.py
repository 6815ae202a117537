"""Who is asking: bearer tokens of the configured issuers, and the local issuer's own tokens for a password.

A refused token or password is recorded, within a rate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import structlog
import trio

from audit.errors import AuditError
from audit.record import Actor
from gateway.crowds import crowd_of
from gateway.errors import GatewayError, OperatorError, Throttled, Unauthenticated
from gateway.patience import REFUSALS_AT_ONCE, REFUSALS_PER_MINUTE, Patience
from gateway.people_sources import DirectoryGroups, KeySource, LocalIssuer
from gateway.recorded_refusals import of_strangers
from gateway.recording import Event, Recorder
from gateway.sealed_people import SEAL_BROKEN, SIGNED_IN, SealBroken, SealedIssuer
from gateway.services import ServiceRefused, Services
from gateway.throttle import Throttle
from policy.errors import DirectoryRefused, DirectoryUnavailable, FactRefused, IssuerUnavailable, TokenRefused
from policy.facts import CLIENT_CERTIFICATE, NOT_AUTHENTICATED, OPEN_PORT, DirectoryFacts, Person, group_id
from policy.identity.local import LocalDirectory, LocalPerson, issue_token
from policy.identity.oidc import unverified_issuer
from policy.identity.sameness import marks_of
from policy.many_groups import MANY

# What must not be decided on groups that are a minute old, beside the API's calls that say so themselves.
PRIVILEGED_ACTIONS: Final = frozenset(
    {
        "BreakGlass",
        "ApproveBreakGlass",
        "EndBreakGlass",
        "OpenLibvirt",
        OPEN_PORT,
    }
)
TOKEN_FACTS_SECONDS: Final = 3_600  # how long what only a token told is believed after its end, of what runs
MAX_PASSWORD_CHECKS: Final = 2  # at once, each some tenths of a second of CPU
MAX_PASSWORD_QUEUE: Final = 16
MAX_SIGNED_IN: Final = 10_000  # names with addresses that are remembered, until a restart

log = structlog.get_logger("gateway.people")


class IdentityUnavailable(OperatorError):
    """The issuer of a token cannot be asked for its keys: nobody is taken for whom they say they are."""

    code = "identity_unavailable"
    next_step = "look at the connection to the identity provider; requests with its tokens are denied meanwhile"


@dataclass(frozen=True, slots=True)
class Presented:
    """What a requester shows. `certificate`: the client certificate (DER) of their connection, verified by TLS.

    `on_known` is called once it has shown who they are.
    """

    bearer: str | None
    certificate: bytes | None = None
    on_known: Callable[[], None] = lambda: None


def _gone(whence: str) -> DirectoryFacts:
    return DirectoryFacts(problem=f"they are in the {whence} no more")


@dataclass(frozen=True, slots=True)
class IssuedToken:
    access_token: str
    expires_in: int


class People:
    """`issuers` by name (`iss`); `local` is None where people come from outside issuers only.

    `directory` is Active Directory, for the issuers that leave groups to it; `sealed`, who stands in when it is down.
    """

    def __init__(
        self,
        issuers: Mapping[str, KeySource],
        local: LocalIssuer | None,
        recorder: Recorder,
        throttles: Throttles,
        directory: DirectoryGroups | None = None,
        sealed: SealedIssuer | None = None,
    ) -> None:
        self.patience = Patience(recorder, REFUSALS_AT_ONCE, REFUSALS_PER_MINUTE, throttles.monotonic)
        self.local = local
        self.sealed = sealed
        self.directory = directory
        self.services: Services | None = None  # programs that ask by client certificate
        self.token_facts_seconds = TOKEN_FACTS_SECONDS
        self._issuers = issuers
        self._recorder = recorder
        self._throttles = throttles
        self._hashing = trio.CapacityLimiter(MAX_PASSWORD_CHECKS)
        self._refusals = of_strangers(recorder, throttles.monotonic)
        # What the bundle in force names: of people in very many groups, records write out these.
        self.named_groups: Callable[[], frozenset[str]] = frozenset

    async def authenticate(self, shown: Presented | str | None, now: datetime, address: str) -> Person:
        """As `identify`, for what may be refused. Errors: those, and TooManyRefusals, recorded within a rate."""
        person = await self.identify(shown, now, address)
        await self.patience.require(person, address)
        return person

    async def identify(self, shown: Presented | str | None, now: datetime, address: str) -> Person:
        """The person whom the token names, or without a token the service whose certificate the connection has.

        Errors: Unauthenticated, IdentityUnavailable; both recorded.
        """
        presented = shown if isinstance(shown, Presented) else Presented(shown)
        try:
            if presented.bearer is not None:
                person = await self._verify(presented.bearer, int(now.timestamp()), presented.certificate)
            elif presented.certificate is not None and self.services is not None:
                person = self.services.person_of(presented.certificate, now)
            else:
                raise Unauthenticated("this call needs a bearer token")
        except ServiceRefused as error:
            await self._record_refusal({"check": "certificate", "detail": str(error)[:500]}, None, address)
            raise Unauthenticated(
                "the client certificate is not that of a service of this site",
                check="certificate",
                next_step="ask the operator to add it to [[identity.services]], or send a token",
            ) from error
        except TokenRefused as error:
            await self._record_refusal({"check": error.check, "detail": error.detail}, None, address)
            raise Unauthenticated("the token is not accepted", check=error.check) from error
        except IssuerUnavailable as error:
            await self._record_refusal({"check": "issuer-unavailable", "detail": error.detail}, None, address)
            raise IdentityUnavailable(f"the keys of issuer {error.issuer} cannot be had") from error
        presented.on_known()
        return person

    async def resolve_groups(
        self, person: Person, now: datetime, address: str, action: str | None = None, *, fresh: bool = False
    ) -> Person:
        """The groups as they are now, not as they were when the token was issued. Errors: Unauthenticated.

        A local person is looked up again at each decision: who was removed or lost a group has lost it at once.
        Groups that an outside issuer's token does not tell completely stay unknown, which denies; so do those of an
        account that Active Directory does not tell of, or that may do nothing: `person.directory` says why.
        For a privileged `action`, and where `fresh`, nothing cached is used.
        """
        found = await self._groups_of_now(person, now, address, fresh=fresh or action in PRIVILEGED_ACTIONS)
        if found.groups is None or len(found.groups) <= MANY:
            return found
        return replace(found, shown_groups=found.groups & self.named_groups())

    async def _groups_of_now(self, person: Person, now: datetime, address: str, *, fresh: bool) -> Person:
        if self.directory is not None and self.directory.knows(person):
            return await self.directory.resolve(person, now, fresh=fresh)
        if self.sealed is not None and person.issuer == self.sealed.issuer:
            return await self._resolve_sealed(self.sealed, person, address)
        if self.local is None or person.issuer != self.local.issuer:
            return person
        found = self.local.directory.people.get(person.id.partition("#")[2])
        if found is None:
            await self._record_refusal({"check": "subject", "detail": "removed since"}, person.id, address)
            raise Unauthenticated("the token is not accepted", check="subject")
        return replace(person, groups=frozenset(group_id(person.issuer, group) for group in found.groups))

    def asks_directory(self, person: Person) -> bool:
        """Whether it takes Active Directory to say who they are now."""
        return self.directory is not None and self.directory.knows(person)

    async def reconsider(self, person: Person, now: datetime) -> Person:
        """The person as they are known now, for what they began earlier; nothing cached, nothing recorded.

        Who is gone has unknown groups and the reason. Of an outside issuer's token nothing newer can be had: what it
        said is believed for `token_facts_seconds` after its end. Errors: DirectoryUnavailable: nobody can tell now.
        """
        if self.directory is not None and self.directory.knows(person):
            return await self.directory.reconsider(person, now)
        if self.sealed is not None and person.issuer == self.sealed.issuer:
            try:
                found = self.sealed.find(await self.sealed.people(), person)
            except DirectoryRefused as error:
                raise DirectoryUnavailable("answer", str(error)) from error
            groups = self.sealed.groups_of(found) if found is not None else None
            return replace(person, groups=groups, directory=None if found else _gone("sealed file"))
        if self.local is not None and person.issuer == self.local.issuer:
            found = self.local.directory.people.get(person.id.partition("#")[2])
            names = found.groups if found is not None else ()
            groups = frozenset(group_id(person.issuer, name) for name in names) if found is not None else None
            return replace(person, groups=groups, directory=None if found else _gone("local directory"))
        if person.authenticated_by == CLIENT_CERTIFICATE:
            service = self.services.known(person.id) if self.services is not None else None
            return service or replace(person, groups=None, directory=_gone("gateway's configuration"))
        if person.authenticated_by != NOT_AUTHENTICATED and person.issuer not in self._issuers:
            return replace(person, groups=None, directory=_gone("configured issuers"))
        ended = None if person.told_until is None else int(now.timestamp()) - person.told_until
        if ended is not None and ended > self.token_facts_seconds:
            raise DirectoryUnavailable("answer", f"the token that told their groups ended {ended} s ago")
        return person

    async def sign_in(self, username: str, password: str, now: datetime, address: str) -> IssuedToken:
        """A token for a local person; it exists only once it is recorded. Errors: Unauthenticated, Throttled, log."""
        local = self.local
        if local is None:
            raise Unauthenticated("this gateway has no local people", next_step="sign in at the identity provider")
        self._require_patience(username, address)
        person = await self._check_password(local.directory, username, password)
        if person is None:
            await self._record_refusal({"check": "password"}, username, address)
            raise Unauthenticated("user name or password is wrong", check="password")
        self._throttles.signed_in(username, address)
        token = issue_token(
            person, local.private_key, local.issuer, local.audience, int(now.timestamp()), local.token_seconds
        )
        details = {"client_address": address, "expires_in": local.token_seconds}
        await self._recorder.append(Event("token.issued", "allowed", actor=_actor(local, person), details=details))
        return IssuedToken(token, local.token_seconds)

    async def sign_in_sealed(self, username: str, password: str, now: datetime, address: str) -> IssuedToken:
        """The same for a person of the sealed file; an alarm, refused or not. Errors: as `sign_in`, and SealBroken."""
        sealed = self.sealed
        if sealed is None:
            raise Unauthenticated("this gateway has no sealed people", next_step="sign in as yourself")
        self._require_patience(username, address)
        directory = await self._sealed_people(sealed, address)
        person = await self._check_password(directory, username, password)
        if person is None:
            log.critical("a sealed person was refused", alarm=True, address=address)
            await self._record_refusal({"check": "password"}, username, address, SIGNED_IN)
            raise Unauthenticated("user name or password is wrong", check="password")
        self._throttles.signed_in(username, address)
        token = sealed.issue(person, int(now.timestamp()))
        await self._recorder.append(sealed.signed_in(person, address))
        return IssuedToken(token, sealed.token_seconds)

    async def marks_of(self, person: Person, address: str) -> frozenset[str]:
        """By what this human is recognised, whichever of their identities they use. Errors: SealBroken."""
        known: LocalPerson | None = None
        subject = person.id.partition("#")[2]
        if self.sealed is not None and person.issuer == self.sealed.issuer:
            known = (await self._sealed_people(self.sealed, address)).people.get(subject)
        elif self.local is not None and person.issuer == self.local.issuer:
            known = self.local.directory.people.get(subject)
        return marks_of(person, known.same_as if known is not None else ())

    async def _resolve_sealed(self, sealed: SealedIssuer, person: Person, address: str) -> Person:
        found = sealed.find(await self._sealed_people(sealed, address), person)
        if found is None:
            await self._record_refusal({"check": "subject", "detail": "removed since"}, person.id, address, SIGNED_IN)
            raise Unauthenticated("the token is not accepted", check="subject")
        return replace(person, groups=sealed.groups_of(found))

    async def _sealed_people(self, sealed: SealedIssuer, address: str) -> LocalDirectory:
        """Errors: SealBroken, recorded."""
        try:
            return await sealed.people()
        except DirectoryRefused as error:
            log.critical("sealed file refused", alarm=True, error=str(error), address=address)
            why = {"check": "seal", "detail": str(error)[:2000], "sha256": sealed.file.sha256}
            await self._record_refusal(why, None, address, SEAL_BROKEN)
            raise SealBroken("the file of sealed people is not the one that was sealed") from error

    def _require_patience(self, username: str, address: str) -> None:
        """Errors: Throttled."""
        if not self._throttles.sign_in_admits(username, address) or self._waiting() >= MAX_PASSWORD_QUEUE:
            raise Throttled("too many attempts to sign in")

    async def _check_password(self, directory: LocalDirectory, username: str, password: str) -> LocalPerson | None:
        return await trio.to_thread.run_sync(directory.check_password, username, password, limiter=self._hashing)

    async def _verify(self, bearer: str, now: int, certificate: bytes | None) -> Person:
        issuer = unverified_issuer(bearer)
        if (source := self._issuers.get(issuer)) is None:
            raise TokenRefused("issuer", "not a configured issuer")
        try:
            return await source.verify(bearer, now, certificate)
        except FactRefused as error:
            raise TokenRefused("claims", str(error)) from error

    async def _record_refusal(
        self, why: dict[str, Any], username: str | None, address: str, kind: str = "token.refused"
    ) -> None:
        """Record it, or count it. A log that cannot take it changes nothing: the answer is no in any case."""
        actor = Actor(username[:64], username[:64], "nobody") if username and username.isprintable() else None
        details = {**why, "client_address": address}
        try:
            # Each kind has its share: bad tokens are cheap, and must not hide who tries the sealed file.
            await self._refusals.record(Event(kind, "denied", actor=actor, details=details), kind)
        except (GatewayError, AuditError) as error:
            log.warning("a refused token could not be recorded", error=str(error))

    def _waiting(self) -> int:
        return self._hashing.statistics().tasks_waiting


class Throttles:
    """Of what needs no authentication."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.monotonic = monotonic
        self._by_name = Throttle(5, 10.0, monotonic)
        self._by_both = Throttle(5, 10.0, monotonic)
        self._by_address = Throttle(10, 3.0, monotonic)
        self._signed_in: OrderedDict[tuple[str, str], None] = OrderedDict()

    def sign_in_admits(self, username: str, address: str) -> bool:
        """Five at once for a name, then six a minute; ten and twenty for an address, or a network of IPv6.

        From where the name has signed in before it has five of its own: else whoever guesses locks everybody out.
        """
        if not self._by_address.admits(crowd_of(address)):
            return False
        if (username, address) in self._signed_in:
            return self._by_both.admits(f"{username} {address}")
        return self._by_name.admits(username)

    def signed_in(self, username: str, address: str) -> None:
        """With the right password."""
        self._signed_in[username, address] = None
        self._signed_in.move_to_end((username, address))
        if len(self._signed_in) > MAX_SIGNED_IN:
            self._signed_in.popitem(last=False)


def _actor(local: LocalIssuer, person: LocalPerson) -> Actor:
    groups = tuple(sorted(group_id(local.issuer, group) for group in person.groups))
    return Actor(f"{local.issuer}#{person.username}", person.name, "local", local.issuer, groups)
