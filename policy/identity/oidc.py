"""An access token of a configured issuer becomes a person; pure, with the keys and the clock passed in.

Order: strict reading, the one key, python-jose for signature, audience, issuer and subject, then what it does not
check or checks with its own clock: type, times, lifetime, authorised party, acr and amr, groups. Sources: RFC 9068
(JWT access tokens), OpenID Connect Core 1.0, RFC 8725.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeGuard

from jose import jwt
from jose.exceptions import JWTClaimsError

from policy.errors import FactRefused, TokenRefused
from policy.facts import Person, group_id
from policy.identity.keys import JwkSet
from policy.jws import SUPPORTED_ALGORITHMS, UnverifiedToken, VerificationKey, encode_base64url, jose_key, parse_strict

MAX_TEXT: Final = 255  # OpenID Connect Core, section 2: `sub` has at most 255 characters
MAX_GROUPS: Final = 1000
MAX_AUDIENCES: Final = 16
MAX_ACTORS: Final = 4  # nested in `act`
# Times are ours (`_check_times`): the library reads the system clock, and takes "1" for 1. So is presence: the
# library's `require_exp` would switch its own clock on again.
_JOSE_OPTIONS: Final[Mapping[str, bool]] = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
# Entra's ways of saying "more groups than fit": a pointer instead of the list. It is never followed.
_OVERAGE_MEMBERS: Final = ("_claim_names", "_claim_sources")


@dataclass(frozen=True, slots=True)
class IssuerSettings:
    """What the operator says of one issuer.

    `token_types`: accepted `typ`, lower case, without "application/"; "" accepts a token without one. `group_cap`: a
    list of that many groups or more may be cut short. `party_claims`: where the issuer names the client that it gave
    the token to; `authorized_parties`: accepted ones; None: any. `required_claims`: claims that have just this text.
    `required_amr`: all of them; `accepted_acr`: one of them. `service_groups`: by subject, the groups of a service
    whose tokens name none. `sender_constraint`: must tokens be bound to the client certificate that they come with
    (RFC 8705)? A bound one must match in any case. `accepted_actors`: who may act for a person (`act`, RFC 8693):
    subjects of this issuer, or `<issuer>#<subject>`; a token with any other actor is refused. `account_claim`: which
    claim names the account where groups come from Active Directory.
    `authenticated_by` is what records say of a person; of a service `<that>-client`.
    """

    issuer: str
    audience: str
    algorithms: frozenset[str] = frozenset({"RS256", "ES256"})
    token_types: frozenset[str] = frozenset({"at+jwt"})
    leeway_seconds: int = 30
    max_lifetime_seconds: int = 24 * 3600
    groups_claim: str = "groups"
    group_cap: int = 100
    name_claim: str = "name"
    party_claims: tuple[str, ...] = ("azp", "client_id")
    authorized_parties: frozenset[str] | None = None
    required_claims: Mapping[str, str] = field(default_factory=dict)
    accepted_acr: frozenset[str] | None = None
    required_amr: frozenset[str] = frozenset()
    service_groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    authenticated_by: str = "oidc"
    account_claim: str | None = None
    sender_constraint: Literal["optional", "required"] = "optional"
    accepted_actors: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """A bad setting fails at start (ValueError, the operator), not at the first request."""
        if not self.algorithms or not self.algorithms <= SUPPORTED_ALGORITHMS:
            raise ValueError(f"algorithms must be among {', '.join(sorted(SUPPORTED_ALGORITHMS))}")
        if len(self.issuer) > MAX_TEXT or any(character in self.issuer for character in "? "):
            raise ValueError(f"issuer must have at most {MAX_TEXT} characters, and no '?' or space")
        try:
            for subject, groups in {"probe": frozenset[str](), **self.service_groups}.items():
                known = frozenset(group_id(self.issuer, group) for group in groups)
                Person(f"{self.issuer}#{subject}", self.issuer, "probe", known, f"{self.authenticated_by}-client")
        except FactRefused as error:
            raise ValueError(str(error)) from error
        if not self.audience or not self.token_types:
            raise ValueError("audience and token_types must not be empty")
        if not self.party_claims:
            raise ValueError("party_claims must not be empty")
        if not 0 <= self.leeway_seconds <= 300 or self.max_lifetime_seconds <= 0:
            raise ValueError("leeway_seconds must be 0 to 300 and max_lifetime_seconds positive")
        if not 1 <= self.group_cap <= MAX_GROUPS:
            raise ValueError(f"group_cap must be 1 to {MAX_GROUPS}")


@dataclass(frozen=True, slots=True)
class TokenVerifier:
    """One issuer's settings and its keys at this moment."""

    settings: IssuerSettings
    keys: JwkSet

    def verify(self, token: str, now: int, certificate: bytes | None = None) -> Person:
        """The person whom the token speaks of, `now` in unix seconds. Raises TokenRefused.

        `certificate`: the client certificate (DER) of the connection that it came by, which TLS has verified.
        """
        settings = self.settings
        parsed = parse_strict(token, algorithms=settings.algorithms)
        key = self.keys.key_for(parsed)
        _check_with_jose(parsed, key, settings)
        claims = parsed.claims
        _check_type(parsed.header.get("typ"), settings)
        _check_registered(claims, settings)
        _check_times(claims, settings, now)
        _check_authorized_party(claims, settings)
        _check_kind(claims, settings)
        _check_sender(claims, settings, certificate)
        _check_authentication(claims, settings)
        return _person(claims, settings)


