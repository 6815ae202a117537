"""Bodies that are no JSON, or JSON that nobody should send: whoever sent them is told, and nobody else notices."""

from __future__ import annotations

import pytest

from tests.gateway.conftest import Running

pytestmark = pytest.mark.whole
BODIES = {
    "no text": b'{"vm":"\xff"}',
    "nested": b'{"vm":' + b"[" * 30_000,
    "nested and whole": b'{"vm":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "half a surrogate pair": b'{"vm":"\\ud800","destination":"\\udfff"}',
    "half a pair in the log's own words": b'{"vm":"web","destination":"b","reason":"x\\ud800"}',
    "half a pair in a user's name": b'{"username":"\\ud800","password":"\\ud800"}',
    "half a pair in a name": b'{"\\ud800":1}',
    "a number of 10,000 digits": b'{"vm":' + b"9" * 10_000 + b"}",
    "not a number": b'{"vm":NaN}',
    "a list": b"[]",
    "nothing": b"",
}
RELAY_CALLS = (
    "/v1/receipts",
    "/v1/relay/poll",
    "/v1/relay/trust",
    "/v1/relay/renewal",
    "/v1/relay/progress",
    "/v1/relay/admission",
    "/v1/relay/hosts",
    "/v1/relay/placement",
    "/v1/relay/refusals",
    "/v1/relay/permit",
    "/v1/relay/inspection",
    "/v1/relay/evacuation",
    "/v1/relay/evacuation/held",
)
HEADERS = {"content-type": "application/json"}


async def test_whatever_the_body_is_whoever_sent_it_is_told_and_the_gateway_goes_on(running: Running) -> None:
    alice, relay = running.person("alice"), running.client("a")
    for what, body in BODIES.items():
        for client, paths in (
            (alice, ("/v1/migrations", "/v1/decisions", "/v1/token")),
            (relay, RELAY_CALLS),
        ):
            for path in paths:
                answer = await client.post(path, content=body, headers=HEADERS)
                assert answer.status_code == 400, (what, path, answer.status_code, answer.text[:200])
    assert (await alice.get("/v1/log/checkpoint")).status_code == 200
