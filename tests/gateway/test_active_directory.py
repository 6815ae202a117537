"""A gateway whose people's groups are those of a real Samba Active Directory: decisions, and what their records say."""

from __future__ import annotations

import base64
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import gateway.config as configuration
from gateway.errors import ConfigRefused
from gateway.starter import Site
from policy.engine import replay
from policy.identity.keys import JwkSet
from policy.jws import key_id_of, sign
from policy.many_groups import digest_of_ids, expand_entities
from tests.gateway.active_directory_site import add_active_directory
from tests.gateway.conftest import Running, running_gateway
from tests.policy.identity.samba_ad import (
    REALM,
    SERVICE_PASSWORD,
    USERS,
    Domain,
    add_group,
    add_user,
    change,
    seeded_domain,
    sid_of,
    start_domain,
)

pytestmark = pytest.mark.real

ISSUER = "https://login.corp.example.test"
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    with start_domain(seeded_domain(tmp_path_factory), tmp_path_factory.mktemp("domain")) as running:
        yield running


@pytest.fixture(scope="module")
def operators(domain: Domain) -> str:
    """The SID of the group that the policy names; oscar and dora are in it."""
    with domain.controllers[0].administrator() as administrator:
        members = [add_user(administrator, name) for name in ("oscar", "dora", "eve")]
        return sid_of(administrator, add_group(administrator, "vm-operators", members))


@pytest.fixture
def ad_site(site: Site, domain: Domain, operators: str) -> Site:
    """The example site, with groups from Active Directory for the people of one issuer."""
    (site.directory / "jwks.json").write_bytes(jwks())
    add_active_directory(site, domain, ISSUER)
    rename_group(site.directory, "sealane-local#operators", operators)
    return site


def rename_group(folder: Path, old: str, new: str) -> None:
    """In the site's own copy of the bundle."""
    config = configuration.load(folder / "gateway.toml")
    bundle = config.path(config.policy.bundle)
    if not bundle.is_relative_to(folder):
        shutil.copytree(bundle, folder / "bundle")
        bundle = folder / "bundle"
    changed = 0
    for file in [each for kind in ("cedar", "toml", "yaml") for each in bundle.rglob(f"*.{kind}")]:
        text = file.read_text(encoding="utf-8")
        changed += text.count(old)
        file.write_text(text.replace(old, new), encoding="utf-8")
    assert changed


def jwks() -> bytes:
    numbers = KEY.public_key().public_numbers()
    key = {
        "kty": "EC",
        "crv": "P-256",
        "alg": "ES256",
        "use": "sig",
        "kid": key_id_of(KEY.public_key()),
        "x": base64url(numbers.x),
        "y": base64url(numbers.y),
    }
    data = msgspec.json.encode({"keys": [key]})
    assert JwkSet.parse(data).keys
    return data


