"""Outside issuers as the operator describes them: `[[identity.issuers]]`, presets, and what may be told to anybody.

A preset is nothing but defaults for the keys of the table, for providers whose tokens differ from RFC 9068. What is
written in the table wins over its preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from policy.facts import Person
from policy.identity.oidc import IssuerSettings, why_groups_unknown
from policy.jws import SUPPORTED_ALGORITHMS, parse_strict

Text = Annotated[str, Meta(min_length=1, max_length=255)]
Texts = Annotated[tuple[Text, ...], Meta(max_length=100)]


class LoginTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How `sealane login` gets a token there. Public: `client_id` names a client without a secret.

    `resource` (RFC 8707) and `scopes` are what makes the issuer give a JWT for our audience.
    """

    client_id: Text
    scopes: Texts = ("openid",)
    resource: Text | None = None


class IssuerTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One OpenID provider; the meaning of each key is that of `policy.identity.oidc.IssuerSettings`.

    `jwks_file` pins its keys in a file instead of fetching them; `trust_bundle` (PEM) is what verifies its TLS
    certificate, by default what the system trusts. `groups`: what the token says, or what Active Directory says of the
    account whose `account_attribute` is the text of the token's `account_claim`.
    """

    issuer: Text
    audience: Text
    preset: Literal["okta", "entra", "keycloak"] | None = None
    jwks_file: Text | None = None
    trust_bundle: Text | None = None
    login: LoginTable | None = None
    groups: Literal["token", "active-directory"] = "token"
    account_attribute: Literal["userPrincipalName", "sAMAccountName", "objectSid", "objectGUID"] = "userPrincipalName"
    account_claim: Text | UnsetType = UNSET
    algorithms: Texts | UnsetType = UNSET
    token_types: tuple[Annotated[str, Meta(max_length=255)], ...] | UnsetType = UNSET
    leeway_seconds: int | UnsetType = UNSET
    max_lifetime_seconds: Annotated[int, Meta(ge=1, le=7 * 86_400)] | UnsetType = UNSET
    groups_claim: Text | UnsetType = UNSET
    group_cap: int | UnsetType = UNSET
    name_claim: Text | UnsetType = UNSET
    party_claims: Texts | UnsetType = UNSET
    authorized_parties: Texts | UnsetType = UNSET
    required_claims: dict[Text, Text] | UnsetType = UNSET
    accepted_acr: Texts | UnsetType = UNSET
    required_amr: Texts | UnsetType = UNSET
    service_groups: dict[Text, Texts] | UnsetType = UNSET
    sender_constraint: Literal["optional", "required"] | UnsetType = UNSET
    accepted_actors: Texts | UnsetType = UNSET


# Each line is explained in docs/identity.md. Audience and, where a preset needs them, parties are the operator's.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "okta": {"algorithms": ("RS256",), "token_types": ("", "jwt"), "party_claims": ("cid",), "group_cap": 100},
    "entra": {"algorithms": ("RS256",), "token_types": ("jwt",), "required_claims": {"ver": "2.0"}, "group_cap": 201},
    "keycloak": {
        "algorithms": ("RS256", "ES256"),
        "token_types": ("jwt", "at+jwt"),
        "required_claims": {"typ": "Bearer"},
        "name_claim": "preferred_username",
        "group_cap": 1000,
    },
}
_FROZEN_SETS: Final = (
    "algorithms",
    "token_types",
    "authorized_parties",
    "accepted_acr",
    "required_amr",
    "accepted_actors",
)
_NOT_SETTINGS: Final = ("preset", "jwks_file", "trust_bundle", "login", "groups", "account_attribute")


def settings_of(table: IssuerTable) -> IssuerSettings:
    """The rules for its tokens. ValueError (the operator) says what to correct."""
    written = {
        name: value
        for name in table.__struct_fields__
        if name not in _NOT_SETTINGS and (value := getattr(table, name)) is not UNSET
    }
    rules = {**(PRESETS[table.preset] if table.preset else {}), **written}
    if "token_types" in rules:
        rules["token_types"] = tuple(name.lower().removeprefix("application/") for name in rules["token_types"])
    if "" in rules.get("token_types", ()) or "jwt" in rules.get("token_types", ()):
        _require_a_difference(rules)
    for name in _FROZEN_SETS:
        if name in rules:
            rules[name] = frozenset(rules[name])
    if (table.groups == "active-directory") != ("account_claim" in rules):
        raise ValueError('groups = "active-directory" and account_claim need each other')
    if "service_groups" in rules:
        rules["service_groups"] = {name: frozenset(groups) for name, groups in rules["service_groups"].items()}
    return IssuerSettings(**rules)


def _require_a_difference(rules: Mapping[str, Any]) -> None:
    """Where `typ` does not tell an access token from an id token, something else must: RFC 8725, section 3.12."""
    if not rules.get("authorized_parties") and set(rules.get("required_claims", ())) <= {"ver"}:
        raise ValueError(
            "id tokens would pass for access tokens: set authorized_parties (or required_claims), "
            "or let the issuer write typ at+jwt"
        )


class Issuers:
    """What the gateway tells of its issuers, and of a token that it has verified."""

    def __init__(self, tables: tuple[IssuerTable, ...], *, has_local_people: bool) -> None:
        self._tables = tables
        self._settings = {table.issuer: settings_of(table) for table in tables}
        self._has_local_people = has_local_people

    def public_document(self) -> dict[str, Any]:
        """For anybody: where to sign in. No secret, no rule that a forger would like to know."""
        issuers = [
            {"issuer": table.issuer, **msgspec.to_builtins(table.login)} for table in self._tables if table.login
        ]
        return {"local": self._has_local_people, "issuers": issuers}

    def token_facts(self, person: Person, bearer: str | None) -> dict[str, Any]:
        """Until when the verified token of `person` is good, where their groups are from, and why they are unknown."""
        if bearer is None:  # a certificate
            return {"groups_from": "the gateway's configuration, [[identity.services]]"}
        claims = parse_strict(bearer, algorithms=SUPPORTED_ALGORITHMS).claims
        settings = self._settings.get(person.issuer)
        because = why_groups_unknown(claims, settings) if settings is not None and person.groups is None else None
        if person.directory is not None:
            because = person.directory.problem
        return {
            "expires_at": claims.get("exp"),
            "groups_from": _groups_from(person, claims, settings),
            "groups_unknown_because": because,
        }


def _groups_from(person: Person, claims: Mapping[str, Any], settings: IssuerSettings | None) -> str:
    """In words, for the person: who to ask for another group."""
    if (found := person.directory) is not None:
        if found.account is None:
            return "Active Directory"
        age = (found.groups_age_ms or 0) // 1000
        return f"Active Directory, account {found.account} ({found.account_sid}), read {age} s ago"
    if settings is None:
        return "the sealed file" if person.authenticated_by == "sealed" else "the gateway's file of people"
    if settings.groups_claim not in claims and claims.get("sub") in settings.service_groups:
        return "the gateway's configuration, service_groups"
    return f"the token, claim {settings.groups_claim}"
