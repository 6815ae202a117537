"""The time that one whole request may take, however its answer trickles.

httpx bounds each read alone: a server that sends a header byte by byte, or "100 Continue" again and again, would hold a
command for ever.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Deadline:
    """Of the one request at a time that is made by `context`. Past it a read or write raises TimeoutError."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._until = math.inf
        left = self._left

        class Bounded(ssl.SSLSocket):
            def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
                self.settimeout(left(self.gettimeout()))
                return super().recv(buflen, flags)

            def send(self, data: ReadableBuffer, flags: int = 0) -> int:
                self.settimeout(left(self.gettimeout()))
                return super().send(data, flags)

        context.sslsocket_class = Bounded

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        self._until = time.monotonic() + seconds
        try:
            yield
        finally:
            self._until = math.inf

    def _left(self, timeout: float | None) -> float | None:
        """Of `timeout`, what the request has left."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the whole answer took too long")
        if timeout is None:
            return None if left == math.inf else left
        return min(timeout, left)
