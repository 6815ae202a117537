"""A host's first words to its gateway: one TLS connection, over which a token goes only once the peer is proven.

    TLS 1.3, nothing believed → the root that the token names, among what the peer presented, or asked for over this
    connection → what this connection's own peer presented, judged under that root alone → `Proven`, which has `post`

The socket is opened once and handed down: there is no pool, redirect or second try by which another peer than the one
that was proven could be sent anything.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import h11
import msgspec
from cryptography import x509
from OpenSSL import SSL

from certs.enrolment import EnrolmentToken
from certs.errors import UNREADABLE, CredentialError, PeerRefused
from certs.tls import presented_chain
from certs.verification import verify_gateway
from transport.errors import UNDECODABLE, quoted
from transport.relay.gateway_answers import GatewayAway, GatewayRefuses, said_in_refusal

SECONDS: Final = 30.0  # for the handshake, and for each answer as a whole
MAX_ROOT_BYTES: Final = 64 * 1024  # of what somebody unproven answers
_READ_BYTES: Final = 64 * 1024
_T = TypeVar("_T")


class _Root(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    root: str


class Unproven:
    """Whoever answers at the address. It can be asked for its root, and proven; nothing else is ever sent to it."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def prove(self, token: EnrolmentToken, now: datetime) -> Proven:
        """Errors: CredentialError if it is not the gateway of this token, GatewayAway, GatewayRefuses."""
        try:
            presented = presented_chain(self._line.tls)
            # Most gateways send their root, which saves a call. It counts for its hash, whoever sent it.
            named = [certificate for certificate in presented if token.is_of_root(certificate)]
            root = named[0] if named else self._root_asked_for()
            if not token.is_of_root(root):
                raise CredentialError(
                    None,
                    f"{self._line.url} is not the gateway that issued this token: its root is another",
                    "check the address",
                )
            verify_gateway(presented, root, self._line.host, now)
        except PeerRefused as error:
            raise CredentialError(
                None,
                f"{self._line.url} cannot prove that it is the gateway, and was not sent the token: {error.detail}",
                "check the address, this clock and the gateway's certificate; else somebody answers in its place",
            ) from None
        return Proven(self._line)

    def _root_asked_for(self) -> x509.Certificate:
        data = self._line.exchange("GET", "/v1/enrolment/root", b"", MAX_ROOT_BYTES)
        try:
            return x509.load_pem_x509_certificate(msgspec.json.decode(data, type=_Root).root.encode())
        except (*UNDECODABLE, *UNREADABLE):
            raise GatewayAway(f"{self._line.url} does not answer like a gateway that enrols hosts") from None


class Proven:
    """The same connection. Only `Unproven.prove` makes one."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def post(self, path: str, body: Mapping[str, str], limit: int) -> bytes:
        """The answer, of at most `limit` bytes. Errors: GatewayAway, GatewayRefuses with the gateway's own words."""
        return self._line.exchange("POST", path, msgspec.json.encode(body), limit)


