"""Programs that ask: by client credentials, by client certificate, on behalf of a person; and tokens bound to a key."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from certs import layout
from certs.authority import Authority
from certs.files import read_certificates
from gateway.config import load
from gateway.errors import ConfigRefused
from gateway.starter import Site
from tests.gateway.cli.test_real_gateway import Person
from tests.gateway.conftest import Running, running_gateway
from tests.oidc_provider.process import AUDIENCE, CLIENT, Provider, provider

pytestmark = [pytest.mark.real, pytest.mark.whole]

NOVA = "spiffe://bank.example/service/nova"
NIGHT = datetime.now(UTC)


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    with provider(tmp_path_factory.mktemp("issuer")) as running:
        yield running


def add_issuer(site: Site, issuer: Provider, more: str = "") -> None:
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(
        f"""{text}
[[identity.issuers]]
issuer = "{issuer.issuer}"
audience = "{AUDIENCE}"
trust_bundle = "{issuer.ca}"
{more}
"""
    )
    let_groups_move(site, f"{issuer.issuer}#operators", f"{issuer.issuer}#orchestrators")


def add_service(site: Site, name: str = "nova", groups: str = '["orchestrators"]') -> tuple[Path, Path]:
    """Configured and with a certificate of the site's CA; returns certificate and key."""
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(
        f'{text}\n[[identity.services]]\nspiffe_id = "spiffe://bank.example/service/{name}"\ngroups = {groups}\n'
    )
    let_groups_move(site, "spiffe://bank.example#orchestrators")
    return issue(site, name)


def issue(site: Site, name: str) -> tuple[Path, Path]:
    layout.issue_service(site.certs, name, datetime.now(UTC))
    folder = site.certs / "services" / name
    return folder / "service.pem", folder / "service.key"


def let_groups_move(site: Site, *groups: str) -> None:
    policies = [
        f'@id("orchestrators-{number}") @reason("Orchestrators move test VMs.") permit (principal in Sealane::Group::'
        f'"{group}", action in [Sealane::Action::"MigrateVm", Sealane::Action::"CheckDecision"], resource);'
        for number, group in enumerate(groups)
    ]
    (site.bundle / "policies" / "orchestrators.cedar").write_text("\n".join(policies))


@asynccontextmanager
async def gateway_of(site: Site) -> AsyncIterator[Running]:
    async with running_gateway(site) as running:
        await running.poll("a")
        yield running


async def move(running: Running, token: str | None, credentials: tuple[Path, Path] | None = None) -> httpx.Response:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    client = running.client(credentials=credentials)
    return await client.post("/v1/migrations", json={"vm": "web", "destination": "b"}, headers=headers)


async def decision_of(running: Running) -> dict[str, Any]:
    return (await running.records("migration.decision"))[-1]


async def refusal_of(running: Running) -> dict[str, Any]:
    return (await running.records("token.refused"))[-1]["details"]  # type: ignore[no-any-return]


# --- client credentials -------------------------------------------------------------------------------------------


async def test_a_program_with_client_credentials_moves_vms_by_the_groups_of_the_configuration(
    site: Site, issuer: Provider
) -> None:
    add_issuer(site, issuer, f'service_groups = {{ "{CLIENT}" = ["orchestrators"] }}')
    async with gateway_of(site) as running:
        answer = await move(running, issuer.token({}))
        assert answer.status_code == 201, answer.text
        actor = (await decision_of(running))["actor"]
    assert actor["id"] == f"{issuer.issuer}#{CLIENT}"
    assert actor["authenticated_by"] == "oidc-client"
    assert actor["groups"] == [f"{issuer.issuer}#orchestrators"]


# --- client certificates ------------------------------------------------------------------------------------------


async def test_a_service_moves_vms_by_its_certificate_alone(site: Site) -> None:
    credentials = add_service(site)
    async with gateway_of(site) as running:
        answer = await move(running, None, credentials)
        assert answer.status_code == 201, answer.text
        record = await decision_of(running)
        whoami = (await running.client(credentials=credentials).get("/v1/whoami")).json()
    assert record["actor"]["id"] == whoami["id"] == NOVA
    assert "[[identity.services]]" in whoami["groups_from"]
    assert record["actor"]["authenticated_by"] == "client-certificate"
    assert record["actor"]["groups"] == ["spiffe://bank.example#orchestrators"]


