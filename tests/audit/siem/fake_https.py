"""FAKES of HTTPS receivers, in threads of the test: they speak real HTTP over real TLS, and do what the test says.

What a Splunk does beyond HEC's documented answers, nobody can learn from them.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.audit.siem.certificates import Pair
from tests.audit.siem.rsyslog import free_ports

SERVER_NAME = "receiver.test"
WAIT_SECONDS = 10.0


@dataclass(slots=True)
class Asked:
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Said:
    """An answer. `raw` is sent as it is, in place of HTTP."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


class FakeHttps:
    """Answers each request with what `answer` makes of it. Survives `kill` and `start` with what it stored."""

    def __init__(self, pair: Pair, answer: Callable[[Asked], Said]) -> None:
        (self.port,) = free_ports(1)
        self.pair = pair
        self.answer = answer
        self.asked: list[Asked] = []
        self._thawed = threading.Event()
        self._thawed.set()
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pair.certificate, self.pair.key)
        self._server = _Server(("127.0.0.1", self.port), self, context)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def kill(self) -> None:
        """As a killed process: every connection is reset, and nobody listens."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        server.reset_connections()
        assert self._thread is not None
        self._thread.join(WAIT_SECONDS)

    stop = kill

    def freeze(self) -> None:
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    def handle(self, asked: Asked) -> Said:
        self._thawed.wait(WAIT_SECONDS)
        self.asked.append(asked)
        return self.answer(asked)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, where: tuple[str, int], fake: FakeHttps, context: ssl.SSLContext) -> None:
        self.fake = fake
        self._context = context
        self._connections: list[socket.socket] = []
        super().__init__(where, _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        plain, address = super().get_request()
        self._connections.append(plain)
        return plain, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            request.settimeout(WAIT_SECONDS)
            with self._context.wrap_socket(request.dup(), server_side=True) as wrapped:
                super().finish_request(wrapped, client_address)
        except OSError:
            pass  # the client did not like the certificate, or was killed, or the test ended

    def reset_connections(self) -> None:
        for plain in self._connections:
            try:
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                plain.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
            plain.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        said = self.server.fake.handle(Asked(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if said.raw is not None:
            self.wfile.write(said.raw)
            self.close_connection = True
            return
        self.send_response(said.status)
        for name, value in {"content-length": str(len(said.body)), **said.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said.body)

    def log_message(self, *_: object) -> None:
        """Nothing to the test's terminal."""


class FakeSplunk:
    """FAKE of HEC with indexer acknowledgement. `unindexed`: polls that are still answered `false`."""

    def __init__(self, token: str) -> None:
        self.events: list[dict[str, Any]] = []
        self.unindexed = 0
        self.poison: str | None = None
        self.acknowledges = True
        self._token = token
        self._next_ack = 0

    def __call__(self, asked: Asked) -> Said:
        if asked.headers.get("authorization") != f"Splunk {self._token}":
            return _json(403, {"text": "Invalid token", "code": 4})
        if asked.path.startswith("/services/collector/ack?channel="):
            self.unindexed -= 1
            acks = json.loads(asked.body)["acks"]
            return _json(200, {"acks": {str(ack): self.unindexed < 0 for ack in acks}})
        events = _concatenated(asked.body)
        for number, event in enumerate(events):
            if self.poison is not None and self.poison in json.dumps(event):
                return _json(400, {"text": "Invalid data format", "code": 6, "invalid-event-number": number})
        self.events += events
        self._next_ack += 1
        acknowledged = {"ackId": self._next_ack} if self.acknowledges else {}
        return _json(200, {"text": "Success", "code": 0, **acknowledged})


class FakeWebhook:
    """FAKE receiver that keeps all but what contains `poison`."""

    def __init__(self) -> None:
        self.entries: list[Any] = []
        self.poison: bytes | None = None

    def __call__(self, asked: Asked) -> Said:
        if self.poison is not None and self.poison in asked.body:
            return _json(422, {"error": "one of these will never do"})
        self.entries += json.loads(asked.body)["data"]
        return Said(204, b"")


def _json(status: int, value: object) -> Said:
    return Said(status, json.dumps(value).encode())


def _concatenated(body: bytes) -> list[dict[str, Any]]:
    """HEC's batches: JSON objects one behind the other."""
    text, found, position = body.decode(), [], 0
    decoder = json.JSONDecoder()
    while position < len(text):
        value, position = decoder.raw_decode(text, position)
        found.append(value)
    return found
