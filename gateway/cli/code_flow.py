"""Login by authorization code with PKCE (RFC 7636) and a redirect to this machine's loopback (RFC 8252).

Another process here can knock at the port, and another page can send the browser to it: an answer without our `state`
is turned away and the wait goes on. A stolen code is of no use without the verifier, which never leaves this process.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from gateway.cli.errors import OPERATOR, REQUESTER, Refused
from gateway.cli.follow import Clock
from gateway.cli.issuer_client import Endpoints, IssuerClient, OAuthError, TokenAnswer, challenge_of

CALLBACK = "/callback"
WAIT_SECONDS = 300
REQUEST_SECONDS = 5  # without a byte: a browser on this machine needs no longer
MAX_CONNECTIONS = 32


def by_browser(
    client: IssuerClient,
    endpoints: Endpoints,
    note: Callable[[str], None],
    open_url: Callable[[str], Any],
    clock: Clock,
) -> TokenAnswer:
    """Send the person's browser to the issuer and wait for it to come back. Raises Refused, Unreachable."""
    if endpoints.authorization_endpoint is None:
        raise Refused(f"{client.login.issuer} has no authorization endpoint", OPERATOR, "use `sealane login --device`")
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(32)
    with Redirect(state, endpoints) as redirect:
        question = {
            **client.login.form(),
            "response_type": "code",
            "redirect_uri": redirect.uri,
            "state": state,
            "code_challenge": challenge_of(verifier),
            "code_challenge_method": "S256",
        }
        joint = "&" if urlsplit(endpoints.authorization_endpoint).query else "?"
        url = endpoints.authorization_endpoint + joint + urlencode(question)
        note(f"Sign in at {url}")
        open_url(url)
        answer = redirect.wait(clock)
    if isinstance(answer, OAuthError):
        raise client.refused(answer)
    form = {"grant_type": "authorization_code", "code": answer, "redirect_uri": redirect.uri, "code_verifier": verifier}
    form["client_id"] = client.login.client_id
    token = client.post(endpoints.token_endpoint, form, TokenAnswer)
    if isinstance(token, OAuthError):
        raise client.refused(token)
    return token


def read_redirect(target: str, state: str, endpoints: Endpoints) -> str | OAuthError | None:
    """The code (or the issuer's error) in the request target of a redirect; None if it is no answer to our question."""
    parts = urlsplit(target)
    values = parse_qs(parts.query, keep_blank_values=True, max_num_fields=20)
    if parts.path != CALLBACK or any(len(each) != 1 for each in values.values()):
        return None
    said = {name: each[0] for name, each in values.items()}
    if not hmac.compare_digest(said.get("state", "").encode(), state.encode()):
        return None
    # RFC 9207: an answer of another issuer must not lead its code to this one's token endpoint.
    if ("iss" in said or endpoints.authorization_response_iss_parameter_supported) and (
        said.get("iss") != endpoints.issuer
    ):
        return None
    if "error" in said:
        return OAuthError(said["error"], said.get("error_description", ""))
    return said.get("code") or None


class Redirect:
    """Listens on a free port of 127.0.0.1 until the browser comes. Each request has a thread: who holds the port open,
    or trickles, shall not hold the login. Of more than MAX_CONNECTIONS the oldest are hung up on, not the browser.
    """

    def __init__(self, state: str, endpoints: Endpoints) -> None:
        self._answer: str | OAuthError | None = None
        self._answered = Event()
        newest: deque[socket.socket] = deque()
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS

            def do_GET(self) -> None:
                try:
                    answer = read_redirect(self.path, state, endpoints)
                except ValueError:
                    answer = None
                text = b"You may close this page and go back to the terminal.\n"
                try:
                    self.send_response(400 if answer is None else 200)
                    self.send_header("content-type", "text/plain")
                    self.send_header("content-length", str(len(text)))
                    self.send_header("connection", "close")
                    self.end_headers()
                    self.wfile.write(text)
                finally:
                    if answer is not None:
                        take(answer)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
                """Silence: the request holds the code."""

        class Server(ThreadingHTTPServer):
            block_on_close = False
            request_queue_size = MAX_CONNECTIONS

            def process_request(self, request: Any, client_address: Any) -> None:
                newest.append(request)
                if len(newest) > MAX_CONNECTIONS:
                    with suppress(OSError):  # it has ended
                        newest.popleft().shutdown(socket.SHUT_RDWR)
                super().process_request(request, client_address)

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Who hangs up in the middle is no error of ours."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}{CALLBACK}"

    def __enter__(self) -> Redirect:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait(self, clock: Clock) -> str | OAuthError:
        """The answer to our question. Raises Refused after WAIT_SECONDS."""
        until = clock.now() + WAIT_SECONDS
        while (left := until - clock.now()) > 0:
            if self._answered.wait(left) and self._answer is not None:
                return self._answer
        raise Refused("nobody signed in within five minutes", REQUESTER, "run `sealane login` again", "login_refused")

    def _take(self, answer: str | OAuthError) -> None:
        if self._answer is None:
            self._answer = answer
            self._answered.set()