async def test_a_service_that_is_not_configured_is_nobody(site: Site) -> None:
    add_service(site)
    other = issue(site, "cinder")
    async with gateway_of(site) as running:
        answer = await move(running, None, other)
        assert answer.status_code == 401
        assert "is not among the services" in (await refusal_of(running))["detail"]
        assert await running.records("migration.decision") == []


async def test_a_host_is_no_service_and_a_service_no_host(site: Site) -> None:
    credentials = add_service(site)
    async with gateway_of(site) as running:
        folder = site.host_folder("a")
        assert (await move(running, None, (folder / "host.pem", folder / "host.key"))).status_code == 401
        assert "host" in (await refusal_of(running))["detail"]
        poll = await running.client(credentials=credentials).post("/v1/relay/poll", json={"wait_seconds": 0})
        assert (poll.status_code, poll.json()["error"]["code"]) == (403, "relay_refused")


async def test_a_certificate_of_a_host_with_a_service_id_or_the_other_way_round_does_not_pass(site: Site) -> None:
    """The CA of the site would not sign these; another one that it trusts might."""
    add_service(site)
    authority = Authority.load(site.certs)
    key, now = layout.issue_service(site.certs, "forged", NIGHT).public_key(), datetime.now(UTC)
    folder = site.certs / "services" / "forged"
    leaf = authority.issue_host("nova", key, now, timedelta(hours=1))
    (folder / "service.pem").write_bytes(leaf[0].public_bytes(Encoding.PEM))
    async with gateway_of(site) as running:
        answer = await move(running, None, (folder / "service.pem", folder / "service.key"))
        assert answer.status_code == 401


async def test_a_revoked_service_is_refused_also_on_a_connection_that_is_open(site: Site) -> None:
    credentials = add_service(site)
    async with gateway_of(site) as running:
        client = running.client(credentials=credentials)
        assert (await client.get("/v1/whoami")).status_code == 200
        Authority.load(site.certs).revoke(read_certificates(credentials[0])[0].serial_number, datetime.now(UTC))
        await running.gateway.reload()
        assert (await client.get("/v1/whoami")).status_code == 401
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            await running.client(credentials=credentials).get("/v1/whoami")


async def test_a_token_says_who_asks_also_where_there_is_a_certificate(site: Site) -> None:
    credentials = add_service(site)
    async with gateway_of(site) as running:
        answer = await running.client(credentials=credentials).get(
            "/v1/whoami", headers={"authorization": f"Bearer {running.token('bob')}"}
        )
        assert answer.json()["id"] == "sealane-local#bob"


@pytest.mark.parametrize("header", ["Bearer", "", "Basic Ym9iOmJvYg==", "Negotiate x", "Token a.b.c"])
async def test_whoever_shows_something_else_than_a_token_is_not_taken_for_the_service(site: Site, header: str) -> None:
    """A program that passes its callers' header on would lend its own rights to whoever sends none that is one."""
    credentials = add_service(site)
    async with gateway_of(site) as running:
        client = running.client(credentials=credentials)
        assert (await client.get("/v1/whoami", headers={"authorization": header})).status_code == 401
        assert (await refusal_of(running))["check"] == "form"


@pytest.mark.parametrize(
    "spiffe_id",
    [
        "spiffe://bank.example/host/a",
        "spiffe://bank.example/HOST/a",
        "spiffe://bank.example",
        "spiffe://bank.example/service/../nova",
        "spiffe://bank.example/service/nova#x",
        "spiffe://bank.example:1/service/nova",
        "https://bank.example/service/nova",
    ],
)
def test_only_the_id_of_a_service_is_accepted_in_the_configuration(site: Site, spiffe_id: str) -> None:
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(f'{text}\n[[identity.services]]\nspiffe_id = "{spiffe_id}"\n')
    with pytest.raises(ConfigRefused, match=r"identity\.services"):
        load(site.gateway_config)


