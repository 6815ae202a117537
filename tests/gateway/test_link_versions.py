"""A fleet that is upgraded in parts: relays of another version than the gateway get what they know, or words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.starter import HostPlan, Site, VmPlan
from tests.gateway.conftest import Running, free_address, running_gateway
from tests.gateway.sites_pair import EAST, TwoSites, lay_out
from tests.gateway.test_watch import edit
from transport.link_version import HEADER, NEWEST

pytestmark = pytest.mark.whole

UUID = "11111111-2222-4333-8444-555555555555"


async def poll(running: Running, host: str, link: str | None) -> httpx.Response:
    """As a relay of the first version asks, and answers, unless `link` says another one."""
    body: dict[str, Any] = {"wait_seconds": 0}
    return await running.client(host, link=link).post("/v1/relay/poll", json=body)


async def test_a_relay_of_the_first_version_gets_what_it_knows_and_nothing_else(site: Site) -> None:
    async with running_gateway(site) as running:
        answered = await poll(running, "a", None)
        assert answered.status_code == 200
        assert HEADER not in answered.headers
        asked = await running.client("a", link=None).post("/v1/relay/trust", json={})
        assert set(asked.json()) == {"version", "roots", "crls"}
        assert HEADER not in asked.headers
        begun = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
        assert begun.status_code == 201, begun.text
        (assignment,) = (await poll(running, "a", None)).json()["assignments"]
        assert assignment["kind"] == "migrate"
        assert "other_permit" not in assignment


@pytest.mark.parametrize("link", [str(NEWEST), str(NEWEST + 1)])
async def test_a_relay_of_this_version_or_the_next_gets_all_that_this_one_has(site: Site, link: str) -> None:
    async with running_gateway(site) as running:
        asked = await running.client("a", link=link).post("/v1/relay/trust", json={})
        assert {"foreign_crls", "introductions", "retired"} <= set(asked.json())
        assert asked.headers[HEADER] == str(NEWEST)
        missing = await running.client("a", link=link).post("/v1/relay/nothing", json={})
        assert missing.status_code == 404
        assert missing.headers[HEADER] == str(NEWEST), "with errors, too"


@pytest.mark.parametrize("link", [str(NEWEST + 2), "x"])
async def test_a_relay_too_far_ahead_is_told_who_must_be_upgraded_and_keeps_what_it_has_to_tell(
    site: Site, link: str
) -> None:
    async with running_gateway(site) as running:
        answered = await poll(running, "a", link)
        assert answered.status_code == 503, "relays keep their receipts at that"
        error = answered.json()["error"]
        assert (error["code"], error["next_step"]) == ("upgrade_needed", "upgrade the gateway")
        assert "upgrade the gateway: it speaks version" in error["message"]
        assert answered.headers[HEADER] == str(NEWEST)


async def test_an_evacuation_is_refused_before_it_is_decided_where_the_relay_knows_none(site: Site) -> None:
    edit(site.people, lambda text: text.replace('["operators"]', '["operators", "production-operators"]'))
    edit(site.gateway_config, lambda text: text + "\n[evacuation]\n")
    async with running_gateway(site) as running:
        await poll(running, "a", None)
        wish = {"host": "a", "hours": 2, "reason": "CHG-9"}
        answer = await running.person("alice").post("/v1/evacuations", json=wish)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (503, "upgrade_needed")
        assert "the relay on a is of an earlier version, which knows nothing of evacuations" in error["message"]
        assert error["who_must_act"] == "operator of the host"
        assert await running.records("evacuation.decision") == []
        assert (await poll(running, "a", None)).json()["assignments"] == [], "an answer that it could not decode"


@pytest.fixture
def two(tmp_path: Path) -> TwoSites:
    hosts = HostPlan("a", "127.0.0.2:7443"), HostPlan("b", "127.0.0.3:7443")
    listen = free_address("127.0.0.1"), free_address("127.0.0.1")
    return lay_out(tmp_path, hosts[:1], hosts[1:], (VmPlan("web", UUID, "a"),), listen)


@pytest.mark.parametrize(("old", "status"), [("source", 503), ("destination", 403)])
async def test_a_vm_leaves_for_another_site_only_where_both_relays_know_of_sites(
    two: TwoSites, old: str, status: int
) -> None:
    async with two.running() as (west, east):
        await poll(west, "a", None if old == "source" else str(NEWEST))
        await poll(east, "b", None if old == "destination" else str(NEWEST))
        wish = {"vm": "web", "destination": f"spiffe://{EAST}/host/b", "reason": "CHG-7"}
        answer = await west.person("alice").post("/v1/migrations", json=wish)
        host = "a" if old == "source" else "b"
        words = answer.json()["error"]["message"]
        assert answer.status_code == status, answer.text
        assert f"the relay on {host} is of an earlier version, which knows nothing of other sites" in words
        assert (await poll(west, "a", str(NEWEST))).json()["assignments"] == []
