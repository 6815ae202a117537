"""Running migrations and a real Active Directory: its changes are noticed, and where it hangs nobody else waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from gateway.starter import Site
from tests.gateway.active_directory_site import add_active_directory
from tests.gateway.break_glass.conftest import GLASS, PASSWORD, with_break_glass
from tests.gateway.conftest import Running, running_gateway
from tests.gateway.test_active_directory import ISSUER, jwks, rename_group, token
from tests.gateway.test_watch import SPARE, cancels, report, revoked
from tests.policy.identity.samba_ad import (
    USERS,
    Domain,
    add_group,
    add_user,
    change,
    seeded_domain,
    sid_of,
    start_domain,
)

pytestmark = [pytest.mark.real, pytest.mark.whole]

PEOPLE = ("erna", "egon", "edda")


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    with start_domain(seeded_domain(tmp_path_factory), tmp_path_factory.mktemp("domain")) as running:
        yield running


@pytest.fixture(scope="module")
def operators(domain: Domain) -> str:
    with domain.controllers[0].administrator() as administrator:
        members = [add_user(administrator, name) for name in PEOPLE]
        return sid_of(administrator, add_group(administrator, "lane-operators", members))


@pytest.fixture
def watched_site(site: Site, domain: Domain, operators: str) -> Site:
    (site.directory / "jwks.json").write_bytes(jwks())
    add_active_directory(site, domain, ISSUER)
    rename_group(site.directory, "sealane-local#operators", operators)
    with site.inventory.open("a", encoding="utf-8") as file:
        file.write(SPARE)
    with site.gateway_config.open("a", encoding="utf-8") as file:
        file.write("\n[revocation]\ninterval_seconds = 1\nunknown_grace_seconds = 6\n")
    return site


def client_of(running: Running, name: str) -> httpx.AsyncClient:
    client = running.client()
    client.headers["authorization"] = f"Bearer {token(name)}"
    return client


@asynccontextmanager
async def moving(site: Site, *people: tuple[str, str]) -> AsyncIterator[tuple[Running, list[str]]]:
    """A gateway and a running migration from host a for each (person, VM)."""
    async with running_gateway(site) as running:
        found = []
        await running.poll("a")
        for name, vm in people:
            body = {"vm": vm, "destination": "b"}
            answer = await client_of(running, name).post("/v1/migrations", json=body)
            assert answer.status_code == 201, answer.text
            found.append(answer.json()["migration_id"])
            await running.poll("a")
            await report(running, found[-1])
        yield running, found


async def test_a_group_that_was_taken_away_and_an_account_that_was_disabled_end_what_they_began(
    watched_site: Site, domain: Domain
) -> None:
    async with moving(watched_site, ("erna", "web"), ("egon", "spare")) as (running, migrations):
        with domain.controllers[0].administrator() as administrator:
            administrator.modify(f"CN=lane-operators,{USERS}", {"member": [("MODIFY_DELETE", [f"CN=erna,{USERS}"])]})
            change(administrator, f"CN=egon,{USERS}", userAccountControl="514")
        records = await revoked(running, 2, seconds=20)
        why = {record["migration_id"]: record["details"]["because"] for record in records}
        assert "No policy permits MigrateVm" in why[migrations[0]]
        assert "the account is disabled in Active Directory" in why[migrations[1]]
        assert sorted(await cancels(running)) == sorted(migrations)


async def test_a_hung_directory_is_no_revocation_for_a_grace_and_keeps_nobody_else_waiting(
    watched_site: Site, domain: Domain
) -> None:
    async with moving(watched_site, ("edda", "web")) as (running, (migration_id,)):
        answer = await client_of(running, "edda").post("/v1/decisions", json={"vm": "spare", "destination": "b"})
        assert answer.json()["decision"]["allowed"] is True
        first, second = domain.controllers
        with first.hung(), second.hung():
            began = trio.current_time()
            (record,) = await revoked(running, seconds=40)
            assert trio.current_time() - began >= 5
        assert "nobody can tell whether the requester still may" in record["details"]["because"]
        assert record["migration_id"] == migration_id


async def test_sealed_people_break_glass_while_the_directory_is_down(watched_site: Site, domain: Domain) -> None:
    first, second = domain.controllers
    async with running_gateway(with_break_glass(watched_site)) as running:
        with first.hung(), second.hung():
            refused = await client_of(running, "edda").post("/v1/break-glass", json=GLASS)
            assert "Active Directory is unavailable" in refused.json()["error"]["message"]
            clients = {}
            for name in ("sealed-officer", "sealed-manager"):
                body = {"username": name, "password": PASSWORD, "sealed": True}
                answer = await running.client().post("/v1/token", json=body)
                clients[name] = running.client()
                clients[name].headers["authorization"] = f"Bearer {answer.json()['access_token']}"
            grant = (await clients["sealed-officer"].post("/v1/break-glass", json=GLASS)).json()["id"]
            approved = await clients["sealed-manager"].post(f"/v1/break-glass/{grant}/approve", json={})
            assert approved.status_code == 200, approved.text
            await running.poll("prod")
            body = {"vm": "ledger", "destination": "prod2", "reason": "INC-4711", "break_glass": grant}
            moved = await clients["sealed-officer"].post("/v1/migrations", json=body)
            assert moved.status_code == 201, moved.text
