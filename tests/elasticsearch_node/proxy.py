"""Something in front of the real node that misbehaves on demand: as a load balancer, a proxy or a liar would."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

PRODUCT = {"x-elastic-product": "Elasticsearch", "content-type": "application/vnd.elasticsearch+json;compatible-with=8"}


@dataclass(frozen=True, slots=True)
class Passing:
    """A request on its way. `forward` sends it to the node and gives status, headers and body of the answer."""

    method: str
    path: str
    body: bytes
    forward: Callable[[], tuple[int, dict[str, str], bytes]]

    @property
    def is_bulk(self) -> bool:
        return self.path.partition("?")[0].endswith("/_bulk")


Answer = tuple[int, dict[str, str], bytes]
Behaviour = Callable[[Passing], Answer | None]  # None: the connection is cut without an answer


def too_many(seconds: str) -> Answer:
    return (
        429,
        {**PRODUCT, "retry-after": seconds},
        b'{"error":{"type":"es_rejected_execution_exception"},"status":429}',
    )


def all_created(passing: Passing) -> Answer:
    """What a server says that has stored everything. It says so and does nothing."""
    actions = [json.loads(line) for line in passing.body.splitlines()[::2]]
    items = [{"create": {"_id": action["create"]["_id"], "status": 201}} for action in actions]
    return 200, PRODUCT, json.dumps({"errors": False, "items": items}).encode()


@contextmanager
def misbehaving(node_url: str, ca: Path, certificate: Path, key: Path, behave: Behaviour) -> Iterator[str]:
    """The URL of a proxy that answers as `behave` says."""
    upstream = httpx.Client(base_url=node_url, verify=ssl.create_default_context(cafile=str(ca)), trust_env=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            kept = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "connection"}}

            def forward() -> Answer:
                answer = upstream.request(self.command, self.path, headers=kept, content=body, timeout=20)
                headers = {name: value for name, value in answer.headers.items() if name in PRODUCT}
                return answer.status_code, headers, answer.content

            answered = behave(Passing(self.command, self.path, body, forward))
            if answered is None:
                self.close_connection = True
                return
            status, headers, data = answered
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _serve  # noqa: N815 - the library's names

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Silence."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Server(ThreadingHTTPServer):
        def get_request(self) -> Any:
            connection, address = super().get_request()
            return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that goes away is what is tested here."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        upstream.close()
