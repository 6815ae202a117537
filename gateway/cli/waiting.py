"""While a command waits for somebody's answer: a line on stderr after a moment, so that silence is not taken for death.

For a person alone: where stderr is no terminal, nothing is written, and the error at the end says it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from gateway.cli.terminal import harmless

NOTICE_SECONDS: Final = 2.0


@contextmanager
def waiting_for(whom: str, at_most_seconds: float) -> Iterator[None]:
    """`at_most_seconds`: how long the wait within can last before it is an error."""
    if not sys.stderr.isatty():
        yield
        return
    until = time.strftime("%H:%M:%S", time.localtime(time.time() + at_most_seconds))
    # A thread, because what waits within is a blocking call; it says one line and holds nothing.
    notice = threading.Timer(NOTICE_SECONDS, _say, (f"waiting for {whom}, until {until} at the latest …",))
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


def _say(line: str) -> None:
    sys.stderr.write(harmless(line) + "\n")
    sys.stderr.flush()
