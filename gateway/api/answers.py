"""Answers in JSON, and the one place where an error becomes words.

{"error": {"code", "message", "who_must_act", "next_step"}}
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from gateway.errors import GatewayError, TooManyRefusals, Unauthenticated


class JsonAnswer(Response):
    """JSON by msgspec; never cached: answers are about people and machines."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(content, status_code, {"cache-control": "no-store", **(headers or {})})

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def error_document(error: GatewayError) -> dict[str, Any]:
    return {
        "error": {
            "code": error.code,
            "message": error.detail,
            "who_must_act": error.who_must_act,
            "next_step": error.next_step,
        }
    }


def error_answer(error: GatewayError) -> JsonAnswer:
    headers = {"www-authenticate": "Bearer"} if isinstance(error, Unauthenticated) else None
    if isinstance(error, TooManyRefusals):
        headers = {"retry-after": str(error.retry_after_seconds)}
    return JsonAnswer(error_document(error), error.status, headers)
