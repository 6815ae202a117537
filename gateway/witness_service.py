"""The witness as a process: tlog-witness over HTTPS, one log writer's word at a time.

    POST /add-checkpoint                 200 cosignature lines · 400 · 403 · 404 · 409 with the size · 422
    GET  /<origin hash, hex>/checkpoint  the latest cosigned checkpoint of that log, for monitors
    GET  /health                         {"status": "ok", "logs": n}

Nobody signs in: what is not signed by a pinned log key is refused, and what is told is what logs publish.
"""

from __future__ import annotations

import json
import re
import signal
import ssl
import sys
import time
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from starlette.responses import PlainTextResponse, Response

from audit.errors import LogError, WitnessRefused
from audit.witness import Witness
from gateway.api.bounds import BoundedBody
from gateway.api.https import Bounds, HttpsServer
from gateway.config import Address
from gateway.errors import GatewayError, StartRefused
from gateway.logging import configure_logging
from gateway.network_words import words_of_failure
from gateway.throttle import Throttle
from gateway.witness_config import WitnessConfig, load_witness_config

EXIT_DONE, EXIT_CONFIGURATION = 0, 2
STOP_SECONDS: Final = 5.0
SIZE_TYPE: Final = "text/x.tlog.size"

_LATEST = re.compile(r"/([0-9a-f]{64})/checkpoint")

log = structlog.get_logger("sealane.witness")


class WitnessApp:
    """The ASGI application over `witness`."""

    def __init__(self, witness: Witness, logs: int) -> None:
        self._witness = witness
        self._logs = logs
        self._limiter = trio.CapacityLimiter(1)  # the witness is used by one thread at a time
        self._said = Throttle(20, 1.0, trio.current_time)  # anyone may ask, and must not fill the operators' log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            answer = await self._answer(scope["method"], scope["path"], receive)
            await answer(scope, receive, send)

    async def _answer(self, method: str, path: str, receive: Any) -> Response:
        if (method, path) == ("POST", "/add-checkpoint"):
            return await self._add_checkpoint((await receive())["body"])
        if method == "GET" and (match := _LATEST.fullmatch(path)):
            text = await trio.to_thread.run_sync(self._witness.latest, match[1], limiter=self._limiter)
            return PlainTextResponse(text or "no checkpoint of that log\n", 200 if text else 404)
        if (method, path) == ("GET", "/health"):
            return Response(json.dumps({"status": "ok", "logs": self._logs}), media_type="application/json")
        return PlainTextResponse("no such call\n", 404)

    async def _add_checkpoint(self, body: bytes) -> Response:
        try:
            lines = await trio.to_thread.run_sync(
                self._witness.add_checkpoint, body, int(time.time()), limiter=self._limiter
            )
        except WitnessRefused as refused:
            level = log.info if refused.status in {400, 404, 409} else log.warning
            if self._said.admits(str(refused.status)):  # nonsense hides nothing that a log's key has signed
                level("not cosigned", status=refused.status, because=str(refused))
            if refused.size is not None:
                return Response(f"{refused.size}\n", refused.status, {"content-type": SIZE_TYPE})
            return PlainTextResponse(f"{refused}\n", refused.status)
        except OSError as error:
            log.error("a checkpoint could not be made durable, so it was not cosigned", error=str(error))
            return PlainTextResponse("the witness cannot write its state\n", 503)
        return PlainTextResponse(lines)


async def serve_witness(
    config: WitnessConfig, *, task_status: trio.TaskStatus[Address] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run until cancelled; `task_status` gets the address as bound. Errors at start: GatewayError."""
    try:
        config.state_dir.parent.mkdir(parents=True, exist_ok=True)
        witness = Witness(config.state_dir, config.cosigners, config.logs)
    except (LogError, OSError) as error:
        raise StartRefused(f"the witness cannot start: {words_of_failure(error)}") from error
    try:
        limits = config.limits
        bounds = Bounds(limits.connections, limits.connections_per_address, limits.handshake_seconds)
        app = BoundedBody(WitnessApp(witness, len(config.logs)), limits.request_seconds, is_json=False)
        server = HttpsServer(app, _tls(config), bounds)
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(server.serve, config.listen.host, config.listen.port)
            bound = listeners[0].socket.getsockname()
            task_status.started(Address(bound[0], bound[1]))
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await server.stop_gracefully(STOP_SECONDS)
    finally:
        witness.close()


def _tls(config: WitnessConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 0
    try:
        context.load_cert_chain(config.certificate, config.private_key)
    except (OSError, ValueError) as error:
        raise StartRefused(
            f"{config.certificate}, {config.private_key}: no usable certificate and key: {words_of_failure(error)}"
        ) from error
    return context


def run_witness(path: Path) -> int:
    """The process: 0 after SIGTERM or SIGINT, 2 for what the operator must correct."""
    configure_logging(sys.stderr)
    code = EXIT_DONE
    try:
        trio.run(_main, load_witness_config(path))
    except* GatewayError as errors:
        error: BaseException = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, GatewayError)
        print(
            f"sealane audit witness: {error.detail}; the {error.who_must_act} must act; {error.next_step}",
            file=sys.stderr,
        )
        code = EXIT_CONFIGURATION
    return code


async def _main(config: WitnessConfig) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            address = await nursery.start(serve_witness, config)
            print(json.dumps({"ready": True, "listen": str(address)}), flush=True)
            async for _ in signals:
                break
            nursery.cancel_scope.cancel()
