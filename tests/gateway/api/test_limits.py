"""What [limits] says of long questions and answers is what the gateway goes by."""

from __future__ import annotations

import httpx
import pytest
import trio

from gateway.starter import Site
from tests.gateway.api.test_https import configured
from tests.gateway.conftest import running_gateway

pytestmark = pytest.mark.whole

SINCE = {"since": "2026-01-01T00:00:00.000000Z"}


async def test_a_question_waits_for_its_turn_as_long_as_the_site_says(site: Site) -> None:
    async with running_gateway(configured(site, "turn_seconds = 1")) as running:
        desk, carol = running.gateway.desk, running.person("carol")
        async with desk.reading.spans.of("somebody else"):
            with trio.fail_after(10):
                answer = await carol.post("/v1/reconcile/hosts", json=SINCE)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        assert desk.reading.search.turns.wait_seconds == desk.reading.abroad.wait_seconds == 1
        assert (await carol.post("/v1/reconcile/hosts", json=SINCE)).status_code == 200


async def test_a_long_answer_is_read_within_the_time_that_the_site_gives(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_gateway(configured(site, "long_answer_seconds = 1")) as running:
        assert running.gateway.desk.long_answer_seconds == 1
        monkeypatch.setattr("gateway.api.long_answers.pieces", lambda _content: iter([b"x" * 20_000_000] * 9))
        with trio.fail_after(10), pytest.raises(httpx.RemoteProtocolError):
            async with running.person("carol").stream("POST", "/v1/reconcile/hosts", json=SINCE) as answer:
                await trio.sleep(3)  # while the connection is full
                async for _ in answer.aiter_raw():
                    pass
