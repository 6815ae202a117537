"""Observe mode: what is let through in observed zones, what never is, and that nobody can overlook it."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

import gateway.config as configuration
from audit.verify import verify_log
from gateway.errors import ConfigRefused, StartRefused
from gateway.observing import Observation, observe
from gateway.service import serve
from gateway.starter import Site
from policy.engine import decide
from policy.facts import nobody
from tests.gateway.break_glass.conftest import Hands
from tests.gateway.conftest import Running, running_gateway
from tests.policy.cedar_world import OLGA, bundle
from tests.policy.cedar_world import move as move_question

pytestmark = pytest.mark.whole


def observing(site: Site, zones: str = '["test"]', days: float = 7) -> Site:
    """Adds the table; bob, a guest, may move nothing by policy."""
    until = datetime.now(UTC) + timedelta(days=days)
    text = site.gateway_config.read_text(encoding="utf-8")
    table = f"[policy.observe]\nzones = {zones}\nuntil = {until.isoformat(timespec='seconds')}\n"
    site.gateway_config.write_text(text.replace("[identity]", table + "\n[identity]", 1), encoding="utf-8")
    return site


@asynccontextmanager
async def observed(site: Site, hands: Hands | None = None, **how: Any) -> AsyncIterator[Running]:
    async with running_gateway(observing(site, **how), (hands or Hands()).clock()) as running:
        await running.poll("a")
        await running.poll("prod")
        yield running


async def move(running: Running, who: str = "bob", vm: str = "web", to: str = "b", **more: Any) -> httpx.Response:
    return await running.person(who).post("/v1/migrations", json={"vm": vm, "destination": to, **more})


async def test_what_policy_would_deny_is_let_through_and_says_so_everywhere(site: Site) -> None:
    async with observed(site) as running:
        answer = await move(running)
        assert answer.status_code == 201, answer.text
        decision = answer.json()["decision"]
        assert (decision["allowed"], decision["observed"]) == (True, True)
        assert "No policy permits MigrateVm" in decision["denied_because"]
        (assignment,) = await running.poll("a")
        assert running.open_permit(assignment["permit"]).claims.destination == running.site.spiffe_id("b")
        (record,) = await running.records("migration.decision")
        assert record["outcome"] == "would_deny"
        assert record["details"]["decision"]["observed"] is True
        (started,) = await running.records("gateway.started")
        assert started["details"]["observe"]["zones"] == ["test"]
        health = (await running.client().get("/v1/health")).json()["observe"]
        assert (health["is_on"], health["would_deny"]) == (True, 1)
    report = verify_log(site.log, [site.vkey])
    assert report.ok, report


async def test_a_host_is_emptied_where_its_moves_are_let_through(site: Site) -> None:
    people = site.people.read_text(encoding="utf-8")
    bundle = site.bundle / "policies" / "guests.cedar"
    bundle.write_text(
        '@id("guests-check")\n@reason("They may ask.")\npermit (principal in Sealane::Group::"sealane-local#guests", '
        'action == Sealane::Action::"CheckDecision", resource);\n'
    )
    assert "guests" in people
    async with observed(site) as running:
        await running.poll("b")
        answer = await running.person("bob").post("/v1/drain/check", json={"host": "a"})
        (web,) = answer.json()["prospects"]
        assert web["destinations"] == ["b"]
        health = (await running.person("bob").get("/v1/health")).json()
        assert health["observe"]["would_deny"] == 0  # nothing was let through
        assert (await move(running)).status_code == 201


async def test_what_is_allowed_is_allowed_as_ever(site: Site) -> None:
    async with observed(site) as running:
        answer = await move(running, "alice")
        assert "observed" not in answer.json()["decision"]
        (record,) = await running.records("migration.decision")
        assert record["outcome"] == "allowed"
        assert (await running.client().get("/v1/health")).json()["observe"]["would_deny"] == 0


@pytest.mark.parametrize(
    ("who", "vm", "to"),
    [
        ("bob", "ledger", "prod"),  # not an observed zone
        ("bob", "web", "prod"),  # one end is not
        ("bob", "nothing", "b"),
        ("bob", "web", "nowhere"),
        ("carol", "web", "b"),  # auditors move nothing: a baseline
    ],
)
async def test_what_is_never_observed(site: Site, who: str, vm: str, to: str) -> None:
    async with observed(site) as running:
        answer = await move(running, who, vm, to, reason="CHG-1")
        assert answer.status_code == 403, answer.text
        assert await running.poll("a") == []
        (record,) = await running.records("migration.decision")
        assert record["outcome"] == "denied"


async def test_a_baseline_holds_where_both_zones_are_observed(site: Site) -> None:
    async with observed(site, zones='["test", "production"]') as running:
        answer = await move(running, to="prod")
        assert [policy["id"] for policy in answer.json()["decision"]["policies"]] == ["stay-in-zone"]


async def test_who_is_not_signed_in_and_whose_groups_are_unknown_are_not_observed(site: Site) -> None:
    async with observed(site) as running:
        body = {"vm": "web", "destination": "b"}
        assert (await running.client().post("/v1/migrations", json=body)).status_code == 401
        running.site.people.write_text(running.site.people.read_text("utf-8").replace("bob", "rob"), encoding="utf-8")
        bob = running.person("alice")
        await running.gateway.reload()
        bob.headers["authorization"] = bob.headers["authorization"][:-3] + "AAA"
        assert (await bob.post("/v1/migrations", json=body)).status_code == 401


async def test_other_actions_are_not_observed(site: Site) -> None:
    config = site.gateway_config
    config.write_text(config.read_text("utf-8") + "\n[evacuation]\nmax_hours = 12\n", encoding="utf-8")
    async with observed(site) as running:
        bob = running.person("bob")
        assert (await bob.get("/v1/records")).status_code == 403
        assert (await bob.post("/v1/evacuations", json={"host": "a", "hours": 2, "reason": "r"})).status_code == 403


async def test_an_unreachable_log_denies_as_ever(site: Site) -> None:
    async with observed(site) as running:
        running.log.broken = True
        assert (await move(running)).status_code == 503


async def test_it_ends_when_the_configuration_says_and_no_clock_that_goes_back_prolongs_it(site: Site) -> None:
    hands = Hands()
    async with observed(site, hands, days=0.01) as running:
        assert (await running.person("bob").post("/v1/decisions", json={"vm": "web", "destination": "b"})).json()
        hands.wall_offset += timedelta(minutes=20)
        assert (await running.client().get("/v1/health")).json()["observe"]["is_on"] is False
        hands.wall_offset = timedelta()
        assert (await move(running)).status_code == 403
        assert (await running.client().get("/v1/health")).json()["observe"]["is_on"] is False


async def test_a_date_too_far_ahead_or_none_is_refused(site: Site) -> None:
    with pytest.raises(StartRefused, match="90 days"):
        await serve(configuration.load(observing(site, days=91).gateway_config))
    text = site.gateway_config.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("until")]
    for changed, what in (
        ("\n".join(lines), "until"),
        (text.replace('["test"]', "[]", 1), "zones"),
        (text.replace("+00:00", "", 1), "time zone"),
    ):
        with pytest.raises(ConfigRefused, match=what):
            configuration.parse(changed.encode(), site.gateway_config)


def test_who_is_not_named_is_not_observed() -> None:
    observation = Observation(frozenset({"test"}), 100)
    question = move_question(person=nobody("spiffe://bank.test/host/lab1"))
    decision = decide(bundle(), question)
    assert decision.by_policy
    assert not observe(observation, question, decision, 50).allowed
    named = dataclasses.replace(question, person=OLGA)
    assert observe(observation, named, decision, 50).allowed
    assert not observe(observation, named, decision, 100).allowed
    assert observation.would_deny == 1
