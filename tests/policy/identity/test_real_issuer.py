"""Access tokens, discovery and keys of a real provider (npm oidc-provider), fetched over HTTPS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwk, jwt

from policy.errors import IssuerUnavailable, TokenRefused
from policy.facts import Person
from policy.identity.jwks import FetchLimits, IssuerKeys, fetch_keys, https_client
from policy.identity.oidc import IssuerSettings, TokenVerifier, why_groups_unknown
from tests.oidc_provider.process import AUDIENCE, CLIENT, Provider, claims_of, provider

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with provider(tmp_path_factory.mktemp("issuer")) as it:
        yield it


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with provider(tmp_path_factory.mktemp("other")) as it:
        yield it


def now() -> int:
    return int(time.time())


async def verify(issuer: Provider, token: str, **rules: Any) -> Person:
    """As the gateway does, with keys that are fetched for this token."""
    async with https_client(str(issuer.ca)) as client:
        settings = replace(IssuerSettings(issuer.issuer, AUDIENCE), **rules)
        return await IssuerKeys(settings, client).verify(token, now())


async def refused(issuer: Provider, token: str, **rules: Any) -> str:
    with pytest.raises(TokenRefused) as caught:
        await verify(issuer, token, **rules)
    return caught.value.check


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_a_token_of_either_algorithm_becomes_a_person(issuer: Provider, algorithm: str) -> None:
    token = issuer.token({"groups": ["operators", "night"], "name": "Nova"}, alg=algorithm)
    person = await verify(issuer, token)
    assert person == Person(
        f"{issuer.issuer}#{CLIENT}",
        issuer.issuer,
        "Nova",
        frozenset({f"{issuer.issuer}#operators", f"{issuer.issuer}#night"}),
        "oidc-client",
        is_program=True,
    )


async def test_another_library_reads_the_token_alike(issuer: Provider) -> None:
    token = issuer.token()
    async with https_client(str(issuer.ca)) as client:
        answer = await client.get(f"{issuer.issuer}/jwks")
    seen = jwt.decode(token, jwk.KeySet.import_key_set(answer.json()), algorithms=["ES256"])
    assert (await verify(issuer, token)).id == f"{seen.claims['iss']}#{seen.claims['sub']}"


@pytest.mark.parametrize("algorithm", ["ES384", "EdDSA"])
async def test_an_algorithm_that_is_not_on_the_list_is_refused(issuer: Provider, algorithm: str) -> None:
    assert await refused(issuer, issuer.token(alg=algorithm)) == "algorithm"


async def test_keys_that_cannot_be_used_stand_beside_good_ones(issuer: Provider) -> None:
    async with https_client(str(issuer.ca)) as client:
        keys = await fetch_keys(client, issuer.issuer)
    unusable = {name.rpartition("-")[0] for name, found in keys.keys.items() if isinstance(found[0], str)}
    assert unusable == {"EdDSA", "RSA-OAEP"}
    assert {name.rpartition("-")[0] for name in keys.keys} - unusable == {"ES256", "RS256", "ES384"}


async def test_new_keys_are_found_without_a_restart_and_withdrawn_ones_end(tmp_path: Path) -> None:
    clock = [1000.0]
    limits = FetchLimits(minimum_interval_seconds=30, refresh_seconds=3600, maximum_age_seconds=7200)
    with provider(tmp_path / "rotating") as issuer:
        async with https_client(str(issuer.ca)) as client:
            keys = IssuerKeys(IssuerSettings(issuer.issuer, AUDIENCE), client, limits, lambda: clock[0])
            first = issuer.token()
            await keys.verify(first, now())
            issuer.tell("rotate", keep=True)
            second = issuer.token()
            with pytest.raises(TokenRefused):  # asked a moment ago: not again for every made-up kid
                await keys.verify(second, now())
            clock[0] += 31
            await keys.verify(second, now())
            await keys.verify(first, now())  # the provider still publishes the old key
            issuer.tell("rotate", keep=False)
            clock[0] += 31
            await keys.verify(issuer.token(), now())
            for gone in (first, second):
                with pytest.raises(TokenRefused, match="key"):
                    await keys.verify(gone, now())


async def test_an_issuer_that_is_down_is_lived_with_until_its_keys_are_too_old(tmp_path: Path) -> None:
    clock = [1000.0]
    limits = FetchLimits(deadline_seconds=2, minimum_interval_seconds=30, refresh_seconds=600, maximum_age_seconds=3600)
    with provider(tmp_path / "failing") as issuer:
        async with https_client(str(issuer.ca)) as client:
            settings = IssuerSettings(issuer.issuer, AUDIENCE)
            keys = IssuerKeys(settings, client, limits, lambda: clock[0])
            token = issuer.token()
            await keys.verify(token, now())
            issuer.process.kill()
            issuer.process.wait(10)
            clock[0] += 601
            await keys.verify(token, now())
            assert keys.last_failure is not None
            clock[0] += 3600
            with pytest.raises(IssuerUnavailable, match="cannot be reached"):
                await keys.verify(token, now())
            with pytest.raises(IssuerUnavailable):
                await IssuerKeys(settings, client).verify(token, now())


async def test_a_provider_whose_certificate_is_not_of_the_trust_bundle_gives_no_keys(
    issuer: Provider, other: Provider
) -> None:
    async with https_client(str(other.ca)) as client:
        with pytest.raises(IssuerUnavailable, match="certificate"):
            await fetch_keys(client, issuer.issuer)


async def test_a_provider_under_another_name_is_a_mix_up(issuer: Provider) -> None:
    async with https_client(str(issuer.ca)) as client:
        with pytest.raises(IssuerUnavailable, match="another issuer"):
            await fetch_keys(client, issuer.issuer.replace("127.0.0.1", "localhost"))


async def test_a_token_of_one_issuer_is_nothing_to_another(issuer: Provider, other: Provider) -> None:
    """Both name their keys alike, as two instances of one product may."""
    assert await refused(issuer, other.token()) in {"key", "signature"}
    async with https_client(str(other.ca)) as client:
        keys = await fetch_keys(client, other.issuer)
    with pytest.raises(TokenRefused) as caught:
        TokenVerifier(IssuerSettings(issuer.issuer, AUDIENCE), keys).verify(other.token(), now())
    assert caught.value.check == "issuer"


async def test_a_token_for_another_audience_is_refused(issuer: Provider) -> None:
    assert await refused(issuer, issuer.token(audience="https://payroll.example")) == "audience"


async def test_only_clients_on_the_list_are_served(issuer: Provider) -> None:
    token = issuer.token()
    await verify(issuer, token, authorized_parties=frozenset({CLIENT}))
    assert await refused(issuer, token, authorized_parties=frozenset({"sealane-cli"})) == "authorized-party"
    assert await refused(issuer, issuer.token({"azp": "sealane-cli"})) == "authorized-party"


async def test_a_token_that_lives_too_long_is_refused(issuer: Provider) -> None:
    assert await refused(issuer, issuer.token(seconds=3601), max_lifetime_seconds=3600) == "lifetime"
    await verify(issuer, issuer.token(seconds=3600), max_lifetime_seconds=3600)


async def test_a_token_that_has_run_out_is_refused(issuer: Provider) -> None:
    token = issuer.token(seconds=60)
    async with https_client(str(issuer.ca)) as client:
        keys = IssuerKeys(IssuerSettings(issuer.issuer, AUDIENCE), client)
        with pytest.raises(TokenRefused, match="expired"):
            await keys.verify(token, now() + 120)


async def test_acr_and_amr_are_demanded_where_the_issuer_has_such_a_rule(issuer: Provider) -> None:
    rules = {"accepted_acr": frozenset({"phr"}), "required_amr": frozenset({"hwk", "pin"})}
    await verify(issuer, issuer.token({"acr": "phr", "amr": ["pin", "hwk", "user"]}), **rules)
    for claims in ({"acr": "phr", "amr": ["pwd"]}, {"acr": "1", "amr": ["hwk", "pin"]}, {"acr": "phr"}, {}):
        assert await refused(issuer, issuer.token(claims), **rules) == "authentication"


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"groups": [f"g{number}" for number in range(100)]},
        {"_claim_names": {"groups": "src1"}, "_claim_sources": {"src1": {"endpoint": "https://127.0.0.1:1/steal"}}},
        {"groups": ["operators"], "_claim_names": {"groups": "src1"}},
        {"hasgroups": True},
    ],
)
async def test_groups_that_the_token_does_not_tell_whole_are_unknown(issuer: Provider, claims: dict[str, Any]) -> None:
    token = issuer.token(claims)
    assert (await verify(issuer, token)).groups is None
    assert why_groups_unknown(claims_of(token), IssuerSettings(issuer.issuer, AUDIENCE)) is not None


async def test_the_groups_claim_has_the_name_that_the_issuer_gives_it(issuer: Provider) -> None:
    token = issuer.token({"groups": ["wrong"], "https://corp.example/roles": ["movers"]})
    person = await verify(issuer, token, groups_claim="https://corp.example/roles")
    assert person.groups == frozenset({f"{issuer.issuer}#movers"})
    assert await refused(issuer, issuer.token({"groups": "operators"})) == "groups"


async def test_a_service_without_groups_in_its_token_has_those_of_the_configuration(issuer: Provider) -> None:
    rules = {"service_groups": {CLIENT: frozenset({"orchestrators"})}}
    person = await verify(issuer, issuer.token({}), **rules)
    assert person.groups == frozenset({f"{issuer.issuer}#orchestrators"})
    # What the issuer says wins, and that it does not say all stays unknown.
    assert (await verify(issuer, issuer.token({"groups": []}), **rules)).groups == frozenset()
    assert (await verify(issuer, issuer.token({"hasgroups": True}), **rules)).groups is None


async def test_a_token_that_is_bound_to_a_key_is_no_bearer_token(issuer: Provider) -> None:
    assert await refused(issuer, issuer.token({"cnf": {"x5t#S256": "A" * 43}})) == "sender"


async def test_a_claim_tells_kinds_of_tokens_apart_where_typ_does_not(issuer: Provider) -> None:
    rules = {"required_claims": {"typ": "Bearer"}}
    await verify(issuer, issuer.token({"typ": "Bearer"}), **rules)
    assert await refused(issuer, issuer.token({"typ": "ID"}), **rules) == "claims"
    assert await refused(issuer, issuer.token({"typ": ["Bearer"]}), **rules) == "claims"
    assert await refused(issuer, issuer.token(), token_types=frozenset({"jwt"})) == "type"
