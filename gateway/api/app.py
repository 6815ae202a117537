"""The application: routes for people, auditors and relays, strict decoding, one edge where errors become answers."""

from __future__ import annotations

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gateway.api import audit_calls, people_calls, relay_calls
from gateway.api.answers import JsonAnswer, error_answer, error_document
from gateway.api.bounds import BoundedBody
from gateway.api.desk import Desk
from gateway.errors import GatewayError, NotKnown, RequestRefused

log = structlog.get_logger("gateway.api")


def create_app(desk: Desk, request_seconds: float) -> Any:
    """The ASGI application over `desk`. No route of it keeps state of its own."""
    app = FastAPI(
        title="Sealane gateway",
        description="Decides on live migrations, records each decision before it permits anything, and proves it.",
        version="1",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.desk = desk
    for calls in (people_calls, audit_calls, relay_calls):
        app.include_router(calls.router)
    app.add_exception_handler(GatewayError, _answer_gateway_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    return BoundedBody(_Edge(app), request_seconds)


class _Edge:
    """The last edge: an unforeseen error is logged and answered with 500, never with anything that was permitted."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def noting_send(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting_send)
        except Exception:
            log.exception("request failed", method=scope.get("method"), path=scope.get("path"))
            if not begun:
                error = GatewayError("the gateway failed to handle this request", code="internal")
                error.who_must_act = "the developers"
                await error_answer(error)(scope, receive, send)


async def _answer_gateway_error(_request: Request, error: Exception) -> JsonAnswer:
    assert isinstance(error, GatewayError)
    return error_answer(error)


async def _answer_validation_error(_request: Request, error: Exception) -> JsonAnswer:
    """Names the first thing that is wrong, and never repeats what was sent: it may hold a password."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return error_answer(RequestRefused(f"{where[:200]}: {first['msg']}"))


async def _answer_http_error(_request: Request, error: Exception) -> JsonAnswer:
    assert isinstance(error, HTTPException)
    known: GatewayError = NotKnown("no such call") if error.status_code == 404 else RequestRefused(str(error.detail))
    return JsonAnswer(error_document(known), error.status_code, dict(error.headers or {}))
