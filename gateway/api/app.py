"""The application: routes for people, auditors and relays, strict decoding, one edge where errors become answers."""

from __future__ import annotations

import traceback
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gateway.api import (
    audit_calls,
    break_glass_calls,
    drain_calls,
    enrolment_calls,
    evacuation_calls,
    inventory_calls,
    people_calls,
    placement_calls,
    policy_calls,
    prune_calls,
    reconcile_calls,
    relay_calls,
    siem_calls,
    site_calls,
    tile_calls,
)
from gateway.api.answers import JsonAnswer, error_answer, error_document
from gateway.api.bounds import BoundedBody
from gateway.api.desk import Desk
from gateway.api.tells_version import TellsVersion
from gateway.api.validation_words import words_of
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
        redirect_slashes=False,  # to wherever the Host header says
    )
    app.state.desk = desk
    for calls in (
        people_calls,
        break_glass_calls,
        enrolment_calls,
        drain_calls,
        evacuation_calls,
        inventory_calls,
        placement_calls,
        policy_calls,
        audit_calls,
        tile_calls,
        prune_calls,
        reconcile_calls,
        relay_calls,
        siem_calls,
        site_calls,
    ):
        # One flat list: nested routers are each asked for their turn at every request, and built at their first.
        app.router.routes.extend(calls.router.routes)
    app.add_exception_handler(GatewayError, _answer_gateway_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_unforeseen)
    return TellsVersion(BoundedBody(_Edge(app), request_seconds))


class _Edge:
    """The last edge: an unforeseen error ends its request and nothing else. Starlette has answered, then raised it."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:  # noqa: BLE001 - the edge: it was answered with 500, and must be seen by the operator
            where = {"method": scope.get("method"), "path": scope.get("path")}
            log.error("request failed", **where, traceback=traceback.format_exc())


async def _answer_unforeseen(_request: Request, _error: Exception) -> JsonAnswer:
    """Fail closed: nothing was permitted, and the answer tells nothing of the error."""
    error = GatewayError("the gateway failed to handle this request", code="internal")
    error.who_must_act = "the developers"
    return error_answer(error)


async def _answer_gateway_error(_request: Request, error: Exception) -> JsonAnswer:
    assert isinstance(error, GatewayError)
    return error_answer(error)


async def _answer_validation_error(_request: Request, error: Exception) -> JsonAnswer:
    """Names the first thing that is wrong, and never repeats what was sent: it may hold a password."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return error_answer(RequestRefused(f"{where[:200]}: {words_of(first)}"))


async def _answer_http_error(_request: Request, error: Exception) -> JsonAnswer:
    assert isinstance(error, HTTPException)
    known: GatewayError = NotKnown("no such call") if error.status_code == 404 else RequestRefused(str(error.detail))
    return JsonAnswer(error_document(known), error.status_code, dict(error.headers or {}))
