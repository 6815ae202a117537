"""Processes that tests start, and read from or wait for."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def killed_after(process: subprocess.Popen[bytes] | subprocess.Popen[str], seconds: float = 60.0) -> Iterator[None]:
    """Kills it if the block is not over by then, or fails: who reads from it or waits for it comes to an end."""
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
        timer.join()
