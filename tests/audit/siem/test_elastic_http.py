"""What a hostile Elasticsearch may answer, over real sockets: it costs a request, and neither memory nor a thread."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import elastic_transport
import pytest
from elastic_transport import NodeConfig
from elasticsearch import Elasticsearch

from audit.query.tree import All
from audit.siem.elastic import ElasticSink
from audit.siem.elastic_http import MAX_ANSWER_BYTES, AnswerTooLarge, BoundedNode
from audit.siem.sink import SinkAway
from tests.audit.samples import ORIGIN
from tests.audit.siem.sink_contract import documents

HEAD = b"HTTP/1.1 200 OK\r\nx-elastic-product: Elasticsearch\r\ncontent-type: application/json\r\n"


@contextmanager
def answering(parts: Callable[[bytes], Iterable[bytes]]) -> Iterator[int]:
    """The port of a server that answers each request (its first bytes are given) with `parts`, and then hangs up."""
    server = socket.create_server(("127.0.0.1", 0))
    is_over = threading.Event()

    def serve() -> None:
        while not is_over.is_set():
            connection, _ = server.accept()
            with connection:
                try:
                    for part in parts(connection.recv(65_536)):
                        connection.sendall(part)
                        if is_over.is_set():
                            return
                except OSError:
                    continue  # it has had enough of us

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        is_over.set()
        socket.create_connection(server.getsockname()).close()
        thread.join(10)
        server.close()


def node(port: int, seconds: float = 5.0) -> BoundedNode:
    return BoundedNode(NodeConfig("http", "127.0.0.1", port, request_timeout=seconds))


def said(answer: Any) -> list[bytes]:
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return [HEAD + b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body) + body]


def test_an_answer_without_an_end_is_read_up_to_the_limit() -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    endless = itertools.chain([HEAD + b"transfer-encoding: chunked\r\n\r\n"], itertools.repeat(chunk))
    with answering(lambda _: endless) as port, pytest.raises(AnswerTooLarge) as told:
        node(port, 30.0).perform_request("GET", "/")
    assert told.value.message == f"its answer is over {MAX_ANSWER_BYTES} bytes"


def test_a_packed_answer_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(50 * 1024 * 1024))
    packed = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb) + bomb
    with answering(lambda _: [packed]) as port, pytest.raises(elastic_transport.ConnectionError) as told:
        node(port).perform_request("GET", "/")
    assert "packed" in told.value.message


def test_an_answer_byte_by_byte_has_one_deadline() -> None:
    def drip(_request: bytes) -> Iterator[bytes]:
        yield HEAD + b"transfer-encoding: chunked\r\n\r\n"
        while True:
            time.sleep(0.02)  # what the attack is made of
            yield b"1\r\nx\r\n"

    began = time.monotonic()
    with answering(drip) as port, pytest.raises(elastic_transport.ConnectionTimeout):
        node(port, 0.3).perform_request("GET", "/")
    assert time.monotonic() - began < 5


def test_a_redirect_is_not_followed() -> None:
    asked: list[bytes] = []

    def redirect(request: bytes) -> list[bytes]:
        asked.append(request)
        return [b"HTTP/1.1 307 Temporary\r\nlocation: /elsewhere\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"]

    with answering(redirect) as port:
        assert node(port).perform_request("POST", "/_bulk", body=b"x").meta.status == 307
    assert len([each for each in asked if each]) == 1


def test_an_answer_that_ends_too_early_is_none() -> None:
    short = HEAD + b"content-length: 100\r\n\r\n{}"
    with answering(lambda _: [short]) as port, pytest.raises(elastic_transport.TransportError):
        node(port).perform_request("GET", "/")


def sink(port: int) -> ElasticSink:
    client = Elasticsearch(f"http://127.0.0.1:{port}", node_class=BoundedNode, request_timeout=5, max_retries=0)
    return ElasticSink("elastic", client, "test")


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"hits": {}},
        {"hits": {"hits": "abc"}},
        {"hits": {"hits": [{"_id": 1}]}},
        {"hits": {"hits": [{"_index": "i", "_id": "x", "_source": {}}] * 1001}},
        b"[" * 100_000,
        b'{"hits":' + b"9" * 10_000 + b"}",
        b"\xff",
    ],
)
async def test_what_is_no_answer_to_a_search_is_told_as_such(answer: Any) -> None:
    def serve(request: bytes) -> list[bytes]:
        return said({"id": "p"} if b"/_pit" in request.split(b"\r\n")[0] else answer)

    with answering(serve) as port:
        one = sink(port)
        with pytest.raises(SinkAway):
            await one.read_back(0, 10, ORIGIN)
        await one.close()


async def test_a_search_that_never_ends_is_ended() -> None:
    hits = [{"_index": "i", "_id": "x", "_source": {}, "sort": [1]}] * 1000

    def serve(request: bytes) -> list[bytes]:
        return said({"id": "p"} if b"/_pit" in request.split(b"\r\n")[0] else {"hits": {"hits": hits}})

    with answering(serve) as port:
        one = sink(port)
        with pytest.raises(SinkAway, match="where far fewer can be"):
            await one.read_back(0, 10, ORIGIN)
        await one.close()


@pytest.mark.parametrize("told", [{"items": {}}, {"items": [{"create": {"_id": None}}]}, [], "x", {"items": [7]}])
async def test_lies_about_single_documents_are_not_believed(told: Any) -> None:
    with answering(lambda request: said(told if b"_bulk" in request.split(b"\r\n")[0] else {})) as port:
        one = sink(port)
        with pytest.raises(SinkAway):
            await one.deliver(documents(0, 1))
        await one.close()


@pytest.mark.parametrize(
    "number", [b"1e999", b"Infinity", b"NaN", b"-1", b'"7"', b"true", b"1.5", b"null", b"[]", b"1" + b"0" * 400]
)
async def test_what_is_no_number_of_documents_is_told_as_such(number: bytes) -> None:
    with answering(lambda _: said(b'{"count":' + number + b"}")) as port:
        one = sink(port)
        with pytest.raises(SinkAway):
            await one.count(All(), ORIGIN)
        await one.close()


@pytest.mark.parametrize(
    "buckets",
    [
        b'[{"key":1e999,"outcomes":{"buckets":[],"sum_other_doc_count":0}}]',
        b'[{"key":0,"outcomes":{"buckets":[{"key":"x","doc_count":1e999}],"sum_other_doc_count":0}}]',
        b'[{"key":9223372036854775807,"outcomes":{"buckets":[{"key":"x","doc_count":1}],"sum_other_doc_count":0}}]',
        b'[{"key":0,"outcomes":{"buckets":[{"key":"x","doc_count":-1}],"sum_other_doc_count":0}}]',
    ],
)
async def test_what_is_no_histogram_is_told_as_such(buckets: bytes) -> None:
    answer = b'{"aggregations":{"times":{"buckets":' + buckets + b"}}}"
    with answering(lambda _: said(answer)) as port:
        one = sink(port)
        with pytest.raises(SinkAway):
            await one.histogram(All(), ORIGIN, 0, 10**6, 10)
        await one.close()