async def test_the_command_asks_by_certificate_where_there_is_no_token(site: Site, tmp_path: Path) -> None:
    certificate, key = add_service(site)
    async with gateway_of(site) as running:
        nova = Person(running, "nova", tmp_path / "home")
        settings = nova.home / ".config" / "sealane" / "client.toml"
        settings.parent.mkdir(parents=True)
        text = f'gateway = "{running.url}"\nca = "{site.ca}"\ncertificate = "{certificate}"\nprivate_key = "{key}"\n'
        settings.write_text(text)
        assert (await nova.sealane("whoami", "--json")).document["id"] == NOVA
        # Exit code 1: it may move, but nobody answers for the relays here.
        checked = await nova.sealane("migrate", "web", "--to", "b", "--check", "--json", expected=1)
        assert checked.document["decision"]["allowed"] is True
        key.chmod(0o644)
        assert "can be read or changed by others" in (await nova.sealane("whoami", expected=2)).stderr
        settings.write_text(text.replace("private_key", "#"))
        assert "need each other" in (await nova.sealane("whoami", expected=2)).stderr


# --- on behalf of a person ----------------------------------------------------------------------------------------


async def test_an_orchestrator_acts_for_a_person_who_stays_the_one_who_asks(site: Site, issuer: Provider) -> None:
    add_issuer(site, issuer, f'accepted_actors = ["{CLIENT}"]')
    async with gateway_of(site) as running:
        answer = await move(running, issuer.exchange(issuer.person_token("alice")))
        assert answer.status_code == 201, answer.text
        record = await decision_of(running)
    assert record["actor"]["id"] == f"{issuer.issuer}#alice"
    assert record["details"]["delegation"] == {"actor": f"{issuer.issuer}#{CLIENT}", "prior_actors": []}
    person = record["details"]["policy_entities"][0]
    assert person["attrs"]["actor"] == f"{issuer.issuer}#{CLIENT}"


async def test_who_acted_before_is_recorded_and_no_more_than_four(site: Site, issuer: Provider) -> None:
    add_issuer(site, issuer, f'accepted_actors = ["{CLIENT}"]')
    token = issuer.person_token("alice")
    async with gateway_of(site) as running:
        for _ in range(4):
            token = issuer.exchange(token)
        assert (await move(running, token)).status_code == 201
        before = (await decision_of(running))["details"]["delegation"]["prior_actors"]
        assert before == [f"{issuer.issuer}#{CLIENT}"] * 3
        assert (await move(running, issuer.exchange(token))).status_code == 401
        assert (await refusal_of(running))["check"] == "actor"


async def test_nobody_acts_for_a_person_who_is_not_accepted_for_that(site: Site, issuer: Provider) -> None:
    add_issuer(site, issuer)
    async with gateway_of(site) as running:
        assert (await move(running, issuer.exchange(issuer.person_token("alice")))).status_code == 401
        assert (await refusal_of(running))["check"] == "actor"
        assert (await move(running, issuer.person_token("alice"))).status_code == 201


async def test_a_policy_may_forbid_what_is_done_through_a_program(site: Site, issuer: Provider) -> None:
    add_issuer(site, issuer, f'accepted_actors = ["{CLIENT}"]')
    (site.bundle / "policies" / "in-person.cedar").write_text(
        '@id("in-person") @reason("In person only.")'
        ' forbid (principal, action == Sealane::Action::"MigrateVm", resource)'
        ' when { principal has actor && principal.actor like "*#orchestrator" };'
    )
    async with gateway_of(site) as running:
        denied = await move(running, issuer.exchange(issuer.person_token("alice")))
        assert [policy["id"] for policy in denied.json()["decision"]["policies"]] == ["in-person"]
        assert (await move(running, issuer.person_token("alice"))).status_code == 201


# --- tokens that are bound to a certificate -----------------------------------------------------------------------


async def test_a_bound_token_is_good_with_its_certificate_and_with_no_other(site: Site, issuer: Provider) -> None:
    own, other = issue(site, "own"), issue(site, "other")
    add_issuer(site, issuer)
    token = issuer.bound_token(*own)
    async with gateway_of(site) as running:
        for credentials in (None, other):
            assert (await move(running, token, credentials)).status_code == 401
            assert (await refusal_of(running))["check"] == "sender"
        answer = await move(running, token, own)
        assert answer.status_code == 201, answer.text
        assert (await decision_of(running))["actor"]["id"] == f"{issuer.issuer}#bound"


async def test_where_binding_is_required_a_bearer_token_is_refused(site: Site, issuer: Provider) -> None:
    own = issue(site, "own")
    add_issuer(site, issuer, 'sender_constraint = "required"')
    async with gateway_of(site) as running:
        assert (await move(running, issuer.token(), own)).status_code == 401
        assert (await refusal_of(running))["check"] == "sender"
        assert (await move(running, issuer.bound_token(*own), own)).status_code == 201
