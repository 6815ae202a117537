"""HTTP by hand: what two readers of one connection could take for different requests is refused, and ends it."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path

import pytest
import trio

from gateway.starter import Site
from gateway.throttle import Throttle
from tests.gateway.api.test_https import answer_of, configured, connected
from tests.gateway.conftest import Running, running_gateway

pytestmark = pytest.mark.whole
NEXT = b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
TOKEN = b"POST /v1/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
SMUGGLED = {
    "a length beside chunks": TOKEN + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "chunks of HTTP/1.0": TOKEN.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two lengths": TOKEN + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length with a sign": TOKEN + b"Content-Length: +2\r\n\r\n{}",
    "a length in hexadecimal": TOKEN + b"Content-Length: 0x2\r\n\r\n{}",
    "an encoding that nobody knows": TOKEN + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks in disguise": TOKEN + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a chunk of no length": TOKEN + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
    "a blank before the colon": TOKEN + b"Content-Length : 2\r\n\r\n{}",
    "two hosts": b"GET /v1/health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no host": b"GET /v1/health HTTP/1.1\r\n\r\n",
    "two tokens": b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
    "HTTP/2 from the start": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5),
    "an upgrade to HTTP/2": b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    "a WebSocket": b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "a tunnel": b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes that are no path": b"GET /v1/siem/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "headers beyond all measure": b"GET /v1/health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n",
    "HTTP/0.9": b"GET /v1/health\r\n\r\n",
}


async def said_to(running: Running, data: bytes) -> bytes:
    async with connected(running) as stream:
        await stream.send_all(data)
        return await answer_of(stream)


async def test_what_could_hide_another_request_is_refused_and_nothing_after_it_is_heard(running: Running) -> None:
    for what, data in SMUGGLED.items():
        answer = await said_to(running, data + NEXT)
        assert answer[:12] in {b"HTTP/1.1 400", b"HTTP/1.1 431", b"HTTP/1.1 501"}, (what, answer[:80])
        assert answer.count(b"HTTP/1.1") == 1, (what, answer)
    assert (await running.client().get("/v1/health")).status_code == 200
    assert await running.records("token.refused") == []


async def test_requests_that_follow_each_other_are_answered_in_their_order(running: Running) -> None:
    going_on = NEXT.replace(b"Connection: close\r\n", b"")
    answer = await said_to(running, going_on * 2 + going_on.replace(b"health", b"nothing") + NEXT)
    assert [each[:3] for each in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200", b"404", b"200"]


async def test_a_query_that_says_something_twice_is_no_question(running: Running) -> None:
    for query in ("limit=1&limit=200", "vm=web&vm=ledger", "vm=&vm=", "%76m=web&vm=ledger"):
        answer = await running.person("carol").get(f"/v1/records?{query}")
        assert (answer.status_code, "twice" in answer.text) == (400, True), (query, answer.text)
    assert await running.records("audit.read") == []
    for odd in ("vm=%ff%00", "query=%ed%a0%80", "=", "&&", "%"):
        assert (await running.client().get(f"/v1/health?{odd}")).status_code == 200, odd


async def test_nobody_is_sent_to_where_the_host_header_says(running: Running) -> None:
    answer = await said_to(running, b"GET /v1/health/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"evil" not in answer


TRICKS = (
    *("..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "a%0d%0ax: y", "%ff", "x" * 3000, "%F0%9F%98%80"),
    *("%252e%252e", "a;b", "a%3fb", "-1", "1e3", "0x1", "9" * 400),
)


async def test_an_id_that_is_a_trick_is_an_id_that_nobody_knows(running: Running) -> None:
    carol, bob = running.person("carol"), running.person("bob")
    for name in TRICKS:
        for path in ("siem/{}", "siem/{}/quarantine", "migrations/{}", "log/tile/{}", "log/tile/0/{}", "records/{}"):
            answer = await carol.get("/v1/" + path.format(name))
            assert answer.status_code in {400, 403, 404}, (path, name, answer.status_code, answer.text[:200])
        for path in ("hosts/{}/revocation", "rollovers/{}/begin", "break-glass/{}/approve", "migrations/{}/cancel"):
            answer = await bob.post("/v1/" + path.format(name), json={"reason": "x"})
            assert answer.status_code in {400, 403, 404, 409}, (path, name, answer.status_code, answer.text[:200])
    assert (await carol.get("/v1/health")).status_code == 200


def measured() -> tuple[int, int, int]:
    """Of this process, in which gateway and clients run: file descriptors, tasks, objects of what serves a request.

    Not all objects: trio keeps a thousand lapsed deadlines before it looks which of them it may forget.
    """
    gc.collect()
    tasks = trio.lowlevel.current_statistics().tasks_living
    serving = sum(str(type(each).__module__).partition(".")[0] in SERVING for each in gc.get_objects())
    return len(list(Path("/proc/self/fd").iterdir())), tasks, serving


SERVING = {"gateway", "hypercorn", "h11", "starlette", "fastapi", "ssl"}


async def test_nothing_is_left_of_calls_that_were_refused_cut_short_or_left(site: Site) -> None:
    """Many rounds, one kind after the other, and what is held after them is what was held before."""
    async with running_gateway(configured(site, "connections_per_address = 8")) as running:
        # Records of refusals would stay: one a second, however many there are.
        running.gateway.desk.people._refusals._throttle = Throttle(0, 1.0e9, trio.current_time)
        relay = running.client("a")
        assert (await relay.post("/v1/relay/poll", json={"wait_seconds": 0})).status_code == 200
        stranger = running.client()

        async def refused() -> None:
            answers = [
                await stranger.get("/v1/whoami", headers={"authorization": "Bearer a.b.c"}),
                await stranger.post("/v1/token", json={"username": "x", "password": "y", "z": 1}),
                await stranger.post("/v1/relay/poll", json={"wait_seconds": 0}),
                await stranger.get("/v1/nothing"),
            ]
            assert [each.status_code for each in answers] == [401, 400, 403, 404]

        async def cut_short() -> None:
            for head in (TOKEN, TOKEN.replace(b"/token", b"/policy/publications")):
                async with connected(running) as stream:
                    await stream.send_all(head + b"Content-Length: 60000\r\n\r\n" + b"{" * 30_000)

        async def left() -> None:
            """A long poll that nobody waits for: its answer would come in half a minute."""
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(relay.post, "/v1/relay/poll", json={"wait_seconds": 30}))
                while not waits_for_news(running):
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()

        for kind, rounds in ((refused, REFUSED // 4), (cut_short, CUT_SHORT // 2), (left, LEFT)):
            for _ in range(10):
                await kind()
            await gone(running)
            before = measured()
            for _ in range(rounds):
                await kind()
            await gone(running)
            grown = [now - then for now, then in zip(measured(), before, strict=True)]
            assert grown[0] <= 2, (kind.__name__, grown)
            assert grown[1] <= 2, (kind.__name__, grown)
            assert grown[2] <= 20, (kind.__name__, grown)


REFUSED, CUT_SHORT, LEFT = 400, 120, 60  # tried by hand with 8,000, 2,000 and 500: the same


def waits_for_news(running: Running) -> bool:
    host = running.gateway.desk.gate.dispatch._hosts[f"spiffe://{running.site.trust_domain}/host/a"]
    return not host.news.is_set()


async def gone(running: Running) -> None:
    """Until the gateway has noticed: two clients of this test keep a connection each."""
    with trio.fail_after(60):
        while len(running.gateway.reloader._server._places) > 2:
            await trio.sleep(0.01)