def base64url(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()


def token(name: str, **claims: Any) -> str:
    now = int(datetime.now(UTC).timestamp())
    document = {
        "iss": ISSUER,
        "aud": "sealane",
        "sub": f"sub-{name}",
        "upn": f"{name}@{REALM}",
        "groups": ["made-up"],
        "iat": now,
        "exp": now + 600,
        **claims,
    }
    return sign(msgspec.json.encode(document), KEY, key_id=key_id_of(KEY.public_key()), token_type="at+jwt")


@asynccontextmanager
async def gateway_of(site: Site) -> AsyncIterator[Running]:
    async with running_gateway(site) as running:
        await running.poll("a")
        yield running


async def ask(running: Running, name: str, **claims: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {token(name, **claims)}"}
    return await running.client().post("/v1/decisions", json={"vm": "web", "destination": "b"}, headers=headers)


async def last_check(running: Running) -> dict[str, Any]:
    return (await running.records("decision.check"))[-1]


async def test_a_person_moves_vms_by_a_group_of_the_directory_and_the_record_says_so(
    ad_site: Site, operators: str
) -> None:
    async with gateway_of(ad_site) as running:
        headers = {"authorization": f"Bearer {token('oscar')}"}
        body = {"vm": "web", "destination": "b", "reason": "CHG-1"}
        answer = await running.client().post("/v1/migrations", json=body, headers=headers)
        assert answer.status_code == 201, answer.text
        (record,) = await running.records("migration.decision")
    assert operators in record["actor"]["groups"]
    assert all(group.startswith("S-1-5-") for group in record["actor"]["groups"])  # nothing of what the token says
    identity = record["details"]["identity"]
    assert identity["source"] == "active-directory"
    assert identity["account"] == f"oscar@{REALM}"
    assert identity["controller"] == f"dc1.{REALM}:636"
    assert "groups" not in identity
    assert identity["problem"] is None


async def test_who_is_in_no_such_group_is_denied_whatever_the_token_says(ad_site: Site, operators: str) -> None:
    async with gateway_of(ad_site) as running:
        answer = await ask(running, "alice", groups=[operators, "operators"])
        assert answer.json()["decision"]["allowed"] is False
        assert operators not in (await last_check(running))["actor"]["groups"]


async def test_a_disabled_account_is_denied_with_the_reason_and_its_groups_in_the_record(
    ad_site: Site, domain: Domain, operators: str
) -> None:
    async with gateway_of(ad_site) as running:
        assert (await ask(running, "dora")).json()["decision"]["allowed"] is True
        with domain.controllers[0].administrator() as administrator:
            change(administrator, f"CN=dora,{USERS}", userAccountControl="514")
        decision = (await ask(running, "dora")).json()["decision"]
        record = await last_check(running)
        headers = {"authorization": f"Bearer {token('dora')}"}
        whoami = (await running.client().get("/v1/whoami", headers=headers)).json()
    assert whoami["groups"] is None
    assert whoami["groups_unknown_because"] == "the account is disabled in Active Directory"
    assert whoami["groups_from"].startswith(f"Active Directory, account dora@{REALM} (S-1-5-21-")
    assert decision["allowed"] is False
    assert "the account is disabled in Active Directory" in decision["denied_because"]
    assert record["outcome"] == "denied"
    assert record["actor"].get("groups") is None
    assert record["details"]["identity"]["problem"] == "the account is disabled in Active Directory"
    assert operators in record["details"]["identity"]["groups"]


async def test_an_unreachable_directory_denies_and_others_are_not_kept_waiting(ad_site: Site, domain: Domain) -> None:
    async with gateway_of(ad_site) as running:
        first, second = domain.controllers
        with first.hung(), second.hung():
            decision = (await ask(running, "oscar")).json()["decision"]
            record = await last_check(running)
            local = await running.person("alice").get("/v1/checkpoint")
    assert decision["allowed"] is False
    assert "Active Directory is unavailable (timeout)" in decision["denied_because"]
    assert record["details"]["identity"]["groups"] is None
    assert local.status_code == 200


@pytest.mark.parametrize("upn", ["*", "oscar)(objectClass=*", f"*@{REALM}", "CORP\\oscar", None, 7, ["oscar"], ""])
async def test_an_account_claim_of_the_wrong_kind_is_nobody(ad_site: Site, upn: object) -> None:
    async with gateway_of(ad_site) as running:
        answer = await ask(running, "oscar", upn=upn)
        assert "the account is unknown in Active Directory" in answer.json()["decision"]["denied_because"]


async def test_privileged_actions_read_the_groups_anew(ad_site: Site, domain: Domain, operators: str) -> None:
    async with gateway_of(ad_site) as running:
        people = running.gateway.reloader._people
        now = datetime.now(UTC)
        person = await people.authenticate(token("eve"), now, "127.0.0.1")
        assert operators in ((await people.resolve_groups(person, now, "-", "MigrateVm")).groups or ())
        with domain.controllers[0].administrator() as administrator:
            administrator.modify(f"CN=vm-operators,{USERS}", {"member": [("MODIFY_DELETE", [f"CN=eve,{USERS}"])]})
        assert operators in ((await people.resolve_groups(person, now, "-", "MigrateVm")).groups or ())
        assert operators not in ((await people.resolve_groups(person, now, "-", "BreakGlass")).groups or ())


async def test_a_person_in_1100_groups_is_decided_on_recorded_whole_and_can_be_replayed(
    ad_site: Site, domain: Domain, operators: str
) -> None:
    with domain.controllers[0].administrator() as administrator:
        many = add_user(administrator, "many")
        for number in range(1100):
            add_group(administrator, f"many-{number}", [many])
        administrator.modify(f"CN=vm-operators,{USERS}", {"member": [("MODIFY_ADD", [many])]})
    async with gateway_of(ad_site) as running:
        answer = await ask(running, "many")
        assert answer.json()["decision"]["allowed"] is True, answer.text
        record = await last_check(running)
        bundle = running.gateway.reloader._gate.engine.bundle
    assert operators in record["actor"]["groups"]
    assert len(record["actor"]["groups"]) < 10  # those that policies name
    assert record["details"]["identity"]["groups_count"] > 1100
    person = expand_entities(record["details"]["policy_entities"])[0]
    groups = [parent["id"] for parent in person["parents"]]
    assert len(groups) == record["details"]["identity"]["groups_count"]
    assert digest_of_ids(groups) == record["details"]["identity"]["groups_sha256"]
    again = replay(bundle, record["details"]["policy_request"], record["details"]["policy_entities"])
    assert again.allowed
    assert [reason.id for reason in again.reasons] == ["operators-move"]


async def test_a_changed_password_is_taken_up_by_a_reload(ad_site: Site) -> None:
    password = ad_site.directory / "ad-password"
    password.write_text("not-yet\n", encoding="ascii")
    async with gateway_of(ad_site) as running:
        assert "unavailable (bind)" in (await ask(running, "oscar")).json()["decision"]["denied_because"]
        password.write_text(SERVICE_PASSWORD + "\n", encoding="ascii")
        await running.gateway.reload()
        assert (await ask(running, "oscar")).json()["decision"]["allowed"] is True
        password.chmod(0o644)
        await running.gateway.reload()
        (*_, record) = await running.records("config.reloaded")
        assert "chmod 600" in record["details"]["refused"]["directory"]


def test_an_issuer_that_wants_a_directory_needs_one(ad_site: Site) -> None:
    text = ad_site.gateway_config.read_text(encoding="utf-8")
    without = text.partition("[identity.active_directory]")[0]
    for changed, what in (
        (without, "is missing"),
        (text.replace('account_claim = "upn"\n', ""), "account_claim"),
        (text.replace('groups = "active-directory"\n', ""), "account_claim"),
        (text.replace(f"'dc1.{REALM}'", "'127.0.0.1'", 1), "DNS name"),
        (text.replace("retry_seconds = 1", "cache_seconds = 61"), "60"),
    ):
        with pytest.raises(ConfigRefused, match=what):
            configuration.parse(changed.encode(), ad_site.gateway_config)
