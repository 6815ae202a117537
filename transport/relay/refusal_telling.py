"""Brings what this relay refused to its gateway, which puts it on record; again and again while it is away."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog
import trio

from transport.relay.gateway_answers import GatewayAway, GatewayRefuses
from transport.relay.refused_calls import RefusedCalls

log = structlog.get_logger("sealane.relay")
_INTERVAL_SECONDS = 5.0  # a flood of one caller is one entry in each
_RETRY_SECONDS = 2.0


async def tell_refused_calls(
    queue: RefusedCalls,
    post: Callable[[bytes], Awaitable[None]],
    interval: float = _INTERVAL_SECONDS,
    retry: float = _RETRY_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """For ever. The first is told at once. `epoch` and `sequence` let the gateway know a report that comes again."""
    epoch, sequence = secrets.token_hex(16), 0
    while True:
        await queue.wait()
        sequence += 1
        report = queue.take()
        is_told = False
        while not is_told:
            try:
                await post(msgspec.json.encode(report.body(epoch, sequence, clock())))
                is_told = True
            except GatewayAway as error:
                log.info("refused calls are kept to be told later", calls=report.calls, cause=str(error))
                await trio.sleep(retry)
            except GatewayRefuses as error:
                log.error("the gateway will not record refused calls", calls=report.calls, cause=str(error))
                queue.count_lost(report.calls)
                is_told = True
        await trio.sleep(interval)
