"""The listener: TCP, TLS 1.3 and then one Hypercorn connection each.

Hypercorn does not pass the peer's certificate on, so the handshake is done here, with a deadline and a cap on
connections, and the certificate (DER) travels in `scope["state"]["peer_certificate"]`. A client certificate is
optional at this layer (people have tokens), but one that is sent must verify: path, CRLs, strict.
"""

from __future__ import annotations

import logging
import ssl
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from gateway.api.http11 import Connection
from gateway.api.places import Place, Places
from gateway.errors import StartRefused
from gateway.network_words import words_of_failure
from gateway.throttle import Throttle

SEND_SECONDS: Final = 30  # a client that does not read its answer keeps a connection no longer than this
PIECE_BYTES: Final = 256 * 1024  # sealed at once: an answer may have many megabytes, each a millisecond of the loop
KEEP_ALIVE_SECONDS: Final = 75
BACKLOG: Final = 128
TOLD_AT_ONCE: Final = 20  # lines about connections that came to nothing; then one more every TOLD_SECONDS
TOLD_SECONDS: Final = 1.0

log = structlog.get_logger("gateway.https")

App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """`client_bundles`: the configured one, then those of CAs that come or go."""

    certificate: Path
    private_key: Path
    client_bundles: tuple[Path, ...]
    crls: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    connections: int
    connections_per_address: int
    handshake_seconds: float


def make_context(files: TlsFiles) -> ssl.SSLContext:
    """TLS 1.3 server context that verifies any client certificate. Errors: StartRefused, naming the file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 0  # no resumption: a revoked host must not come back on an old session
    context.verify_mode = ssl.CERT_OPTIONAL
    # CRL_CHECK_CHAIN is CRL_CHECK | CRL_CHECK_ALL: without a fresh CRL of the CA no client certificate passes.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT | ssl.VerifyFlags.VERIFY_CRL_CHECK_CHAIN
    try:
        context.load_cert_chain(files.certificate, files.private_key)
    except (OSError, ValueError) as error:
        raise StartRefused(
            f"{files.certificate}, {files.private_key}: no usable certificate and key: {words_of_failure(error)}"
        ) from error
    for path in (*files.client_bundles, *files.crls):
        try:
            context.load_verify_locations(cafile=path)
        except (OSError, ValueError) as error:
            raise StartRefused(f"{path}: cannot be loaded: {error}") from error
    return context


class _BoundedStream:
    """An SSLStream whose sends have a deadline: Hypercorn shields them from cancellation."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream

    async def send_all(self, data: bytes) -> None:
        try:
            with trio.fail_after(SEND_SECONDS):
                for begin in range(0, len(data), PIECE_BYTES):
                    await self._stream.send_all(data[begin : begin + PIECE_BYTES])
        except trio.TooSlowError as error:
            raise trio.BrokenResourceError from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class HttpsServer:
    """Serves `app`. `context` may be replaced at any time: it is taken at each new connection."""

    def __init__(self, app: App, context: ssl.SSLContext, bounds: Bounds) -> None:
        self.context = context
        self._app = ASGIWrapper(_served(app))
        self._bounds = bounds
        self._places = Places(bounds.connections, bounds.connections_per_address)
        self._told = Throttle(TOLD_AT_ONCE, TOLD_SECONDS, trio.current_time)
        self._hypercorn = _hypercorn_config()
        self._worker = WorkerContext(None)

    async def serve(self, host: str, port: int, *, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        """Listen until cancelled; `task_status` gets the listeners. Errors: StartRefused if the port is taken.

        Cancellation ends every connection; `stop_gracefully` beforehand lets answers under way finish.
        """
        try:
            listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
        except OSError as error:
            raise StartRefused(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        await trio.serve_listeners(self._serve_connection, listeners, task_status=task_status)

    async def stop_gracefully(self, seconds: float) -> None:
        """Close idle connections and wait up to `seconds` for the others."""
        await self._worker.terminated.set()
        with trio.move_on_after(seconds):
            while len(self._places):
                await trio.sleep(0.02)

    async def _serve_connection(self, transport: trio.SocketStream) -> None:
        try:
            address = str(transport.socket.getpeername()[0])
        except OSError:  # reset before it was taken; whatever is raised here would end the gateway
            return
        place = self._places.take(address, transport.socket.close)
        if place is None:
            if self._told.admits("refused"):
                log.warning("connection refused: too many", address=address)
            await trio.aclose_forcefully(transport)
            return
        try:
            with place.scope:
                await self._serve_tls(transport, place)
        except Exception:  # noqa: BLE001 - the edge, see below
            # The edge of one connection: whatever breaks there ends that connection and nothing else.
            if self._told.admits("failed"):
                log.error("connection failed", address=address, traceback=traceback.format_exc())
        finally:
            self._places.leave(place)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(transport)

    async def _serve_tls(self, transport: trio.SocketStream, place: Place) -> None:
        stream = trio.SSLStream(transport, self.context, server_side=True, https_compatible=True)
        try:
            with trio.fail_after(self._bounds.handshake_seconds):
                await stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError, OSError) as error:
            if self._told.admits("handshake"):  # strangers must not fill the operators' log
                log.info("handshake failed", address=place.address, error=str(error.__cause__ or error))
            return
        place.is_stranger = stream.getpeercert(True) is None
        with trio.CancelScope() as scope:
            state = ConnectionState(
                {
                    "peer_certificate": stream.getpeercert(True),
                    "hang_up": scope.cancel,
                    "place": place,
                }
            )
            await Connection(self._app, self._hypercorn, self._worker, state, cast(Any, _BoundedStream(stream))).run()


def _served(app: App) -> App:
    """With what a call notes of its connection's place taken back when it has ended."""

    async def call(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        finally:
            scope["state"]["place"].let_go()

    return call


def _hypercorn_config() -> HypercornConfig:
    config = HypercornConfig()
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.include_server_header = False
    config.errorlog = logging.getLogger("gateway.hypercorn")
    return config
