"""The thin shell around an issuer's keys: OpenID Connect Discovery, fetching, and when to fetch again.

It trusts the issuer that the operator configured, over HTTPS, and nothing that a token says: `jku`, `x5u` and `jwk`
are refused before this module is reached. Somebody who sends tokens with made-up `kid`s causes at most one fetch
per `minimum_interval_seconds`, whatever their number.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpx
import trio

from policy.errors import IssuerUnavailable, TokenRefused
from policy.facts import Person
from policy.identity.keys import MAX_SET_BYTES, JwkSet
from policy.identity.oidc import IssuerSettings, TokenVerifier
from policy.jws import decode_object, parse_strict
from policy.sources.https import read_bounded, require_https

MAX_DISCOVERY_BYTES: Final = 64 * 1024
_HEADERS: Final = {"accept": "application/json", "accept-encoding": "identity"}
DISCOVERY_PATH: Final = "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """When to fetch, and how much.

    `deadline_seconds` is for discovery and keys together. Keys are fetched anew when older than `refresh_seconds`,
    or when a token names an unknown one, but no sooner than `minimum_interval_seconds` after the last attempt.
    Beyond `maximum_age_seconds` they are trusted no more: a key that the issuer withdrew must stop working.
    """

    deadline_seconds: float = 10
    minimum_interval_seconds: float = 30
    refresh_seconds: float = 3600
    maximum_age_seconds: float = 24 * 3600

    def __post_init__(self) -> None:
        """Raises ValueError (the operator)."""
        if not 0 < self.minimum_interval_seconds <= self.refresh_seconds <= self.maximum_age_seconds:
            raise ValueError("needs 0 < minimum interval <= refresh <= maximum age")


@dataclass(frozen=True, slots=True)
class _Fetched:
    verifier: TokenVerifier
    at: float


class IssuerKeys:
    """One issuer's verifier with keys that are kept fresh. Share one among all tasks; no task of its own."""

    def __init__(
        self,
        settings: IssuerSettings,
        client: httpx.AsyncClient,
        limits: FetchLimits = FetchLimits(),
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """`client` from `https_client`. `clock` is monotonic, in seconds. ValueError if the issuer is not HTTPS."""
        require_https(settings.issuer)
        self._settings = settings
        self._client = client
        self._limits = limits
        self._clock = clock
        self._fetching = trio.Lock()
        self._fetched: _Fetched | None = None
        self._attempted_at: float | None = None
        self.last_failure: str | None = None  # why the last fetch failed, for health and the operator's log

    async def verify(self, token: str, now: int, certificate: bytes | None = None) -> Person:
        """`TokenVerifier.verify` with the issuer's present keys; may fetch them first, within the deadline.

        Raises TokenRefused (the requester), IssuerUnavailable (the operator). Cancelling waits for
        a fetch that has begun, at most the deadline.
        """
        # Reads the token before anything is fetched for it: garbage costs no request.
        key_id = parse_strict(token, algorithms=self._settings.algorithms).key_id
        verifier = await self._current(key_id)
        return verifier.verify(token, now, certificate)

    async def _current(self, key_id: str) -> TokenVerifier:
        if self._wants_fetch(key_id) and not self._may_use_old_keys(key_id):
            async with self._fetching:
                # Whoever waited here finds the keys that another task has just fetched.
                if self._wants_fetch(key_id):
                    await self._fetch()
        if self._fetched is None or self._age(self._fetched) > self._limits.maximum_age_seconds:
            detail = self.last_failure or "its keys are too old"
            raise IssuerUnavailable(self._settings.issuer, f"no keys that are fresh enough: {detail}")
        return self._fetched.verifier

    def _wants_fetch(self, key_id: str) -> bool:
        attempted_at = self._attempted_at
        if attempted_at is not None and self._clock() - attempted_at < self._limits.minimum_interval_seconds:
            return False
        if self._fetched is None or not self._fetched.verifier.keys.knows(key_id):
            return True
        return self._age(self._fetched) > self._limits.refresh_seconds

    def _may_use_old_keys(self, key_id: str) -> bool:
        """While one task refreshes, the others go on with a key that is known and not yet too old."""
        return (
            self._fetching.locked()
            and self._fetched is not None
            and self._fetched.verifier.keys.knows(key_id)
            and self._age(self._fetched) <= self._limits.maximum_age_seconds
        )

    def _age(self, fetched: _Fetched) -> float:
        return self._clock() - fetched.at

    async def _fetch(self) -> None:
        """Fetch once. A failure is only noted: keys that are not too old stay in use.

        Shielded, for as long as the deadline: a requester who hangs up must not use up the others' attempt.
        """
        self._attempted_at = started_at = self._clock()
        try:
            with trio.fail_after(self._limits.deadline_seconds, shield=True):
                keys = await fetch_keys(self._client, self._settings.issuer)
        except IssuerUnavailable as error:
            self.last_failure = error.detail
            return
        except trio.TooSlowError:
            self.last_failure = f"no answer within {self._limits.deadline_seconds:g} s"
            return
        self.last_failure = None
        # Age counts from the start: what was withdrawn while the answer was on its way is not fresh.
        self._fetched = _Fetched(TokenVerifier(self._settings, keys), started_at)


def https_client(trust_bundle: str | None = None) -> httpx.AsyncClient:
    """A client for issuers: TLS 1.2 or newer, verified by `trust_bundle` (PEM file; None: the system's).

    No redirects, no proxy or certificate path from the environment. The caller closes it.
    """
    context = ssl.create_default_context(cafile=trust_bundle)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return httpx.AsyncClient(verify=context, trust_env=False, follow_redirects=False, timeout=5)


async def fetch_keys(client: httpx.AsyncClient, issuer: str) -> JwkSet:
    """Discovery, then the key set it points to. Raises IssuerUnavailable; deadline and cancelling are the caller's."""
    try:
        discovery = decode_object(await _get(client, issuer, issuer.rstrip("/") + DISCOVERY_PATH, MAX_DISCOVERY_BYTES))
        if discovery.get("issuer") != issuer:
            # The mix-up attack: OpenID Connect Discovery 1.0, section 4.3.
            raise IssuerUnavailable(issuer, "its discovery document names another issuer: correct `issuer`")
        jwks_uri = discovery.get("jwks_uri")
        if not isinstance(jwks_uri, str):
            raise IssuerUnavailable(issuer, "its discovery document has no jwks_uri")
        keys = JwkSet.parse(await _get(client, issuer, jwks_uri, MAX_SET_BYTES))
    except TokenRefused as error:
        raise IssuerUnavailable(issuer, f"its discovery document or key set: {error.detail}") from error
    if not keys.keys:
        raise IssuerUnavailable(issuer, "its key set has no key with a kid")
    return keys


async def _get(client: httpx.AsyncClient, issuer: str, url: str, max_bytes: int) -> bytes:
    """A body of at most `max_bytes`, uncompressed: a small answer must not unpack into a large one."""
    try:
        require_https(url)
        async with client.stream("GET", url, headers=_HEADERS) as response:
            if response.status_code != httpx.codes.OK:
                raise IssuerUnavailable(issuer, f"answered with status {response.status_code}")
            if response.headers.get("content-encoding", "identity") != "identity":
                raise IssuerUnavailable(issuer, "answered compressed though asked not to")
            body = await read_bounded(response, max_bytes)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise IssuerUnavailable(issuer, f"cannot be reached: {_words(error)}") from error
    if len(body) > max_bytes:
        raise IssuerUnavailable(issuer, f"answered with more than {max_bytes} bytes")
    return body


def _words(error: BaseException) -> str:
    """The first of the chain that says anything: with trio, httpx says nothing of a certificate that is not trusted."""
    link: BaseException | None = error
    while link is not None:
        if str(link):
            return str(link)
        link = link.__cause__ or link.__context__
    return type(error).__name__