def unverified_issuer(token: str) -> str:
    """Which issuer a token claims, only to choose whose verifier may judge it. Raises TokenRefused."""
    issuer = parse_strict(token, algorithms=SUPPORTED_ALGORITHMS).claims.get("iss")
    if not _is_text(issuer):
        raise TokenRefused("issuer", "no iss, or not short printable text")
    return issuer


def _check_with_jose(token: UnverifiedToken, key: VerificationKey, settings: IssuerSettings) -> None:
    prepared = jose_key(token, key)
    try:
        claims = jwt.decode(
            token.token,
            prepared,
            [token.algorithm],
            options=_JOSE_OPTIONS,
            audience=settings.audience,
            issuer=settings.issuer,
        )
    except JWTClaimsError as error:
        _check_registered(token.claims, settings)  # names the claim, in our words
        raise TokenRefused("claims", "python-jose refuses a claim (jti, at_hash)") from error
    except Exception as error:  # python-jose raises far more than JOSEError; each is a refusal
        raise TokenRefused("signature", "the signature does not verify") from error
    if claims != token.claims:
        raise TokenRefused("signature", "python-jose read other claims than we did")


def _check_type(token_type: str | None, settings: IssuerSettings) -> None:
    """RFC 8725 section 3.11: an id token, a permit or a logout token of the same issuer is no access token."""
    if token_type == "" or (token_type or "").lower().removeprefix("application/") not in settings.token_types:
        accepted = " or ".join(sorted(name or "left out" for name in settings.token_types))
        raise TokenRefused("type", f"typ is not {accepted}")


