"""The inventory's sources in a running gateway: what decisions are made with, what is told of it, what is recorded."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gateway.config import load
from gateway.errors import ConfigRefused, StartRefused
from gateway.inventories import START_SECONDS, read_at_start
from gateway.starter import Site
from policy.sources.keeper import Sources
from policy.sources.settings import MAIN
from tests.gateway.conftest import UUID_WEB, Running, running_gateway
from tests.policy.sources.https_server import Answer, HttpsServer, Request, https_server
from tests.policy.sources.test_keeper import Stub, everything

pytestmark = pytest.mark.whole

UUID_NEW = "77777777-2222-4333-8444-555555555555"
NETBOX_VM = json.loads(
    (Path(__file__).parents[1] / "policy" / "sources" / "netbox_vm.json").read_text(encoding="utf-8")
)
NEW = {"uuid": UUID_NEW, "name": "newborn", "zone": "test", "classification": "internal", "host": "a"}


@pytest.fixture
def cmdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsServer]:
    with https_server(tmp_path_factory.mktemp("cmdb")) as server:
        publish(server)
        yield server


def publish(server: HttpsServer, *vms: dict[str, Any]) -> None:
    body = json.dumps({"vms": vms}).encode()

    def answer(request: Request) -> Answer:
        return Answer(body) if request.headers.get("authorization") == "Bearer s3cret" else Answer(status=401)

    server.answer = answer


def add_source(site: Site, cmdb: HttpsServer, **changes: object) -> None:
    (site.directory / "cmdb-token").write_text("s3cret\n")
    (site.directory / "cmdb-token").chmod(0o600)
    settings = {"max_age_seconds": 600, "refresh_seconds": 300, "ask_again_seconds": 1, **changes}
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(
        f"""{text}
[inventory]
ask_again_seconds = {settings["ask_again_seconds"]}

