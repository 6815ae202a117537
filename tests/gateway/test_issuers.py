"""`[[identity.issuers]]`: what each key does, what a preset stands for, and what is refused at start."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway.config import parse
from gateway.errors import ConfigRefused
from gateway.issuers import PRESETS, Issuers, IssuerTable, LoginTable, settings_of
from policy.facts import Person
from policy.identity.oidc import IssuerSettings
from tests.gateway.test_config import FILE, GOOD

ISSUER, AUDIENCE = "https://login.corp.test", "https://sealane.corp.test"


def table(**keys: Any) -> IssuerTable:
    return IssuerTable(issuer=ISSUER, audience=AUDIENCE, **keys)


def configured(*lines: str) -> str:
    text = "\n".join([GOOD, "[[identity.issuers]]", f'issuer = "{ISSUER}"', f'audience = "{AUDIENCE}"', *lines])
    return repr(parse(text.encode(), FILE).identity.issuers[0])


def test_an_issuer_with_two_keys_has_the_rules_of_rfc_9068() -> None:
    assert settings_of(table()) == IssuerSettings(ISSUER, AUDIENCE)


def test_each_key_of_the_table_is_a_rule_for_its_tokens() -> None:
    settings = settings_of(
        table(
            algorithms=("ES256",),
            token_types=("at+jwt",),
            leeway_seconds=5,
            max_lifetime_seconds=600,
            groups_claim="roles",
            group_cap=50,
            name_claim="preferred_username",
            party_claims=("cid",),
            authorized_parties=("cli",),
            required_claims={"ver": "2.0"},
            accepted_acr=("phr",),
            required_amr=("hwk",),
            service_groups={"nova": ("orchestrators",)},
        )
    )
    assert settings == IssuerSettings(
        ISSUER,
        AUDIENCE,
        algorithms=frozenset({"ES256"}),
        leeway_seconds=5,
        max_lifetime_seconds=600,
        groups_claim="roles",
        group_cap=50,
        name_claim="preferred_username",
        party_claims=("cid",),
        authorized_parties=frozenset({"cli"}),
        required_claims={"ver": "2.0"},
        accepted_acr=frozenset({"phr"}),
        required_amr=frozenset({"hwk"}),
        service_groups={"nova": frozenset({"orchestrators"})},
    )


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_defaults_over_which_the_table_wins(name: Any) -> None:
    settings = settings_of(table(preset=name, authorized_parties=("cli",)))
    assert all(getattr(settings, key) in (value, _set(value)) for key, value in PRESETS[name].items())
    assert settings_of(table(preset=name, authorized_parties=("cli",), group_cap=7)).group_cap == 7


def _set(value: Any) -> Any:
    return frozenset(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", ["okta", "entra"])
def test_a_preset_whose_id_tokens_look_like_access_tokens_needs_the_clients(name: Any) -> None:
    with pytest.raises(ValueError, match="id tokens would pass for access tokens"):
        settings_of(table(preset=name))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('token_types = ["JWT"]', "id tokens would pass"),
        ('token_types = [""]', "id tokens would pass"),
        ('algorithms = ["HS256"]', "algorithms must be among"),
        ('algorithms = ["PS256"]', "algorithms must be among"),
        ("group_cap = 0", "group_cap must be"),
        ("token_types = []", "token_types must not be empty"),
        ("party_claims = []", "party_claims must not be empty"),
        ("leeway_seconds = 3600", "leeway_seconds must be"),
        ("max_lifetime_seconds = 0", "max_lifetime_seconds"),
        ('preset = "auth0"', "preset"),
        ('groups_clam = "groups"', "groups_clam"),
        ('login = { client_id = "cli", client_secret = "s" }', "client_secret"),
        ('service_groups = { "no\\nva" = ["x"] }', "person's id"),
    ],
)
def test_a_bad_rule_is_refused_at_start(line: str, what: str) -> None:
    with pytest.raises(ConfigRefused, match=what):
        configured(line)


def test_two_issuers_have_rules_of_their_own() -> None:
    other = '[[identity.issuers]]\nissuer = "https://sso.two.test"\naudience = "two"\nrequired_amr = ["hwk"]'
    text = f'{GOOD}\n[[identity.issuers]]\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n{other}'
    one, two = (settings_of(found) for found in parse(text.encode(), FILE).identity.issuers)
    assert (one.required_amr, two.required_amr) == (frozenset(), frozenset({"hwk"}))


def test_what_anybody_is_told_holds_no_rule_and_no_issuer_without_a_login() -> None:
    login = LoginTable(client_id="cli", scopes=("openid", "groups"), resource=AUDIENCE)
    tables = (table(login=login, authorized_parties=("cli",)), IssuerTable(issuer="https://m2m.test", audience="x"))
    told = json.loads(msgspec.json.encode(Issuers(tables, has_local_people=False).public_document()))
    offered = {"issuer": ISSUER, "client_id": "cli", "scopes": ["openid", "groups"], "resource": AUDIENCE}
    assert told == {"local": False, "issuers": [offered]}


def test_who_comes_by_a_certificate_has_no_facts_of_a_token() -> None:
    nova = Person("spiffe://td/service/nova", "spiffe://td", "nova", frozenset(), "client-certificate")
    facts = Issuers((table(),), has_local_people=True).token_facts(nova, None)
    assert facts == {"groups_from": "the gateway's configuration, [[identity.services]]"}
