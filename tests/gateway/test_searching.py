"""Questions to a running gateway: the language, totals and histograms, recorded, bounded, never stale."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest
import trio

from audit.index_questions import Questions
from audit.query import Node
from audit.tiles import bundle_path
from gateway.starter import Site
from tests.gateway.conftest import Running, running_gateway


async def ask(running: Running, path: str = "/v1/records", **parameters: Any) -> httpx.Response:
    return await running.person("carol").get(path, params={key: str(value) for key, value in parameters.items()})


async def found(running: Running, query: str, **parameters: Any) -> list[dict[str, Any]]:
    answer = await ask(running, query=query, **parameters)
    assert answer.status_code == 200, answer.text
    return [one["record"] for one in answer.json()["records"]]


async def decide(running: Running, username: str, times: int = 1) -> None:
    for _ in range(times):
        await running.person(username).post("/v1/decisions", json={"vm": "web", "destination": "b"})


async def test_who_has_just_acted_is_found_at_once(running: Running) -> None:
    for count in (1, 2, 3):
        await decide(running, "alice")
        assert len(await found(running, "kind:decision.check who:alice* vm:WEB to:b")) == count


async def test_a_query_is_recorded_with_its_text_before_anything_is_shown(running: Running) -> None:
    text = 'vm:web OR reason:"x y"'
    await found(running, text, count="true", timezone="Europe/Berlin")
    (read,) = await running.records("audit.read")
    asked = read["details"]["read"]["records"]
    assert (asked["query"], asked["timezone"], asked["count"]) == (text, "Europe/Berlin", True)


async def test_totals_and_the_histogram_are_of_everything_not_of_a_page(running: Running) -> None:
    await decide(running, "alice", 5)
    answer = (await ask(running, query="kind:decision.check", limit=2, count="true")).json()
    assert (len(answer["records"]), answer["count"]) == (2, 5)
    histogram = (await ask(running, "/v1/records/histogram", query="kind:decision.check", width_seconds=3600)).json()
    assert sum(one["count"] for one in histogram["buckets"]) == 5
    assert {one["outcome"] for one in histogram["buckets"]} <= {"allowed", "denied"}


async def test_pages_neither_lose_nor_repeat_while_the_log_grows(running: Running) -> None:
    await decide(running, "alice", 6)
    seen: list[int] = []
    after: dict[str, Any] = {}
    while True:
        page = (await ask(running, query="kind:decision.check", limit=2, **after)).json()
        seen += [one["index"] for one in page["records"]]
        await decide(running, "alice")  # and each page is itself recorded
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert len(seen) == 6
    assert seen == sorted(set(seen), reverse=True)


@pytest.mark.parametrize("query", ["hots:a", "vm:(", "a OR b c", "time:never", "(" * 3000, "a " * 300])
async def test_a_malformed_query_is_refused_with_its_position(running: Running, query: str) -> None:
    for path in ("/v1/records", "/v1/records/histogram"):
        answer = await ask(running, path, query=query)
        assert answer.status_code == 400
        assert answer.json()["error"]["who_must_act"] == "requester"
        assert "at character" in answer.json()["error"]["message"]


async def test_a_slow_question_does_not_hold_up_another(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended, real = threading.Event(), threading.Event(), Questions.count

    def slow(self: Questions, where: Node) -> int:
        begun.set()
        assert ended.wait(60)
        return real(self, where)

    monkeypatch.setattr(Questions, "count", slow)
    counts: list[int] = []

    async def count() -> None:
        counts.append((await ask(running, query="kind:decision.check", count="true")).json()["count"])

    await decide(running, "alice", 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        assert await trio.to_thread.run_sync(begun.wait, 60)
        assert len(await found(running, "kind:decision.check")) == 3
        assert counts == []
        ended.set()
    assert counts == [3]


async def test_only_who_may_read_may_ask(running: Running) -> None:
    for path in ("/v1/records?query=vm:web", "/v1/records/histogram"):
        assert (await running.person("alice").get(path)).status_code == 403


async def test_unknown_parameters_and_zones_are_refused(running: Running) -> None:
    for parameters in ({"timezone": "Mars/Base"}, {"buckets": 0}, {"width_seconds": 0}, {"nonsense": 1}):
        assert (await ask(running, "/v1/records/histogram", **parameters)).status_code == 400, parameters


async def test_a_missing_bundle_is_an_operators_matter_and_admissions_go_on(running: Running) -> None:
    await decide(running, "alice", 3)
    tail = running.site.log / "tail" / "0"
    assert tail.exists()
    assert not (running.site.log / bundle_path(0)).exists()
    await found(running, "kind:decision.check")
    hidden = tail.rename(tail.with_name("hidden"))
    answer = await ask(running, query="kind:decision.check")
    hidden.rename(tail)
    assert answer.status_code == 503
    assert answer.json()["error"]["who_must_act"] == "operator"


@pytest.mark.whole
async def test_an_index_that_was_lost_or_spoilt_is_made_anew_at_the_next_start(site: Site) -> None:
    async with running_gateway(site) as running:
        await decide(running, "alice", 2)
        await found(running, "*")
    (path,) = site.directory.rglob("index.sqlite")
    for spoil in (path.unlink, lambda: path.write_bytes(b"no database" * 1000)):
        spoil()
        async with running_gateway(site) as running:
            assert len(await found(running, "kind:decision.check who:alice*")) == 2
            await decide(running, "alice", 0)
