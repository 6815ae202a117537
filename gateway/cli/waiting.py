"""What a command is about, while it lasts: lines on stderr, so that silence is not taken for death.

The one home of it, at a terminal and in a pipe: after two seconds a line, then one every twenty, each a whole line
without control characters. What is done sooner says nothing. Where a bar is drawn (`gateway.cli.progress`,
`gateway.cli.migration_view`) there are none.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

from gateway.cli.terminal import harmless

NOTICE_SECONDS: Final = 2.0
AGAIN_SECONDS: Final = 20.0


@contextmanager
def working(what: str, how_far: Callable[[], str] = lambda: "") -> Iterator[None]:
    """`what` goes on within. `how_far`: called by another thread, for the lines after the first."""
    over = threading.Event()
    # A thread, because what goes on within is a blocking call; it says its lines and holds nothing.
    threading.Thread(target=_tell, args=(what, how_far, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def waiting_for(whom: str, at_most_seconds: float) -> AbstractContextManager[None]:
    """`at_most_seconds`: how long the wait within can last before it is an error."""
    until = time.strftime("%H:%M:%S", time.localtime(time.time() + at_most_seconds))
    return working(f"waiting for {whom}, until {until} at the latest")


def _tell(what: str, how_far: Callable[[], str], over: threading.Event) -> None:
    began = time.monotonic()
    if over.wait(NOTICE_SECONDS):
        return
    _say(f"{what} …")
    while not over.wait(AGAIN_SECONDS):
        far = how_far()
        _say(f"{what}: {time.monotonic() - began:.0f} s so far{f', {far}' if far else ''}")


def _say(line: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # nobody reads it, or stderr is closed
        sys.stderr.write(harmless(line) + "\n")
        sys.stderr.flush()
