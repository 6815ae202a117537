"""One thread for what is not for two at once: the register's file, and the CAs' folders."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import structlog
import trio

from gateway.enrolment.errors import AuthorityFailed

T = TypeVar("T")
log = structlog.get_logger("gateway.enrolment")


class OneThread:
    """First come, first served."""

    def __init__(self) -> None:
        self._one = trio.CapacityLimiter(1)

    async def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Errors: AuthorityFailed for SQLite's, which are logged; and what `work` raises."""
        try:
            return await trio.to_thread.run_sync(partial(work, *arguments), limiter=self._one)
        except sqlite3.Error as error:
            log.error("the register of hosts failed", error=str(error))
            raise AuthorityFailed("the register of enrolled hosts cannot be used") from error

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """While it lasts nothing is done: the CAs' folders may be renamed."""
        async with self._one:
            yield
