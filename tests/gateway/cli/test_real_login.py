"""`sealane login` and `sealane whoami` against a real provider and a real gateway; the test is the person's browser."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from gateway.starter import Site
from tests.gateway.cli.terminal import Shell, shell_for, speak_of_groups_of
from tests.gateway.conftest import Running, running_gateway
from tests.oidc_provider.process import AUDIENCE, Browser, Provider, provider

pytestmark = pytest.mark.real
PATIENCE = 120  # seconds for several commands in a row, on a machine that does much else


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with provider(tmp_path_factory.mktemp("issuer")) as it:
        yield it


@pytest.fixture
async def running(site: Site, issuer: Provider) -> AsyncIterator[Running]:
    """A gateway whose policy speaks of this issuer's groups."""
    issuer.tell("claims", claims={"groups": ["operators"], "name": "Alice"})
    issuer.tell("resource", resource={"audience": AUDIENCE, "alg": "RS256", "seconds": 300})
    speak_of_groups_of(site, issuer.issuer)
    with site.gateway_config.open("a") as config:
        config.write(f"""
[[identity.issuers]]
issuer = "{issuer.issuer}"
audience = "{AUDIENCE}"
trust_bundle = "{issuer.ca}"
max_lifetime_seconds = 3600
authorized_parties = ["sealane-cli", "orchestrator"]
login = {{ client_id = "sealane-cli", scopes = ["openid", "migrate"], resource = "{AUDIENCE}" }}
""")
    async with running_gateway(site) as it:
        yield it


@pytest.fixture
async def shell(tmp_path: Path, running: Running, issuer: Provider) -> AsyncIterator[Shell]:
    async with shell_for(tmp_path / "home", running, issuer.ca) as it:
        yield it


async def browse(issuer: Provider, url: str, code: str = "", *, abort: bool = False) -> str:
    def visit() -> str:
        with Browser(issuer.ca, "alice") as browser:
            return browser.visit(url, code, abort=abort).text

    return await trio.to_thread.run_sync(visit)


async def test_device_flow_from_the_code_to_a_migration(shell: Shell, running: Running, issuer: Provider) -> None:
    with trio.fail_after(PATIENCE):
        terminal = await shell.run("login")
        told = await terminal.line(r"Open (\S+) and enter the code (\S+)")
        await browse(issuer, told[1], told[2])
        code, document = await terminal.end()
        assert (code, document["outcome"], document["user"]) == (0, "logged_in", "Alice"), terminal.said
        token = shell.folder / "token.json"
        assert token.stat().st_mode & 0o777 == 0o600
        assert json.loads(token.read_text())["access_token"] not in terminal.said

        code, document = await (await shell.run("whoami")).end()
        assert code == 0
        assert document["id"] == f"{issuer.issuer}#alice"
        assert document["authenticated_by"] == "oidc"
        assert document["groups"] == [f"{issuer.issuer}#operators"]
        assert document["groups_from"] == "the token, claim groups"
        allowed = {action: answer["allowed"] for action, answer in document["permissions"].items()}
        assert (allowed["CheckDecision"], allowed["ReadAudit"]) == (True, False)

        await running.poll("a")
        code, document = await (await shell.run("migrate", "web", "--to", "b", "--check")).end()
        assert (code, document["outcome"]) == (1, "cannot_move")  # nobody answers for the relays here
        assert document["decision"]["allowed"] is True
    (record,) = await running.records("decision.check")
    assert record["actor"]["id"] == f"{issuer.issuer}#alice"
    assert record["actor"]["issuer"] == issuer.issuer


async def test_code_and_pkce_in_a_browser_of_this_machine(shell: Shell, running: Running, issuer: Provider) -> None:
    with trio.fail_after(PATIENCE):
        terminal = await shell.run("login", "--browser")
        url = (await terminal.line(r"Sign in at (\S+)"))[1]
        assert "code_challenge_method=S256" in url
        assert "You may close this page" in await browse(issuer, url)
        code, document = await terminal.end()
    assert (code, document["user"]) == (0, "Alice"), terminal.said


@pytest.mark.parametrize("way", ["--device", "--browser"])
async def test_a_person_who_says_no_at_the_issuer_is_not_logged_in(shell: Shell, issuer: Provider, way: str) -> None:
    with trio.fail_after(PATIENCE):
        terminal = await shell.run("login", way)
        told = await terminal.line(r"(?:Open|Sign in at) (\S+)(?: and enter the code (\S+))?")
        await browse(issuer, told[1], told[2] or "", abort=True)
        code, document = await terminal.end()
    assert code == 1
    assert "access_denied" in document["error"]["message"]
    assert not (shell.folder / "token.json").exists()


async def test_a_token_that_the_gateway_refuses_is_not_kept(shell: Shell, issuer: Provider) -> None:
    issuer.tell("resource", resource={"audience": "https://payroll.example"})
    with trio.fail_after(PATIENCE):
        terminal = await shell.run("login", "--browser")
        await browse(issuer, (await terminal.line(r"Sign in at (\S+)"))[1])
        code, document = await terminal.end()
    assert (code, document["error"]["code"]) == (1, "unauthenticated")
    assert not (shell.folder / "token.json").exists()


async def test_an_orchestrator_with_client_credentials_is_a_principal_of_its_own(
    shell: Shell, running: Running, issuer: Provider
) -> None:
    """Its token comes from its own library; here it is the bare token in a file."""
    file = shell.home / "orchestrator-token"
    file.touch(0o600)
    file.write_text(issuer.token({"groups": ["operators"]}) + "\n")
    await running.poll("a")
    with trio.fail_after(PATIENCE):
        code, document = await (await shell.run("whoami", "--token-file", str(file))).end()
        assert (code, document["authenticated_by"]) == (0, "oidc-client")
        client = running.client()
        client.headers["authorization"] = f"Bearer {file.read_text().strip()}"
        answer = await client.post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 201, answer.text
    (record,) = await running.records("migration.decision")
    assert record["actor"]["id"] == f"{issuer.issuer}#orchestrator"
    assert record["actor"]["authenticated_by"] == "oidc-client"


async def test_unknown_groups_deny_and_whoami_says_why(shell: Shell, running: Running, issuer: Provider) -> None:
    client = running.client()
    client.headers["authorization"] = f"Bearer {issuer.token({'hasgroups': True})}"
    document = (await client.get("/v1/whoami")).json()
    assert document["groups"] is None
    assert "too many" in document["groups_unknown_because"]
    assert not any(answer["allowed"] for answer in document["permissions"].values())
    assert (await client.post("/v1/migrations", json={"vm": "web", "destination": "b"})).status_code == 403


async def test_local_people_and_the_issuer_stand_side_by_side(shell: Shell, running: Running, issuer: Provider) -> None:
    public = (await running.client().get("/v1/identity")).json()
    assert public == {
        "local": True,
        "issuers": [
            {
                "issuer": issuer.issuer,
                "client_id": "sealane-cli",
                "scopes": ["openid", "migrate"],
                "resource": AUDIENCE,
            }
        ],
    }
    document = (await running.person("alice").get("/v1/whoami")).json()
    assert document["authenticated_by"] == "local"
    assert document["groups_from"] == "the gateway's file of people"
    assert document["groups_unknown_because"] is None
    # The policy of this site speaks of the issuer's groups: the same name in another issuer's mouth is another group.
    assert not document["permissions"]["CheckDecision"]["allowed"]
    with trio.fail_after(PATIENCE):
        password = running.site.directory / "passwords" / "alice"
        code, said = await (await shell.run("login", "--user", "alice", "--password-file", str(password))).end()
    assert (code, said["user"]) == (0, "alice")
