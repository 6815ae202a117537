"""Bodies that are read only once somebody wants them, with a server and an application of a few lines."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from gateway.api.bounds import AT_ONCE_BYTES, MAX_LARGE_AT_ONCE, BoundedBody
from gateway.errors import Overloaded, RequestTooSlow

SECONDS = 10.0
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/policy/publications",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}


async def test_whoever_waits_for_others_is_not_told_that_they_are_slow(autojump_clock: MockClock) -> None:
    told: list[str] = []

    async def wanting(_scope: Any, receive: Any, _send: Any) -> None:
        try:
            await receive()
        except (RequestTooSlow, Overloaded) as error:
            told.append(f"{trio.current_time() - begun:.0f} {error.code}")

    async def nothing() -> Any:
        await trio.sleep_forever()

    async def send(_message: Any) -> None:
        pass

    bounded, begun = BoundedBody(wanting, SECONDS), trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_LARGE_AT_ONCE):
            nursery.start_soon(bounded, SCOPE, nothing, send)
        await trio.sleep(1)
        begun += 1  # of those who come now
        for _ in range(MAX_LARGE_AT_ONCE + 1):
            nursery.start_soon(bounded, SCOPE, nothing, send)
    assert sorted(told) == ["10 overloaded", "19 too_slow", "19 too_slow", "9 too_slow", "9 too_slow"]


async def test_whoever_has_a_certificate_does_not_wait_for_strangers_bodies_and_nobody_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go, answers = threading.Event(), dict[str, int]()
    monkeypatch.setattr("policy.strict_json.decode", lambda body: let_go.wait(20) if b"stranger" in body else None)

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "path": scope["path"]})

    async def ask(who: str, certificate: bytes | None) -> None:
        body = who.encode() * AT_ONCE_BYTES

        async def receive() -> Any:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answers[who] = message["status"]

        scope = {**SCOPE, "path": "/v1/token", "state": {"peer_certificate": certificate}}
        await bounded(scope, receive, send)

    bounded = BoundedBody(app, 0.2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "stranger 1", None)
        await trio.testing.wait_all_tasks_blocked()
        await ask("stranger 2", None)
        await ask("a host", b"DER")
        let_go.set()
    assert answers == {"stranger 2": 503, "a host": 204, "stranger 1": 204}