def _check_registered(claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    if claims.get("iss") != settings.issuer:
        raise TokenRefused("issuer", "no iss, or not the configured issuer")
    audience = claims.get("aud")
    audiences = audience if isinstance(audience, list) else [audience]
    if len(audiences) > MAX_AUDIENCES or not all(isinstance(name, str) for name in audiences):
        raise TokenRefused("audience", "no aud, or neither text nor a short list of texts")
    if settings.audience not in audiences:
        raise TokenRefused("audience", "for another audience")
    if not _is_text(claims.get("sub")):
        raise TokenRefused("subject", f"no sub, or not printable text of at most {MAX_TEXT} characters")


def _check_times(claims: Mapping[str, Any], settings: IssuerSettings, now: int) -> None:
    expires, issued = _seconds(claims, "exp"), _seconds(claims, "iat")
    leeway = settings.leeway_seconds
    if now >= expires + leeway:
        raise TokenRefused("times", "expired: log in again")
    if issued > now + leeway:
        raise TokenRefused("times", "issued in the future: compare the clocks of gateway and issuer")
    if "nbf" in claims and _seconds(claims, "nbf") > now + leeway:
        raise TokenRefused("times", "not yet valid")
    if not issued <= expires <= issued + settings.max_lifetime_seconds:
        raise TokenRefused("lifetime", f"exp is not within {settings.max_lifetime_seconds} s of iat")


def _seconds(claims: Mapping[str, Any], name: str) -> int:
    """`type(...) is int`, because True is an int to isinstance and "1" one to python-jose."""
    value = claims.get(name)
    if type(value) is not int or not 0 <= value < 2**40:
        raise TokenRefused("times", f"{name} is missing or not a whole number of seconds")
    return value


def _check_authorized_party(claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    """To which client the token was given: `azp`, or `client_id` (RFC 9068); both, if both are there."""
    parties = _parties(claims, settings)
    names = " and ".join(settings.party_claims)
    if not all(_is_text(party) for party in parties) or len(set(parties)) > 1:
        raise TokenRefused("authorized-party", f"{names}: not text, or they differ")
    if settings.authorized_parties is not None and not (parties and parties[0] in settings.authorized_parties):
        raise TokenRefused("authorized-party", "given to a client that is not on the list")
    if isinstance(claims["aud"], list) and len(claims["aud"]) > 1 and not parties:
        raise TokenRefused("authorized-party", f"several audiences, but none of {names}")


def _parties(claims: Mapping[str, Any], settings: IssuerSettings) -> list[Any]:
    return [claims[name] for name in settings.party_claims if name in claims]


def _check_kind(claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    """Another kind of token of the same issuer, told apart by a claim."""
    for name, value in settings.required_claims.items():
        if claims.get(name) != value:
            raise TokenRefused("claims", f"the claim {name} is not {value}")


def _check_sender(claims: Mapping[str, Any], settings: IssuerSettings, certificate: bytes | None) -> None:
    """RFC 8705, section 3: stolen, a bound token must be of no use without the certificate's key."""
    if "cnf" not in claims:
        if settings.sender_constraint == "required":
            raise TokenRefused("sender", "not bound to a client certificate, which this issuer's tokens must be")
        return
    bound = claims["cnf"]
    # Bound in another way as well (jkt, jwk), it would be for a key that nobody shows us.
    if not isinstance(bound, dict) or set(bound) != {"x5t#S256"} or not isinstance(bound["x5t#S256"], str):
        raise TokenRefused("sender", "bound to a key (cnf) in another way than by a client certificate")
    if certificate is None:
        raise TokenRefused("sender", "bound to a client certificate, and sent without one")
    shown = encode_base64url(hashlib.sha256(certificate).digest())
    if not hmac.compare_digest(shown.encode(), bound["x5t#S256"].encode()):
        raise TokenRefused("sender", "bound to another client certificate")


def _actors(claims: Mapping[str, Any], settings: IssuerSettings) -> tuple[str, ...]:
    """Who acts for the subject, then who acted before (RFC 8693, section 4.1), as ids. Raises TokenRefused."""
    actors: list[str] = []
    act = claims.get("act")
    while act is not None:
        if len(actors) == MAX_ACTORS or not isinstance(act, dict):
            raise TokenRefused("actor", f"act is no object, or nested more than {MAX_ACTORS} deep")
        subject, issuer = act.get("sub"), act.get("iss", settings.issuer)
        if not _is_text(subject) or not _is_text(issuer) or "#" in issuer:
            raise TokenRefused("actor", "act without a sub, or with an iss that is no issuer")
        actors.append(f"{issuer}#{subject}")
        act = act.get("act")
    if "act" in claims:
        ours = {name if "#" in name else f"{settings.issuer}#{name}" for name in settings.accepted_actors}
        if not actors or actors[0] not in ours:
            # Ignored, the token would be the person's own: they did not ask themself.
            raise TokenRefused("actor", "somebody acts for the person who is not among `accepted_actors`")
    return tuple(actors)


def _check_authentication(claims: Mapping[str, Any], settings: IssuerSettings) -> None:
    """How the person proved who they are: RFC 9470 (`acr`), RFC 8176 (`amr`)."""
    if settings.accepted_acr is not None:
        acr = claims.get("acr")
        if not isinstance(acr, str) or acr not in settings.accepted_acr:
            raise TokenRefused("authentication", "acr is not accepted: log in with a stronger method")
    if settings.required_amr:
        amr = claims.get("amr")
        if not isinstance(amr, list) or not all(isinstance(method, str) for method in amr):
            raise TokenRefused("authentication", "no amr, or not a list of texts")
        if not settings.required_amr <= set(amr):
            raise TokenRefused("authentication", "amr lacks a method: log in with all required factors")


def _person(claims: Mapping[str, Any], settings: IssuerSettings) -> Person:
    name, subject = claims.get(settings.name_claim), claims["sub"]
    account = claims.get(settings.account_claim) if settings.account_claim else None
    # RFC 9068 section 2.2: without a person (client credentials) the subject is the client itself.
    actor, *before = _actors(claims, settings) or (None,)
    is_service = subject in settings.service_groups or subject in _parties(claims, settings)
    return Person(
        id=f"{settings.issuer}#{subject}",
        issuer=settings.issuer,
        name=name if _is_text(name) else subject,
        groups=_groups(claims, settings),
        authenticated_by=f"{settings.authenticated_by}-client" if is_service else settings.authenticated_by,
        is_program=is_service,
        told_until=claims["exp"],
        account=account if _is_text(account) else None,
        actor=actor,
        prior_actors=tuple(each for each in before if each is not None),
    )


def why_groups_unknown(claims: Mapping[str, Any], settings: IssuerSettings) -> str | None:
    """Why the token does not tell all groups of its subject; None if it does. Unknown is never empty: a `forbid`
    for a group must not be escaped by being in so many groups that the list is left out.
    """
    if any(member in claims for member in _OVERAGE_MEMBERS) or claims.get("hasgroups", False) is not False:
        return "the issuer left the groups out because they are too many, and a pointer in a token is never followed"
    if settings.groups_claim not in claims:
        return None if claims.get("sub") in settings.service_groups else f"no claim {settings.groups_claim}"
    groups = claims[settings.groups_claim]
    if isinstance(groups, list) and len(groups) >= settings.group_cap:
        return f"the issuer may cut lists of {settings.group_cap} groups or more short"
    return None


def _groups(claims: Mapping[str, Any], settings: IssuerSettings) -> frozenset[str] | None:
    """Group ids `<issuer>#<name>`; None where the token does not tell all of them."""
    groups = claims.get(settings.groups_claim, [])
    if not isinstance(groups, list) or not all(_is_text(group) for group in groups):
        raise TokenRefused("groups", "the groups claim is not a list of short printable texts")
    if why_groups_unknown(claims, settings) is not None:
        return None
    named = groups if settings.groups_claim in claims else settings.service_groups[claims["sub"]]
    return frozenset(group_id(settings.issuer, group) for group in named)


def _is_text(value: Any) -> TypeGuard[str]:
    """Printable, so that a name cannot forge a line of a log or of a terminal."""
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable()
