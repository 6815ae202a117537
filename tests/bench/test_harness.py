from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from bench.harness import (
    BenchError,
    Meter,
    Rounds,
    Run,
    children_of,
    cpu_seconds,
    peak_rss_bytes,
    relay_figures,
    run_interleaved,
    wait_until,
    write_results,
)

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"


def test_ratios_compare_neighbours_of_a_round_and_not_medians_of_all() -> None:
    # The machine became five times slower in rounds 3 and 4; theirs took twice as long throughout.
    ours = [Run(seconds, 100) for seconds in (1.0, 1.0, 5.0, 5.0, 1.0)]
    theirs = [Run(2 * run.seconds, 100) for run in ours]
    assert Rounds({"ours": ours, "theirs": theirs}).times_as_fast("ours", "theirs") == 2.0


def test_every_contender_runs_once_a_round_and_each_round_begins_with_another() -> None:
    order: list[str] = []

    def contender(name: str) -> Run:
        order.append(name)
        return Run(1.0, 1)

    names = ("a", "b", "c")
    rounds = run_interleaved("test", {name: partial(contender, name) for name in names}, 3)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert {name: len(runs) for name, runs in rounds.runs.items()} == {"a": 3, "b": 3, "c": 3}


def test_units_are_decimal_and_cpu_is_per_gigabyte() -> None:
    run = Run(seconds=2.0, size_bytes=4 * 10**9, cpu_seconds=6.0, peak_rss_bytes=3 * 2**20)
    figures = relay_figures("stream", Rounds({"qemu-tls": [run]}))
    assert figures == {
        "stream_qemu_tls_mb_s": 2000.0,
        "stream_qemu_tls_seconds": 2.0,
        "stream_qemu_tls_cpu_s_per_gb": 1.5,
        "stream_qemu_tls_rss_mib": 3.0,
    }


def test_a_process_that_ended_still_counts_until_its_parent_has_waited_for_it() -> None:
    with subprocess.Popen([sys.executable, "-S", "-c", BURN]) as process:
        with Meter([process.pid]) as meter:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and left as a zombie
        assert meter.cpu_seconds >= 0.25
        assert meter.peak_rss_bytes > 2**20
        assert process.pid in children_of(os.getpid())
        process.wait()
    assert cpu_seconds(process.pid) == 0.0
    assert peak_rss_bytes(process.pid) == 0


def test_a_child_of_a_measured_process_counts_too() -> None:
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-S', '-c', {BURN!r}])\n"
    with subprocess.Popen([sys.executable, "-S", "-c", parent]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert cpu_seconds(process.pid) >= 0.25


def test_what_never_happens_is_an_error_that_says_what() -> None:
    with pytest.raises(BenchError, match="the start of nothing did not happen"):
        wait_until(lambda: False, "the start of nothing", seconds=0.01)


def test_results_are_one_json_object_with_machine_and_flat_figures(tmp_path: Path) -> None:
    path = tmp_path / "results" / "relay.json"
    write_results(path, {"old": 1.0})
    write_results(path, {"stream_vs_haproxy": 1.654321, "relay_rss_mib": 72.0})
    written = json.loads(path.read_bytes())
    assert written["figures"] == {"relay_rss_mib": 72.0, "stream_vs_haproxy": 1.654}
    assert set(written["machine"]) == {"cpu", "cores", "memory", "kernel", "python", "date"}
