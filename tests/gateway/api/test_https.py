"""The listener and its bounds, by hand-written bytes where a client library would be too polite."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from gateway.api.bounds import MAX_BODY_BYTES
from gateway.starter import Site
from tests.gateway.conftest import Running, running_gateway

pytestmark = pytest.mark.whole


def configured(site: Site, limits: str) -> Site:
    site.gateway_config.write_text(f"{site.gateway_config.read_text()}\n[limits]\n{limits}\n")
    return site


@asynccontextmanager
async def connected(running: Running) -> AsyncIterator[trio.SSLStream[trio.SocketStream]]:
    host, _, port = running.gateway.listen.rpartition(":")
    context = ssl.create_default_context(cafile=str(running.site.ca))
    stream = await trio.open_ssl_over_tcp_stream(host, int(port), ssl_context=context, https_compatible=True)
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


async def answer_of(stream: trio.SSLStream[trio.SocketStream]) -> bytes:
    """Everything until the gateway closes."""
    got = b""
    with trio.fail_after(10):
        while True:
            try:
                chunk = await stream.receive_some()
            except trio.BrokenResourceError:
                return got
            if not chunk:
                return got
            got += bytes(chunk)


async def test_tls_1_2_is_refused(running: Running) -> None:
    context = ssl.create_default_context(cafile=str(running.site.ca))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    host, _, port = running.gateway.listen.rpartition(":")
    stream = await trio.open_ssl_over_tcp_stream(host, int(port), ssl_context=context)
    with pytest.raises(trio.BrokenResourceError):
        await stream.do_handshake()
    await trio.aclose_forcefully(stream)


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(running: Running) -> None:
    answer = await running.person("alice").post("/v1/migrations", content=b"x" * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 4 * 1024 * 1024])
async def test_a_body_of_unsaid_length_is_cut_off_and_the_connection_with_it(running: Running, size: int) -> None:
    async with connected(running) as stream:
        await stream.send_all(b"POST /v1/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        got: list[bytes] = []
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                got.append(await answer_of(stream))

            nursery.start_soon(read)
            try:
                for _ in range(size // 1024):
                    await stream.send_all(b"400\r\n" + b"x" * 1024 + b"\r\n")
                await stream.send_all(b"1\r\nx\r\n")
            except trio.BrokenResourceError:
                pass  # hung up on while sending: as it should be
        assert b" 413 " in got[0]
    assert (await running.client().get("/v1/health")).status_code == 200


async def test_a_body_that_does_not_come_is_not_waited_for(site: Site) -> None:
    async with running_gateway(configured(site, "request_seconds = 1")) as running, connected(running) as stream:
        await stream.send_all(b"POST /v1/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in await answer_of(stream)


async def test_a_handshake_that_does_not_come_is_not_waited_for(site: Site) -> None:
    async with running_gateway(configured(site, "handshake_seconds = 1")) as running:
        host, _, port = running.gateway.listen.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
        await stream.aclose()


async def test_connections_are_capped_per_address_and_free_again_when_they_close(site: Site) -> None:
    async with running_gateway(configured(site, "connections_per_address = 2")) as running:
        async with connected(running) as first, connected(running) as second:
            for stream in (first, second):
                await stream.do_handshake()
            host, _, port = running.gateway.listen.rpartition(":")
            third = await trio.open_tcp_stream(host, int(port))
            with trio.fail_after(5):
                try:
                    assert await third.receive_some() == b""
                except trio.BrokenResourceError:
                    pass
            await third.aclose()
        with trio.fail_after(5):
            while running.gateway.reloader._server._places:
                await trio.sleep(0.01)
        assert (await running.client().get("/v1/health")).status_code == 200


async def test_who_resets_a_connection_before_it_is_taken_ends_nothing_else(running: Running) -> None:
    host, _, port = running.gateway.listen.rpartition(":")
    for _ in range(3):  # no pause for the gateway, which runs in this thread, between the connection and its end
        with socket.create_connection((host, int(port))) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert (await running.client().get("/v1/health")).status_code == 200


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"vm": "web", "destination": "b", "force": True}, "force"),
        ({"vm": "web"}, "destination"),
        ({"vm": 5, "destination": "b"}, "vm"),
        ({"vm": "", "destination": "b"}, "vm"),
        ({"vm": "web", "destination": "b", "ports": ["Libvirt!"]}, "ports"),
        ({"vm": "web", "destination": "b", "reason": "x" * 1025}, "reason"),
        ({"vm": "we\u202eb", "destination": "b"}, "vm"),
        ([], "body"),
    ],
)
async def test_what_is_wrong_with_a_request_is_named(running: Running, body: object, named: str) -> None:
    answer = await running.person("alice").post("/v1/migrations", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["who_must_act"]) == ("bad_request", "requester")
    assert named in error["message"]
    assert await running.records("migration.decision") == []


async def test_a_password_is_never_repeated_in_an_answer(running: Running) -> None:
    answer = await running.client().post("/v1/token", json={"username": "alice", "password": ["hunter2"]})
    assert answer.status_code == 400
    assert "hunter2" not in answer.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b'{"vm": "web\xff", "destination": "b"}',
        b'"x"',
        b"[" * 60_000,
        b'{"vm": NaN, "destination": "b"}',
    ],
)
async def test_what_is_no_json_is_refused(running: Running, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await running.person("alice").post("/v1/migrations", content=content, headers=headers)
    assert answer.status_code == 400, answer.text


async def test_an_unknown_call_or_method_is_answered_in_the_same_form(running: Running) -> None:
    for method, path, status in (("GET", "/v2/x", 404), ("DELETE", "/v1/migrations", 405)):
        answer = await running.client().request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"code", "message", "who_must_act", "next_step"}


async def test_an_unforeseen_error_is_a_500_that_tells_nothing(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_args: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr("gateway.api.people_calls.admit", broken)
    answer = await running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 500
    assert answer.json()["error"]["who_must_act"] == "the developers"
    assert "secret detail" not in answer.text


async def test_the_interface_describes_itself(running: Running) -> None:
    document = (await running.client().get("/openapi.json")).json()
    move = document["components"]["schemas"]["Move"]
    assert move["additionalProperties"] is False
    assert set(document["paths"]) >= {
        "/v1/token",
        "/v1/migrations",
        "/v1/decisions",
        "/v1/records",
        "/v1/checkpoint",
        "/v1/proofs/inclusion",
        "/v1/relay/poll",
        "/v1/receipts",
        "/v1/health",
    }


async def test_anyone_may_ask_for_health_and_learns_little(running: Running) -> None:
    document = (await running.client().get("/v1/health")).json()
    assert set(document) == {"status", "name", "log_size", "log_origin"}