[[inventory.sources]]
name = "cmdb"
kind = "http"
url = "{cmdb.url}/vms"
trust_bundle = "{cmdb.trust_bundle}"
token_file = "cmdb-token"
refresh_seconds = {settings["refresh_seconds"]}
max_age_seconds = {settings["max_age_seconds"]}
"""
    )


@asynccontextmanager
async def gateway_with(site: Site, cmdb: HttpsServer, **changes: object) -> AsyncIterator[Running]:
    add_source(site, cmdb, **changes)
    async with running_gateway(site) as running:
        yield running


async def check(running: Running, vm: str, destination: str = "b") -> dict[str, Any]:
    answer = await running.person("alice").post("/v1/decisions", json={"vm": vm, "destination": destination})
    assert answer.status_code == 200, answer.text
    return answer.json()["decision"]  # type: ignore[no-any-return]


async def test_a_decision_says_of_each_fact_where_it_is_from_and_how_old_and_so_does_its_record(
    site: Site, cmdb: HttpsServer
) -> None:
    async with gateway_with(site, cmdb) as running:
        decision = await check(running, "web")
        told = {(fact["of"], fact["fact"]): fact for fact in decision["facts"]}
        assert told["web", "zone"] | {"age_seconds": 0} == {
            "of": "web", "fact": "zone", "value": "test", "source": "inventory", "age_seconds": 0,
        }  # fmt: skip
        assert told["web", "zone"]["age_seconds"] < 60
        assert told["b", "jurisdiction"]["value"] == "DE"
        (record,) = await running.records("decision.check")
        vm = next(each for each in record["details"]["policy_entities"] if each["uid"]["type"] == "Sealane::Vm")
        assert vm["attrs"]["provenance"]["classification"]["source"] == "inventory"


async def test_a_vm_created_a_minute_ago_is_known_and_may_move(site: Site, cmdb: HttpsServer) -> None:
    async with gateway_with(site, cmdb) as running:
        publish(cmdb, NEW)
        await running.poll("a")
        answer = await running.person("alice").post("/v1/migrations", json={"vm": "newborn", "destination": "b"})
        assert answer.status_code == 201, answer.text
        sources = {(fact["of"], fact["source"]) for fact in answer.json()["decision"]["facts"]}
        assert ("newborn", "cmdb") in sources
        (record,) = await running.records("inventory.source")
        assert (record["outcome"], record["details"]["source"], record["details"]["vms"]) == ("completed", "cmdb", 1)


async def test_what_a_source_says_is_unknown_when_it_has_been_silent_for_too_long(
    site: Site, cmdb: HttpsServer
) -> None:
    publish(cmdb, NEW)
    async with gateway_with(site, cmdb, max_age_seconds=2, refresh_seconds=1) as running:
        assert (await check(running, "newborn"))["allowed"] is True
        cmdb.answer = lambda _request: Answer(status=503)
        with trio.fail_after(20):
            while (decision := await check(running, "newborn"))["allowed"]:
                await trio.sleep(0.1)
        assert "silent for more than 2 s" in decision["denied_because"]
        assert "503" not in decision["denied_because"]  # that is for the operator
        shown = (await running.person("alice").get("/v1/inventory")).json()["sources"][1]
        assert (shown["believed"], shown["failure"]) == (False, "answered with status 503")
        # What the file above it tells whole is not concerned.
        assert (await check(running, "web"))["allowed"] is True
        publish(cmdb, NEW)
        with trio.fail_after(20):
            while not (await check(running, "newborn"))["allowed"]:
                await trio.sleep(0.1)
        outcomes = [record["outcome"] for record in await running.records("inventory.source")]
        assert outcomes == ["failed", "completed"]


async def test_a_source_below_cannot_change_what_one_above_it_says(site: Site, cmdb: HttpsServer) -> None:
    publish(cmdb, {"uuid": UUID_WEB, "name": "web", "zone": "production", "classification": "public"})
    async with gateway_with(site, cmdb) as running:
        told = {(fact["of"], fact["fact"]): fact for fact in (await check(running, "web"))["facts"]}
        assert (told["web", "zone"]["value"], told["web", "zone"]["source"]) == ("test", "inventory")


async def test_a_source_that_is_down_at_the_start_does_not_keep_the_gateway_from_it(
    site: Site, cmdb: HttpsServer
) -> None:
    cmdb.answer = lambda _request: Answer(status=500)
    async with gateway_with(site, cmdb) as running:
        decision = await check(running, "newborn")
        assert decision["allowed"] is False
        assert "cmdb has not answered yet" in decision["denied_because"]


async def test_a_source_that_hangs_at_the_start_counts_as_soon_as_it_answers(site: Site, cmdb: HttpsServer) -> None:
    publish(cmdb, NEW)
    at_last, tell = threading.Event(), cmdb.answer

    def hang(request: Request) -> Answer:
        at_last.wait(60)
        return tell(request)

    cmdb.answer = hang
    try:
        async with gateway_with(site, cmdb) as running:
            decision = await check(running, "newborn")
            assert decision["allowed"] is False
            assert "cmdb has not answered yet" in decision["denied_because"]
            at_last.set()
            with trio.fail_after(20):
                while not (await check(running, "newborn"))["allowed"]:
                    await trio.sleep(0.1)
    finally:
        at_last.set()


async def test_the_start_waits_two_seconds_for_a_source_that_hangs_and_says_so(
    mock_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    mock_clock.autojump_threshold = 0.01
    hanging = Stub("cmdb", None, gate=trio.Event())
    await read_at_start(Sources([Stub(MAIN, everything()), hanging]))
    assert trio.current_time() == START_SECONDS
    said = capsys.readouterr().out
    assert "inventory source unavailable" in said
    assert "source=cmdb" in said
    assert "no answer within 2 s" in said


async def test_the_file_that_must_be_there_and_hangs_is_told(mock_clock: MockClock) -> None:
    mock_clock.autojump_threshold = 0.01
    with pytest.raises(StartRefused, match="no answer within 5 s"):
        await read_at_start(Sources([Stub(MAIN, everything(), gate=trio.Event())]))


async def test_the_inventory_is_shown_to_whom_policy_lets_see_it(site: Site, cmdb: HttpsServer) -> None:
    publish(
        cmdb, NEW, {"uuid": "1" * 8 + "-2222-4333-8444-666666666666", "name": "web", "zone": "t", "classification": "i"}
    )
    async with gateway_with(site, cmdb) as running:
        alice = running.person("alice")
        whole = (await alice.get("/v1/inventory")).json()
        assert [(each["name"], each["believed"]) for each in whole["sources"]] == [("inventory", True), ("cmdb", True)]
        assert any("2 VMs are called 'web'" in problem for problem in whole["problems"])
        found = (await alice.get("/v1/inventory/named", params={"name": UUID_NEW})).json()
        assert found["vm"]["facts"]["zone"]["source"] == "cmdb"
        assert found["vm"]["host"] == "a"
        assert (
            "2 VMs have that name"
            in (await alice.get("/v1/inventory/named", params={"name": "web"})).json()["unknown_because"]
        )
        assert (await alice.get("/v1/inventory/named", params={"name": "b"})).json()["host"]["name"] == "b"
        assert (await alice.get("/v1/inventory/named", params={"name": "nothing"})).status_code == 404
        bob = running.person("bob")
        for path in ("/v1/inventory", "/v1/inventory/named?name=web"):
            assert (await bob.get(path)).status_code == 403
        assert [record["outcome"] for record in await running.records("inventory.read")] == ["denied", "denied"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "cmdb"', 'name = "inventory"', "same name"),
        ('name = "cmdb"', 'name = "c m"', "source"),
        ("https://", "http://", "https://"),
        ("max_age_seconds = 600", "max_age_seconds = 300", "longer than refresh_seconds"),
        ('kind = "http"', 'kind = "ftp"', "kind"),
    ],
)
def test_a_source_that_cannot_work_is_refused_at_the_start(
    site: Site, cmdb: HttpsServer, old: str, new: str, words: str
) -> None:
    add_source(site, cmdb)
    site.gateway_config.write_text(site.gateway_config.read_text().replace(old, new))
    with pytest.raises(ConfigRefused, match=words):
        load(site.gateway_config)


async def test_netbox_is_a_source_as_the_operator_describes_its_fields(site: Site, cmdb: HttpsServer) -> None:
    page = {"count": 1, "results": [NETBOX_VM]}
    cmdb.answer = lambda request: Answer(
        json.dumps(page).encode(), status=200 if request.headers.get("authorization") == "Token s3cret" else 403
    )
    (site.directory / "token").write_text("s3cret\n")
    (site.directory / "token").chmod(0o600)
    site.gateway_config.write_text(
        f"""{site.gateway_config.read_text()}
