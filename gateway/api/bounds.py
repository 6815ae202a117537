"""ASGI middleware: the body is read here, whole, with a limit on bytes and seconds, before the application runs."""

from __future__ import annotations

from typing import Any, Final

import trio

from gateway.api.answers import JsonAnswer, error_answer
from gateway.errors import GatewayError, RequestTooLarge, RequestTooSlow
from policy.publication import MAX_PUBLICATION_BYTES

MAX_BODY_BYTES: Final = 64 * 1024
LARGE_BODIES: Final = {"/v1/policy/publications": MAX_PUBLICATION_BYTES, "/v1/policy/shadow": MAX_PUBLICATION_BYTES}
MAX_LARGE_AT_ONCE: Final = 2  # they are read before anyone is known
_DRAIN_BYTES: Final = 1024 * 1024
_DRAIN_SECONDS: Final = 2.0


class BoundedBody:
    """Answers 413 or 408 itself and hangs up, so that no rest of a body can hold the connection."""

    def __init__(self, app: Any, seconds: float) -> None:
        self._app = app
        self._seconds = seconds
        self._large = trio.CapacityLimiter(MAX_LARGE_AT_ONCE)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            with trio.fail_after(self._seconds):
                most = LARGE_BODIES.get(scope["path"], MAX_BODY_BYTES)
                if most == MAX_BODY_BYTES:
                    body = await _read_body(scope, receive, most)
                else:
                    async with self._large:
                        body = await _read_body(scope, receive, most)
        except trio.TooSlowError:
            await _last_answer(RequestTooSlow("the body did not arrive in time"))(scope, receive, send)
            _hang_up(scope)
            return
        except RequestTooLarge as error:
            await _last_answer(error)(scope, receive, send)
            # Closing at once would reset the connection and could take our answer with it.
            with trio.move_on_after(_DRAIN_SECONDS):
                await _drain(receive)
            _hang_up(scope)
            return
        if body is not None:
            await self._app(scope, _Replay(body, receive), send)


class _Replay:
    """Hands out the body once, then what the connection says (its end)."""

    def __init__(self, body: bytes, receive: Any) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Any:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


async def _read_body(scope: Any, receive: Any, most: int) -> bytes | None:
    """The body; None if the peer left. Errors: RequestTooLarge."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or len(value) > 9 or int(value) > most):
            raise RequestTooLarge(f"a body is at most {most} bytes")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > most:
            raise RequestTooLarge(f"a body is at most {most} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _last_answer(error: GatewayError) -> JsonAnswer:
    """The client is told that the connection ends, or its next request on it could be cut off."""
    answer = error_answer(error)
    answer.headers["connection"] = "close"
    return answer


async def _drain(receive: Any) -> None:
    rest = 0
    while rest <= _DRAIN_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        rest += len(message.get("body", b""))


def _hang_up(scope: Any) -> None:
    if (hang_up := scope.get("state", {}).get("hang_up")) is not None:
        hang_up()
