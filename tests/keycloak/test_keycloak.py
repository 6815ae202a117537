"""The preset `keycloak` against Keycloak itself: `make keycloak`. Not among `make test`: see docs/identity.md."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import trio

from gateway.starter import Site
from tests.gateway.cli.terminal import Shell, shell_for, speak_of_groups_of
from tests.gateway.conftest import Running, bundles_load_once, pristine_site, running_gateway, site  # noqa: F401 - fixtures
from tests.keycloak.process import AUDIENCE, ELSEWHERE, PUBLIC, Keycloak, keycloak

pytestmark = pytest.mark.real
MOVE = {"vm": "web", "destination": "b"}


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keycloak]:
    with keycloak(tmp_path_factory.mktemp("keycloak")) as it:
        yield it


@pytest.fixture
async def running(site: Site, issuer: Keycloak) -> AsyncIterator[Running]:  # noqa: F811
    """A gateway whose policy speaks of this realm's groups."""
    speak_of_groups_of(site, issuer.issuer)
    with site.gateway_config.open("a") as config:
        config.write(f"""
[[identity.issuers]]
preset = "keycloak"
issuer = "{issuer.issuer}"
audience = "{AUDIENCE}"
trust_bundle = "{issuer.ca}"
authorized_parties = ["{PUBLIC}", "orchestrator"]
service_groups = {{ "{issuer.robot_id()}" = ["operators"] }}
login = {{ client_id = "{PUBLIC}", scopes = ["openid"] }}
""")
    async with running_gateway(site) as it:
        yield it


def with_token(running: Running, token: str) -> httpx.AsyncClient:
    client = running.client()
    client.headers["authorization"] = f"Bearer {token}"
    return client


async def allowed(running: Running, token: str) -> bool:
    answer = await with_token(running, token).post("/v1/decisions", json=MOVE)
    assert answer.status_code == 200, answer.text
    return bool(answer.json()["decision"]["allowed"])


async def test_people_and_their_groups_are_who_keycloak_says(running: Running, issuer: Keycloak) -> None:
    alice = issuer.tokens("alice")["access_token"]
    told = (await with_token(running, alice).get("/v1/whoami")).json()
    assert (told["name"], told["groups"]) == ("alice", [f"{issuer.issuer}#operators"])
    assert await allowed(running, alice)
    answer = await with_token(running, issuer.tokens("bob")["access_token"]).post("/v1/migrations", json=MOVE)
    assert answer.status_code == 403


async def test_what_is_no_access_token_for_us_is_refused(running: Running, issuer: Keycloak) -> None:
    tokens = issuer.tokens("alice", scope="openid")
    elsewhere = issuer.tokens("alice", client=ELSEWHERE)["access_token"]
    for token in (tokens["id_token"], tokens["refresh_token"], elsewhere, tokens["access_token"][:-4] + "AAAA"):
        assert (await with_token(running, token).get("/v1/whoami")).status_code == 401
    assert (await with_token(running, tokens["access_token"]).get("/v1/whoami")).status_code == 200


async def test_a_service_account_has_the_groups_of_the_configuration(running: Running, issuer: Keycloak) -> None:
    robot = issuer.robot_tokens()["access_token"]
    told = (await with_token(running, robot).get("/v1/whoami")).json()
    assert told["groups"] == [f"{issuer.issuer}#operators"]
    assert told["authenticated_by"] == "oidc-client"
    assert await allowed(running, robot)


async def test_a_new_key_signs_and_no_restart_is_needed(running: Running, issuer: Keycloak) -> None:
    before = issuer.tokens("alice")["access_token"]
    assert await allowed(running, before)
    await trio.to_thread.run_sync(issuer.rotate)
    after = issuer.tokens("alice")["access_token"]
    assert after.partition(".")[0] != before.partition(".")[0]  # another kid
    with trio.fail_after(300):  # a gateway that has just fetched keys looks again after half a minute
        while (await with_token(running, after).get("/v1/whoami")).status_code == 401:
            await trio.sleep(1)
    assert await allowed(running, after)
    assert await allowed(running, before)


@pytest.fixture
async def shell(tmp_path: Path, running: Running, issuer: Keycloak) -> AsyncIterator[Shell]:
    async with shell_for(tmp_path / "home", running, issuer.ca) as it:
        yield it


async def test_sealane_login_by_device_flow(shell: Shell, issuer: Keycloak) -> None:
    with trio.fail_after(300):
        terminal = await shell.run("login")
        told = await terminal.line(r"Open (\S+) and enter the code (\S+)")
        await trio.to_thread.run_sync(issuer.grant_device, told[1], told[2], "alice")
        code, document = await terminal.end()
        assert (code, document["outcome"], document["user"]) == (0, "logged_in", "alice"), terminal.said
        code, document = await (await shell.run("whoami")).end()
        assert (code, document["groups"]) == (0, [f"{issuer.issuer}#operators"])
