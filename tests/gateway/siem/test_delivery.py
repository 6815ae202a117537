"""A gateway and a real Elasticsearch: from the configuration file to what an auditor sees there."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from audit.siem.elastic import ElasticSink
from gateway.starter import Site
from policy.identity.local import hash_password, person_table
from tests.elasticsearch_node.process import ElasticsearchNode
from tests.gateway.cli.invoking import invoke
from tests.gateway.conftest import CHEAP, Running, running_gateway

pytestmark = [pytest.mark.real, pytest.mark.whole]


@pytest.fixture
def delivering(site: Site, elasticsearch: ElasticsearchNode, request: pytest.FixtureRequest) -> Site:
    """A site whose gateway delivers to indices of this test, with petra of the platform team, who may resend."""
    petra = person_table("petra", "Petra Platform", ("platform-team",), hash_password("not asked for", cost=CHEAP))
    site.people.write_text(f"{site.people.read_text()}\n{petra}")
    name = f"gw{abs(hash(request.node.name)) % 10**9}"
    _, key = elasticsearch.make_api_key(name, f"{name}-*")
    (site.directory / "elastic.key").write_text(f"{key}\n")
    (site.directory / "elastic.key").chmod(0o600)
    with site.gateway_config.open("a") as file:
        file.write(
            f'\n[[siem.sinks]]\nname = "elastic"\nkind = "elasticsearch"\nurl = "{elasticsearch.url}"\n'
            f'api_key_file = "elastic.key"\ntrust_bundle = "{elasticsearch.ca}"\nindices = "{name}"\n'
            "deadline_seconds = 5\ndegraded_seconds = 1\nlongest_pause_seconds = 1\nreconcile_hours = 0\n"
        )
    return site


async def until(happened: Callable[[], Any], seconds: float = 30) -> None:
    with trio.fail_after(seconds):
        while not happened():
            await trio.sleep(0.02)


def delivered(running: Running) -> bool:
    status = running.gateway.delivery.status("elastic")
    return bool(status["lag"] == 0 and status["position"] > 0)


async def finished(running: Running, who: str = "carol") -> dict[str, Any]:
    with trio.fail_after(30):
        while True:
            job = (await running.person(who).get("/v1/siem/elastic")).json()["job"]
            if job["state"] != "running":
                return dict(job)
            await trio.sleep(0.05)


async def test_every_entry_of_a_gateways_log_arrives_and_reconciles(
    delivering: Site, elasticsearch: ElasticsearchNode
) -> None:
    async with running_gateway(delivering) as running:
        migration_id, _ = await running.begin()
        await until(lambda: delivered(running))
        carol = running.person("carol")
        answer = await carol.post("/v1/siem/elastic/reconcile", json={})
        assert answer.status_code == 202, answer.text
        job = await finished(running)
        assert job["result"]["agrees"], job
        assert job["result"]["compared"] >= 3
        await until(lambda: delivered(running))
        (record,) = await running.records("siem.reconciled")
        assert (record["outcome"], record["actor"]["name"]) == ("completed", "Carol Auditor")
        with elasticsearch.client() as admin:
            indices = running.gateway.delivery.shipper("elastic").sink.pattern  # type: ignore[attr-defined]
            admin.indices.refresh(index=indices)
            query = {"term": {"sealane.migration_id": migration_id}}
            hits = admin.search(index=indices, query=query)["hits"]["hits"]
            assert {hit["_source"]["event"]["action"] for hit in hits} == {"migration.decision", "sealane-permit"}


async def test_what_was_deleted_at_the_siem_is_found_recorded_and_resent(
    delivering: Site, elasticsearch: ElasticsearchNode
) -> None:
    async with running_gateway(delivering) as running:
        await until(lambda: delivered(running))
        indices = running.gateway.delivery.shipper("elastic").sink.pattern  # type: ignore[attr-defined]
        with elasticsearch.client() as admin:
            admin.indices.refresh(index=indices)
            (hit,) = admin.search(index=indices, query={"term": {"event.sequence": 0}})["hits"]["hits"]
            admin.delete(index=hit["_index"], id=hit["_id"])
        await running.person("carol").post("/v1/siem/elastic/reconcile", json={})
        job = await finished(running)
        assert job["result"]["missing"] == [0]
        refused = await running.person("carol").post("/v1/siem/elastic/reconcile", json={"repair": True})
        assert refused.status_code == 403
        (record,) = await running.records("siem.reconciled")
        assert (record["outcome"], record["details"]["missing"]) == ("failed", [0])
        await running.person("petra").post("/v1/siem/elastic/reconcile", json={"repair": True})
        job = await finished(running)
        assert (job["result"]["agrees"], job["result"]["repaired"]) == (True, 1)


async def test_what_was_altered_at_the_siem_stays_and_its_resending_says_so(
    delivering: Site, elasticsearch: ElasticsearchNode
) -> None:
    async with running_gateway(delivering) as running:
        await until(lambda: delivered(running))
        indices = running.gateway.delivery.shipper("elastic").sink.pattern  # type: ignore[attr-defined]
        with elasticsearch.client() as admin:
            admin.indices.refresh(index=indices)
            (hit,) = admin.search(index=indices, query={"term": {"event.sequence": 0}})["hits"]["hits"]
            altered = hit["_source"] | {"message": "nothing happened"}
            admin.index(index=hit["_index"], id=hit["_id"], document=altered)
        await running.person("petra").post("/v1/siem/elastic/reconcile", json={"repair": True})
        job = await finished(running)
        assert (job["result"]["altered"][0]["fields"], job["result"]["repaired"]) == (["message"], 0)
        await running.person("petra").post("/v1/siem/elastic/resend", json={"from": 0, "to": 1})
        job = await finished(running)
        assert (job["state"], job["result"]) == ("done", {"sent": 0, "refused": 1})
        (record,) = await running.records("siem.resent")
        assert (record["outcome"], record["details"]["refused"]) == ("failed", 1)


async def test_a_siem_that_is_away_delays_no_admission_and_is_recorded_with_its_duration(
    delivering: Site, elasticsearch: ElasticsearchNode
) -> None:
    elasticsearch.pause()
    try:
        async with running_gateway(delivering) as running:
            await until(lambda: running.gateway.delivery.status("elastic")["state"] == "failing")
            started = trio.current_time()
            await running.begin()
            assert trio.current_time() - started < 5
            with trio.fail_after(30):
                while not await running.records("siem.degraded"):
                    await trio.sleep(0.1)
            elasticsearch.go_on()
            await until(lambda: delivered(running))
            with trio.fail_after(30):
                while not await running.records("siem.recovered"):
                    await trio.sleep(0.1)
            (recovered,) = await running.records("siem.recovered")
            assert recovered["details"]["failing_seconds"] >= 1
            assert running.gateway.delivery.status("elastic")["last_error"]
    finally:
        elasticsearch.go_on()


async def test_a_new_key_is_taken_by_a_reload(delivering: Site, elasticsearch: ElasticsearchNode) -> None:
    key_file = delivering.directory / "elastic.key"
    right = key_file.read_text()
    key_file.write_text("bm90OmFrZXk=\n")
    async with running_gateway(delivering) as running:
        await until(lambda: "API key" in str(running.gateway.delivery.status("elastic")["last_error"]))
        key_file.write_text(right)
        await running.gateway.reload()
        await until(lambda: delivered(running))
        key_file.chmod(0o644)
        await running.gateway.reload()
        *_, record = await running.records("config.reloaded")
        assert "others may read it" in record["details"]["refused"]["siem"]
        await until(lambda: delivered(running))


async def test_a_question_has_the_same_answer_at_the_siem(delivering: Site, elasticsearch: ElasticsearchNode) -> None:
    async with running_gateway(delivering) as running:
        await running.begin()
        await running.person("bob").post("/v1/migrations", json={"vm": "web", "destination": "b", "reason": "why not?"})
        await until(lambda: delivered(running))
        size = running.gateway.committer.size
        shipper = running.gateway.delivery.shipper("elastic")
        assert isinstance(shipper.sink, ElasticSink)
        await shipper.sink.refresh()
        carol = running.person("carol")
        for query in ("", "vm:web", "outcome:denied", 'who:bob reason:"why not"', "kind:sealane-permit", "NOT vm:web"):
            # What is asked here is recorded, so both are asked about the time before.
            asked = {"query": query, "after": size} if query else {"after": size}
            here = (await carol.get("/v1/records", params=asked)).json()
            there = (await carol.get("/v1/records", params={**asked, "on": "elastic"})).json()
            assert here["records"] == there["records"], query
        for query in ("outcome:denied", "kind:migration.*", "kind:nothing"):
            before = f"({query}) index:<{size}"
            here, there = [
                (await carol.get("/v1/records", params={"query": before, "count": "true", **on})).json()
                for on in ({}, {"on": "elastic"})
            ]
            assert here["count"] == there["count"], query
            for width in (7, 3600):
                asked = {"query": before, "width_seconds": width}
                here = (await carol.get("/v1/records/histogram", params=asked)).json()
                there = (await carol.get("/v1/records/histogram", params={**asked, "on": "elastic"})).json()
                assert here["buckets"] == there["buckets"], (query, width)
                assert bool(here["buckets"]) is (query != "kind:nothing")
        first = (await carol.get("/v1/records", params={"after": size, "limit": 2, "on": "elastic"})).json()
        assert first["next"] == first["records"][-1]["index"]


async def test_a_record_that_the_siem_made_up_is_no_answer(delivering: Site, elasticsearch: ElasticsearchNode) -> None:
    async with running_gateway(delivering) as running:
        await until(lambda: delivered(running))
        shipper = running.gateway.delivery.shipper("elastic")
        assert isinstance(shipper.sink, ElasticSink)
        await shipper.sink.refresh()
        with elasticsearch.client() as admin:
            hits = admin.search(index=shipper.sink.pattern, query={"term": {"event.sequence": 0}})["hits"]["hits"]
            forged = hits[0]["_source"]
            forged["event"]["original"] = forged["event"]["original"].replace("gateway.started", "gateway.stopped")
            admin.index(index=hits[0]["_index"], id=hits[0]["_id"], document=forged, refresh=True)
        answer = await running.person("carol").get("/v1/records", params={"on": "elastic"})
        assert answer.status_code == 503
        assert "is no record of this log" in answer.json()["error"]["message"]


async def test_the_command_tells_the_state_reconciles_and_shows_the_quarantine(
    delivering: Site, tmp_path: Path
) -> None:
    home = tmp_path / "home" / ".config" / "sealane"
    home.mkdir(parents=True)
    async with running_gateway(delivering) as running:
        await until(lambda: delivered(running))
        (home / "client.toml").write_text(f'gateway = "{running.url}"\nca = "{delivering.ca}"\n')
        (home / "token.json").touch(0o600)
        (home / "token.json").write_text(running.token("carol") + "\n")

        async def sealane(*arguments: str, code: int = 0) -> str:
            environment = {"HOME": str(tmp_path / "home"), "COLUMNS": "160"}
            run = partial(invoke, *arguments, env=environment)
            result = await trio.to_thread.run_sync(run)
            assert result.exit_code == code, result.output
            return result.output

        status = json.loads(await sealane("siem", "status", "--json"))
        assert (status["sinks"][0]["name"], status["sinks"][0]["state"]) == ("elastic", "delivering")
        assert "delivering" in await sealane("siem", "status")
        assert "AGREES" in await sealane("siem", "reconcile", "elastic")
        assert "0 in quarantine" in await sealane("siem", "quarantine", "elastic")
        assert "denied" in await sealane("siem", "resend", "elastic", "--from", "0", "--to", "1", code=1)
        assert "gateway.started" in await sealane("audit", "query", "kind:gateway.*", "--on", "elastic")
        assert "no sink is called elastik" in await sealane("siem", "reconcile", "elastik", code=1)
