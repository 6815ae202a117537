"""Calls of many hosts at one gateway, each from an address of its own, as cheaply as Python can make them.

In a process of their own (`callers`), so that what is measured is the gateway's work and not that of who calls it.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import msgspec

from bench.harness import BenchError
from transport.link_version import HEADER, NEWEST

SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """`body` None: a GET. `identity`: certificate and key of the host that calls; None for one that has none yet."""

    path: str
    body: dict[str, object] | None = None
    identity: tuple[Path, Path] | None = None


@dataclass(frozen=True, slots=True)
class Where:
    host: str
    port: int
    ca: Path


@contextmanager
def callers() -> Iterator[ProcessPoolExecutor]:
    """One process, ready: its start is not measured."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        pool.submit(time.monotonic).result(SECONDS)
        yield pool


def call_all(where: Where, callings: Sequence[Sequence[Call]], at_once: int, each_seconds: float = 0.0) -> float:
    """Seconds that it took. One host makes the calls of one item, one after the other, each on a new connection.

    `each_seconds`: one host begins so long after the other; 0: as soon as one of the `at_once` is done. BenchError.
    """
    plain = ssl.create_default_context(cafile=str(where.ca))
    prepared = [[(_request(call), _context(plain, where, call)) for call in calls] for calls in callings]
    began = time.perf_counter()

    def one(number: int) -> None:
        time.sleep(max(0.0, began + number * each_seconds - time.perf_counter()))
        for request, context in prepared[number]:
            with _connect(where, number, context) as connection:
                _exchange(connection, request)

    _all(one, len(prepared), at_once)
    return time.perf_counter() - began


def call_on_open(where: Where, calls: Sequence[Call], at_once: int) -> float:
    """Seconds that it took: one call of each host, on connections that are open, as a relay's is. BenchError."""
    plain = ssl.create_default_context(cafile=str(where.ca))
    requests = [_request(call) for call in calls]
    with ExitStack() as stack:
        contexts = [_context(plain, where, call) for call in calls]
        opened = [stack.enter_context(_connect(where, number, each)) for number, each in enumerate(contexts)]
        began = time.perf_counter()
        _all(lambda number: _exchange(opened[number], requests[number]), len(calls), at_once)
        return time.perf_counter() - began


def _all(work: Callable[[int], None], count: int, at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as threads:
        for done in [threads.submit(work, number) for number in range(count)]:
            done.result()


def _context(plain: ssl.SSLContext, where: Where, call: Call) -> ssl.SSLContext:
    if call.identity is None:
        return plain
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(where.ca)
    context.load_cert_chain(*call.identity)
    return context


def _request(call: Call) -> bytes:
    body = b"" if call.body is None else msgspec.json.encode(call.body)
    lines = (
        f"{'GET' if call.body is None else 'POST'} {call.path} HTTP/1.1",
        "host: localhost",
        f"{HEADER}: {NEWEST}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _connect(where: Where, number: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    """From an address of its own: a gateway gives each a few connections only."""
    source = f"127.10.{number // 250 % 250}.{number % 250 + 1}"
    bare = socket.create_connection((where.host, where.port), SECONDS, (source, 0))
    return context.wrap_socket(bare, server_hostname=where.host)


def _exchange(connection: ssl.SSLSocket, request: bytes) -> None:
    connection.sendall(request)
    answer = bytearray()
    while not _is_whole(answer):
        if not (data := connection.recv(65_536)):
            raise BenchError("the gateway hung up")
        answer += data
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise BenchError(f"the gateway answered {bytes(answer[:800])!r}")


def _is_whole(answer: bytearray) -> bool:
    head, blank, body = answer.partition(b"\r\n\r\n")
    if not blank:
        return False
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return len(body) >= int(length or b"0")
