"""Calls that wait long end with their connection: who has gone must not take what the next one waits for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio
from fastapi import Request

T = TypeVar("T")


async def while_connected(request: Request, call: Callable[[], Awaitable[T]]) -> T | None:
    """What `call` returns; it is cancelled when the peer leaves, and then None is for nobody.

    The body was read: all that still can come is the end. `call` raises nothing.
    """
    answer: T | None = None

    async def leave_with_peer(scope: trio.CancelScope) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave_with_peer, nursery.cancel_scope)
        answer = await call()
        nursery.cancel_scope.cancel()
    return answer
