"""Bodies that are no JSON, or JSON that nobody should send: whoever sent them is told, and nobody else notices."""

from __future__ import annotations

import json

import httpx
import pytest

from gateway.api.bounds import LARGE_BODIES
from tests.gateway.conftest import Running

pytestmark = pytest.mark.whole
JSON = "application/json"
BODIES = {
    "no text": b'{"vm":"\xff"}',
    "another encoding": '{"vm":"web","destination":"b"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"vm":"web","destination":"b"}',
    "nested": b'{"vm":' + b"[" * 30_000,
    "nested and whole": b'{"vm":' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "nested a little too deeply": b'{"vm":' + b"[" * 17 + b"]" * 17 + b"}",
    "half a surrogate pair": b'{"vm":"\\ud800","destination":"\\udfff"}',
    "half a pair in the log's own words": b'{"vm":"web","destination":"b","reason":"x\\ud800"}',
    "half a pair in a user's name": b'{"username":"\\ud800","password":"\\ud800"}',
    "half a pair in a name": b'{"\\ud800":1}',
    "a number of 10,000 digits": b'{"vm":' + b"9" * 10_000 + b"}",
    "not a number": b'{"vm":NaN}',
    "infinity": b'{"vm":-Infinity}',
    "more than a float holds": b'{"vm":1e999}',
    "two documents": b"{}{}",
    "nothing but blanks": b"  ",
}
TWICE = {
    "a member twice": b'{"vm":"web","vm":"ledger","destination":"b"}',
    "twice in other spellings": b'{"vm":"web","\\u0076m":"ledger","destination":"b"}',
    "twice within": b'{"vm":"web","destination":"b","how":{"preempt":true,"preempt":false}}',
}
OTHER_TYPES = (None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-16", "text/json")
PEOPLES_WORDS = {"grant_id": "g1", "name": "a", "what": "permit-key", "step": "begin", "migration_id": "m1"}


async def calls(running: Running) -> list[tuple[httpx.AsyncClient, str]]:
    """Every call of the gateway that takes a body, and who makes it."""
    alice, relay = running.person("alice"), running.client("a")
    paths = (await alice.get("/openapi.json")).json()["paths"]
    found = []
    for path, methods in paths.items():
        if "post" in methods and path not in LARGE_BODIES:
            is_relays = path.startswith("/v1/relay/") or path == "/v1/receipts"
            filled = path.format(evacuation_id="e1", **PEOPLES_WORDS)
            found.append((relay if is_relays else alice, filled))
    assert len(found) >= 34
    return found


async def test_whatever_the_body_is_whoever_sent_it_is_told_and_the_gateway_goes_on(running: Running) -> None:
    before = len(await running.entries())
    for client, path in await calls(running):
        for what, body in {**BODIES, **TWICE}.items():
            answer = await client.post(path, content=body, headers={"content-type": JSON})
            assert answer.status_code == 400, (what, path, answer.status_code, answer.text[:200])
            assert answer.json()["error"]["who_must_act"] == "requester"
            assert (what not in TWICE) or "duplicate JSON members" in answer.text, (what, path, answer.text)
    alice = running.person("alice")
    assert (await alice.get("/v1/log/checkpoint")).status_code == 200
    assert len(await running.entries()) == before


async def test_a_body_that_does_not_say_that_it_is_json_is_none(running: Running) -> None:
    """A page of somebody else's can have a browser send text/plain without asking first, with a certificate."""
    for client, path in await calls(running):
        for what in OTHER_TYPES:
            headers = {} if what is None else {"content-type": what}
            answer = await client.post(path, content=b'{"vm":"web","destination":"b"}', headers=headers)
            assert answer.status_code == 400, (what, path, answer.status_code, answer.text[:200])
            assert "content-type" in answer.json()["error"]["message"], (what, path)
    twice = [("content-type", JSON), ("content-type", "text/plain")]
    answer = await running.person("alice").post("/v1/decisions", content=b"{}", headers=httpx.Headers(twice))
    assert answer.status_code == 400


async def test_a_body_of_json_may_say_its_one_encoding(running: Running) -> None:
    body = json.dumps({"vm": "web", "destination": "b"}).encode()
    for what in ("application/json; charset=utf-8", "Application/JSON;charset=UTF-8"):
        answer = await running.person("alice").post("/v1/decisions", content=body, headers={"content-type": what})
        assert answer.status_code == 200, answer.text
