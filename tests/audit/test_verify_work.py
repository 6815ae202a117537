"""Work in several processes: in order, and whichever of them is killed, nothing is left hanging or running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from audit.verify_work import in_order
from tests.processes import killed_after

PARENT = """
import sys, time
from audit.verify_work import in_order
from tests.audit.test_verify_work import own_pid
results = in_order(own_pid, iter(range(50)), 2)
print(*{next(results) for _ in range(40)}, flush=True)
time.sleep(600)
"""


def double(number: int) -> int:
    return 2 * number


def own_pid(_number: int) -> int:
    time.sleep(0.01)  # so that both processes get some
    return os.getpid()


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_results_come_in_the_order_of_their_jobs() -> None:
    assert list(in_order(double, iter(range(100)), 2)) == list(range(0, 200, 2))


def test_a_process_that_dies_is_an_error_and_no_wait() -> None:
    with pytest.raises(BrokenProcessPool):
        list(in_order(die, iter(range(100)), 2))


def test_workers_do_not_outlive_a_parent_that_is_killed() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent, killed_after(parent):
        assert parent.stdout is not None
        workers = [int(word) for word in parent.stdout.readline().split()]
        assert workers
        assert all(runs(worker) for worker in workers)
        parent.kill()
    end = time.monotonic() + 30
    while any(runs(worker) for worker in workers):
        assert time.monotonic() < end, "they are still there"
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
