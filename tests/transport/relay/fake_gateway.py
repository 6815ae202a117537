"""A gateway that answers as a test likes: late, wrongly or not at all, as a real one cannot be made to."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.transport.site import Site
from transport.link_version import HEADER, NEWEST

Answer = tuple[int, bytes]


@dataclass
class FakeGateway:
    """Answers by path, and keeps what it took. `answer`: what it says to a request; 200 and {} if it says nothing."""

    answer: Callable[[str, bytes], Answer | None] = lambda _path, _body: None
    taken: list[tuple[str, Any]] = field(default_factory=list)
    url: str = ""
    link: str | None = str(NEWEST)  # the version of calls that it says it speaks, to whoever says one

    def paths(self, path: str) -> list[Any]:
        return [body for asked, body in self.taken if asked == path]


@contextlib.contextmanager
def serving_https(site: Site, gateway: FakeGateway) -> Iterator[FakeGateway]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, said = gateway.answer(self.path, body) or (200, b"{}")
            if status == 200:
                gateway.taken.append((self.path, json.loads(body)))
            self.send_response(status)
            if gateway.link is not None and self.headers.get(HEADER) is not None:
                self.send_header(HEADER, gateway.link)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(site.certs / "gateway" / "tls.pem", site.certs / "gateway" / "tls.key")
    # Hands are shaken by the thread of each connection: one that says nothing would keep `shutdown` waiting for ever.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    gateway.url = f"https://127.0.0.1:{server.server_address[1]}"
    try:
        yield gateway
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