@contextmanager
def first_contact(url: str) -> Iterator[Unproven]:
    """`url`: https://HOST[:PORT]. Errors: GatewayAway."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        opened = socket.create_connection((host, parts.port or 443), SECONDS)
    except (OSError, UnicodeError) as error:  # UnicodeError: of a host whose parts no name can have
        raise GatewayAway(f"{url}: {getattr(error, 'strerror', None) or error}") from None
    with opened:
        opened.setblocking(False)
        line = _Line(url, host, opened)
        line.shake_hands()
        yield Unproven(line)


class _Line:
    """HTTP/1.1 over TLS over one open socket, each step with a deadline."""

    def __init__(self, url: str, host: str, opened: socket.socket) -> None:
        self.url, self.host = url, host
        self.tls = SSL.Connection(_context(), opened)
        self._poll = select.poll()
        self._poll.register(opened)
        self._http = h11.Connection(h11.CLIENT)
        self._deadline = time.monotonic()

    def shake_hands(self) -> None:
        """That the peer has the key of the certificate that it presents is proven here; whose that is, is not."""
        if not _is_address(self.host):
            self.tls.set_tlsext_host_name(self.host.encode())
        self.tls.set_connect_state()
        self._deadline = time.monotonic() + SECONDS
        with self._as_away("the TLS handshake"):
            self._when_ready(self.tls.do_handshake)

    def exchange(self, method: str, path: str, body: bytes, limit: int) -> bytes:
        """One request on this connection, and the body of its answer 200. Errors: GatewayAway, GatewayRefuses."""
        self._deadline = time.monotonic() + SECONDS
        with self._as_away(path):
            if self._http.our_state is h11.DONE:
                self._http.start_next_cycle()
            self._send(self._http.send(self._request(method, path, len(body))))
            self._send(self._http.send(h11.Data(data=body)))
            self._send(self._http.send(h11.EndOfMessage()))
            status, data = self._answer(path, limit)
        if status != 200:
            if (said := said_in_refusal(data)) is None:
                raise GatewayAway(f"{self.url} does not answer like a gateway: {status} to {path}")
            message, next_step = said
            raise GatewayRefuses(f"{self.url} refuses: {message}", status, next_step)
        return data

    def _request(self, method: str, path: str, length: int) -> h11.Request:
        headers = [("host", urlsplit(self.url).netloc), ("accept-encoding", "identity"), ("user-agent", "sealane")]
        if length:
            headers += [("content-type", "application/json"), ("content-length", str(length))]
        return h11.Request(method=method, target=path, headers=headers)

    def _answer(self, path: str, limit: int) -> tuple[int, bytes]:
        status, data = 0, bytearray()
        while True:
            match self._http.next_event():
                case h11.NEED_DATA:
                    self._http.receive_data(self._receive())
                case h11.Response(status_code=status):
                    pass
                case h11.Data(data=part):
                    data += part
                    if len(data) > limit:
                        raise GatewayAway(f"{path}: the answer is too long")
                case h11.EndOfMessage():
                    return status, bytes(data)
                case h11.ConnectionClosed() | h11.PAUSED:
                    raise GatewayAway(f"{path}: the connection ended without an answer")
                case _:
                    pass  # 1xx: the answer is still to come

    def _send(self, data: bytes | None) -> None:
        rest = memoryview(data or b"")
        while rest:
            rest = rest[self._when_ready(self.tls.send, rest) :]

    def _receive(self) -> bytes:
        """Empty at the end that the peer announced; one that it did not announce is an error of TLS."""
        try:
            return self._when_ready(self.tls.recv, _READ_BYTES)
        except SSL.ZeroReturnError:
            return b""

    def _when_ready(self, step: Callable[..., _T], *arguments: Any) -> _T:
        while True:
            if time.monotonic() >= self._deadline:  # also of a peer that always has something more to say
                raise TimeoutError("no answer in time")
            try:
                return step(*arguments)
            except SSL.WantReadError:
                self._wait(select.POLLIN)
            except SSL.WantWriteError:
                self._wait(select.POLLOUT)

    def _wait(self, what: int) -> None:
        self._poll.modify(self.tls.fileno(), what)
        self._poll.poll(max(0.0, self._deadline - time.monotonic()) * 1000)

    @contextmanager
    def _as_away(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (h11.ProtocolError, SSL.Error, OSError) as error:
            # SSL.Error of a lost connection and of a fault in TLS; a LocalProtocolError: the peer hung up in between.
            raise GatewayAway(f"{self.url}: {doing}: {_cause(error)}") from None


def _context() -> SSL.Context:
    """Believes nothing: what was presented is judged afterwards, and nothing is sent before."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_alpn_protos([b"http/1.1"])
    context.set_verify(SSL.VERIFY_NONE)
    return context


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _cause(error: Exception) -> str:
    reasons = error.args[0] if isinstance(error, SSL.Error) and error.args else None
    if isinstance(reasons, list):
        said = {str(reason) for *_, reason in reasons}
        return "it speaks no TLS" if "wrong version number" in said else ", ".join(sorted(said)) or "TLS failed"
    return quoted(str(error)[:500] or type(error).__name__).strip("'\"")
