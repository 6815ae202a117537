"""Bodies that are read only once somebody wants them, with a server and an application of a few lines."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from gateway.api.bounds import MAX_LARGE_AT_ONCE, BoundedBody
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