[[inventory.sources]]
name = "netbox"
kind = "netbox"
url = "{cmdb.url}/"
trust_bundle = "{cmdb.trust_bundle}"
token_file = "token"
zone = "tenant.slug"
zones = {{ "prod-tenant" = "test" }}
"""
    )
    async with running_gateway(site) as running:
        decision = await check(running, "ledger-db")
        told = {(fact["of"], fact["fact"]): (fact["value"], fact["source"]) for fact in decision["facts"]}
        assert told["ledger-db", "zone"] == ("test", "netbox")
        assert told["ledger-db", "classification"] == ("restricted", "netbox")


async def test_a_host_cannot_say_what_a_vm_is(running: Running) -> None:
    guest = {
        "uuid": UUID_WEB, "name": "web", "presence": "active", "run_state": "running", "is_sure": True,
        "arrival": "found", "since_ms_ago": 0, "seen_ms_ago": 0, "devices": [],
    }  # fmt: skip
    report = {
        "epoch": "0" * 32, "sequence": 1, "full": True, "more": False, "report_seconds": 10, "confirmed_ms_ago": 0,
        "guests": [{**guest, "zone": "production"}], "gone": [],
    }  # fmt: skip
    relay = running.client("a")
    answer = await relay.post("/v1/relay/placement", json=report)
    assert answer.status_code == 400
    assert "guests.0.zone" in answer.json()["error"]["message"]
    assert (await relay.post("/v1/relay/placement", json={**report, "guests": [guest]})).status_code == 200
    told = {(fact["of"], fact["fact"]): fact["source"] for fact in (await check(running, "web"))["facts"]}
    assert told["web", "zone"] == told["web", "classification"] == "inventory"
