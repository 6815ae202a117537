"""Work for several processes, whose results come in order and never pile up. Of the verifier, and lent to the index.

A process that dies (out of memory, say) raises `BrokenExecutor` here; if this one is killed, the others end, too.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process
from typing import TypeVar

_AHEAD = 4  # jobs of each process that wait or are done: what bounds the memory

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_order(work: Callable[[Job], Result], jobs: Iterator[Job], workers: int) -> Iterator[Result]:
    """`work`, a function of a module, of each job. Raises what it raises."""
    # Not forked: a process that holds threads and locks of others is none to copy.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        waiting: list[Future[Result]] = []
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for one in waiting:
                one.cancel()


def _end_with_parent() -> None:
    """A worker waits for work at a queue of which it holds the other end, too: nothing else would end it."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
