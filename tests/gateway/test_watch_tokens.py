"""Groups that only a token told, while what it permitted runs on after its end."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
import trio

from gateway.starter import Site
from tests.gateway.conftest import running_gateway
from tests.gateway.test_active_directory import ISSUER, jwks, rename_group, token
from tests.gateway.test_watch import report, revoked

pytestmark = pytest.mark.whole


def token_for(seconds: int) -> str:
    return token("una", groups=["movers"], exp=int(time.time()) + seconds)


@pytest.fixture
def outside_site(site: Site) -> Site:
    (site.directory / "jwks.json").write_bytes(jwks())
    rename_group(site.directory, "sealane-local#operators", f"{ISSUER}#movers")
    with site.gateway_config.open("a", encoding="utf-8") as file:
        file.write(
            f"""
[[identity.issuers]]
issuer = "{ISSUER}"
audience = "sealane"
algorithms = ["ES256"]
jwks_file = "jwks.json"
leeway_seconds = 0

[revocation]
interval_seconds = 1
unknown_grace_seconds = 1
token_facts_seconds = 2
"""
        )
    return site


async def test_they_are_believed_for_a_while_after_its_end_and_then_unknown(outside_site: Site) -> None:
    async with running_gateway(outside_site) as running:
        await running.poll("a")
        client = running.client()
        client.headers["authorization"] = f"Bearer {token_for(3)}"
        answer = await client.post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert answer.status_code == 201, answer.text
        await running.poll("a")
        await report(running, answer.json()["migration_id"])
        (decision,) = await running.records("migration.decision")
        until = decision["details"]["token_until"]
        (record,) = await revoked(running, seconds=20)
        assert "the token that told their groups ended" in record["details"]["because"]
        assert datetime.now(UTC).timestamp() >= until + 2
        assert record["outcome"] == "cancel_requested"


async def test_a_longer_token_of_the_same_person_counts_for_what_it_permitted(outside_site: Site) -> None:
    async with running_gateway(outside_site) as running:
        await running.poll("a")
        client = running.client()
        client.headers["authorization"] = f"Bearer {token_for(600)}"
        answer = await client.post("/v1/migrations", json={"vm": "web", "destination": "b"})
        await running.poll("a")
        await report(running, answer.json()["migration_id"])
        with trio.move_on_after(4):
            await revoked(running, seconds=30)
        assert await running.records("migration.revoked") == []
