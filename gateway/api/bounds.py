"""ASGI middleware: a body is read whole, with a limit on bytes and seconds, before the application sees any of it.

Whatever the call, a body is JSON, says so, and is read alike by everybody (`policy.strict_json`): no route can forget
it, and pydantic would take the last of two members of one name. Publications, which are large, are read once it is
known that their sender may publish: strangers must not hold the places for them. They are as strict
(`policy.publication`), in a thread.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl

import trio

from gateway.api.answers import JsonAnswer, error_answer
from gateway.errors import GatewayError, Overloaded, RequestRefused, RequestTooLarge, RequestTooSlow
from policy import strict_json
from policy.publication import MAX_PUBLICATION_BYTES

MAX_BODY_BYTES: Final = 64 * 1024
LARGE_BODIES: Final = {"/v1/policy/publications": MAX_PUBLICATION_BYTES, "/v1/policy/shadow": MAX_PUBLICATION_BYTES}
MAX_LARGE_AT_ONCE: Final = 2
AT_ONCE_BYTES: Final = 4 * 1024  # above, in a thread: 64 KiB of `{},` take 20 ms, in which the loop would answer nobody
_JSON_TYPES: Final = frozenset({b"application/json", b"application/json;charset=utf-8"})
_DRAIN_BYTES: Final = 1024 * 1024
_DRAIN_SECONDS: Final = 2.0


class BoundedBody:
    """Answers 400, 408 or 413 itself, and hangs up where a rest of the body could hold the connection."""

    def __init__(self, app: Any, seconds: float, *, is_json: bool = True) -> None:
        """`is_json`: what bodies have to be."""
        self._app = app
        self._is_json = is_json
        self._seconds = seconds
        self._large = trio.CapacityLimiter(MAX_LARGE_AT_ONCE)
        # Whoever has a certificate does not wait for strangers' bodies, of which there may be many.
        self._decoding = {is_known: trio.CapacityLimiter(1) for is_known in (False, True)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _says_twice(scope["query_string"]):
            await error_answer(RequestRefused("the query says something twice"))(scope, receive, send)
        elif scope["path"] in LARGE_BODIES and scope["method"] == "POST":
            await self._serve_large(scope, receive, send)
        else:
            await self._serve_small(scope, receive, send)

    async def _serve_large(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            _require_announced(scope, LARGE_BODIES[scope["path"]])
        except RequestTooLarge as error:
            await _last_answer(error)(scope, receive, send)
            await _let_go(scope, receive)
        else:
            later = _Later(self._read_large, scope, receive)
            await self._app(scope, later, later.closing(send))
            if not later.is_whole:
                await _let_go(scope, receive)

    async def _serve_small(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            with trio.fail_after(self._seconds):
                body = await _read_body(scope, receive, MAX_BODY_BYTES)
            if body and self._is_json:
                await self._require_json(scope, body)
        except trio.TooSlowError:
            await _last_answer(RequestTooSlow("the body did not arrive in time"))(scope, receive, send)
            _hang_up(scope)
        except RequestTooLarge as error:
            await _last_answer(error)(scope, receive, send)
            await _let_go(scope, receive)
        except (RequestRefused, Overloaded) as error:
            await error_answer(error)(scope, receive, send)
        else:
            if body is not None:
                await self._app(scope, _Replay(body, receive), send)

    async def _require_json(self, scope: Any, body: bytes) -> None:
        """Errors: RequestRefused, Overloaded."""
        _require_json_type(scope)
        try:
            if len(body) <= AT_ONCE_BYTES:
                strict_json.decode(body)
                return
            limiter = self._decoding[scope.get("state", {}).get("peer_certificate") is not None]
            with trio.fail_after(self._seconds):
                await trio.to_thread.run_sync(strict_json.decode, body, limiter=limiter)
        except strict_json.NotStrict as error:
            raise RequestRefused(f"the body is refused: {error}") from error
        except trio.TooSlowError as error:
            raise Overloaded("other bodies are being looked at") from error

    async def _read_large(self, scope: Any, receive: Any) -> bytes:
        """Errors: RequestRefused, RequestTooLarge, RequestTooSlow, Overloaded."""
        _require_json_type(scope)
        try:
            with trio.fail_after(self._seconds):
                await self._large.acquire()
        except trio.TooSlowError as error:
            raise Overloaded("other publications are being read") from error
        try:
            with trio.fail_after(self._seconds):
                body = await _read_body(scope, receive, LARGE_BODIES[scope["path"]])
        except trio.TooSlowError as error:
            raise RequestTooSlow("the body did not arrive in time") from error
        finally:
            self._large.release()
        if body is None:
            raise RequestRefused("the connection ended before the body")  # nobody is there to read it
        return body


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


class _Later:
    """A body that is read when the application asks for it."""

    def __init__(self, read: Any, scope: Any, receive: Any) -> None:
        self._read = read
        self._scope = scope
        self._receive = receive
        self.is_whole = False

    async def __call__(self) -> Any:
        if self.is_whole:
            return await self._receive()
        body = await self._read(self._scope, self._receive)
        self.is_whole = True
        return {"type": "http.request", "body": body, "more_body": False}

    def closing(self, send: Any) -> Any:
        """`send`, which tells the client that the connection ends where its body was not wanted."""

        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start" and not self.is_whole:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        return tell


async def _read_body(scope: Any, receive: Any, most: int) -> bytes | None:
    """The body; None if the peer left. Errors: RequestTooLarge."""
    _require_announced(scope, most)
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


def _require_announced(scope: Any, most: int) -> None:
    """Before anything is read. Errors: RequestTooLarge."""
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or len(value) > 9 or int(value) > most):
            raise RequestTooLarge(f"a body is at most {most} bytes")


def _require_json_type(scope: Any) -> None:
    """Errors: RequestRefused."""
    types = [value.lower().replace(b" ", b"") for name, value in scope["headers"] if name == b"content-type"]
    if len(types) != 1 or types[0] not in _JSON_TYPES:
        raise RequestRefused("a body must be JSON, and say so: content-type: application/json")


def _says_twice(query: bytes) -> bool:
    """The last would count, and whoever looks at the first would be told another question than is answered."""
    names = [name for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True)]
    return len(set(names)) != len(names)


def _last_answer(error: GatewayError) -> JsonAnswer:
    """The client is told that the connection ends, or its next request on it could be cut off."""
    answer = error_answer(error)
    answer.headers["connection"] = "close"
    return answer


async def _let_go(scope: Any, receive: Any) -> None:
    """Closing at once would reset the connection and could take our answer with it."""
    with trio.move_on_after(_DRAIN_SECONDS):
        await _drain(receive)
    _hang_up(scope)


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
