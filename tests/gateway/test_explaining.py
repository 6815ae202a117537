"""Why a check was decided so, told by the gateway; and a gateway's log explained, compared and replayed without it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gateway.starter import EXAMPLE_BUNDLE
from tests.gateway.cli.invoking import invoke
from tests.gateway.conftest import Running

CHECK = {"vm": "ledger", "destination": "a", "explain": True}


async def test_a_check_tells_of_every_policy_about_the_action_with_its_facts(running: Running) -> None:
    told = (await running.person("alice").post("/v1/decisions", json=CHECK)).json()["explanation"]
    assert told[0].startswith("DENIED")
    assert "satisfied: forbid stay-in-zone (policies/zones-and-data.cedar)" in told
    assert any('context.destination.zone is "test"; resource.zone is "production"' in line for line in told)
    assert any(line.startswith("not satisfied: permit operators-move") for line in told)


async def test_who_may_not_ask_is_told_of_no_policy(running: Running) -> None:
    answer = await running.person("bob").post("/v1/decisions", json=CHECK)
    assert answer.json()["decision"]["allowed"] is False
    assert "explanation" not in answer.json()


async def test_nothing_is_explained_that_nobody_asked_for(running: Running) -> None:
    answer = await running.person("alice").post("/v1/decisions", json={"vm": "web", "destination": "b"})
    assert "explanation" not in answer.json()


async def test_a_log_is_explained_compared_and_replayed_without_its_gateway(running: Running, tmp_path: Path) -> None:
    alice = running.person("alice")
    denied = (await alice.post("/v1/decisions", json=CHECK)).json()
    allowed = (await alice.post("/v1/decisions", json={"vm": "web", "destination": "b"})).json()
    assert allowed["decision"]["allowed"] is True
    log = running.site.directory / "log"
    strict = tmp_path / "strict"
    shutil.copytree(EXAMPLE_BUNDLE, strict)
    (strict / "policies" / "freeze.cedar").write_text(
        '@id("freeze")\n@reason("Frozen.")\nforbid (principal, action in Sealane::Action::"AnyMove", resource);\n',
        encoding="utf-8",
    )

    told = invoke("policy", "explain", EXAMPLE_BUNDLE, "--log", log, "--record", denied["record_index"])
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines()[0].startswith("DENIED")
    assert told.stdout.splitlines() == denied["explanation"]

    same = invoke("policy", "replay", EXAMPLE_BUNDLE, "--log", log, "--since", "1h")
    assert same.exit_code == 0, same.output
    assert "2 requests compared: 0 decided differently, 0 by other policies only" in same.stdout
    assert "note: the log begins at " in same.stdout  # an hour ago is before it

    found = invoke("policy", "replay", strict, "--log", log, "--json")
    assert found.exit_code == 1
    (difference,) = json.loads(found.stdout.splitlines()[-1])["differences"]
    assert difference["where"] == f"record {allowed['record_index']}"
    assert (difference["before"]["policies"], difference["after"]["policies"]) == (["operators-move"], ["freeze"])

    assert "freeze: determines 0 of them before, 1 after" in invoke("policy", "replay", strict, "--log", log).stdout

    compared = invoke("policy", "diff", EXAMPLE_BUNDLE, strict, "--log", log, "--json")
    where = {each["where"] for each in json.loads(compared.stdout.splitlines()[-1])["differences"]}
    assert compared.exit_code == 1
    assert where >= {"grid"}

    none = invoke("policy", "explain", EXAMPLE_BUNDLE, "--log", log, "--record", 0)
    assert none.exit_code == 2
    assert "entry 0 holds no decision" in none.output
