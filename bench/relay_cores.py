"""How many cores a relay uses for streams that run at once, by its threads' CPU time, and what that costs and gives.

`cores_used_N`: of N channels with `seal_threads` 2, the CPU time of all threads of the dearer relay against that of its
busiest thread; 1 is one core. `threads_vs_one_N`: how much faster than the same without threads, in one interleaved
run; on two cores, which two relays and the ends of the streams share, it cannot be much above 1.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.harness import GB, Plan, Run, print_rounds, run_interleaved
from bench.peers import Carrier, Start
from bench.relay_stream import carry
from bench.sealane_peer import sealane

CHANNELS = (1, 2, 4)
THREADS = 2
STREAM_BYTES, QUICK_BYTES = 4 * GB, GB
_SAMPLE_SECONDS = 0.05


def measure(plan: Plan) -> dict[str, float]:
    """Run all rounds and return the figures of this part."""
    size_bytes = QUICK_BYTES if plan.quick else STREAM_BYTES
    used: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        starts = {threads: sealane(folder / f"t{threads}", seal_threads=threads) for threads in (0, THREADS)}
        contenders: dict[str, Callable[[], Run]] = {
            _name(channels, threads): partial(
                _run, start, channels, size_bytes, used.setdefault(_name(channels, threads), [])
            )
            for channels in CHANNELS
            for threads, start in starts.items()
        }
        rounds = run_interleaved("cores", contenders, plan.rounds_to_run)
    print_rounds(f"{size_bytes / GB:g} GB over several channels, median of {plan.rounds_to_run}", rounds, _name(1, 0))
    figures: dict[str, float] = {}
    for channels in CHANNELS:
        figures[f"cores_used_{channels}"] = sorted(used[_name(channels, THREADS)])[plan.rounds_to_run // 2]
        pair = _name(channels, THREADS), _name(channels, 0)
        figures[f"threads_vs_one_{channels}"] = rounds.times_as_fast(*pair)
    figures["cores_used_without_threads"] = max(used[_name(CHANNELS[-1], 0)])
    return figures


def _name(channels: int, threads: int) -> str:
    return f"{channels} ch, {threads} threads"


def _run(start: Start, channels: int, size_bytes: int, used: list[float]) -> Run:
    @contextmanager
    def watched(folder: Path, leave: Path) -> Iterator[Carrier]:
        with start(folder, leave) as carrier:
            with Threads(carrier.pids) as threads:
                yield carrier
            used.append(threads.cores_used())

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        return carry(watched, Path(name), size_bytes, channels)


class Threads:
    """CPU time of each thread of some processes while the block runs, sampled, as processes may end."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._seen: dict[int, dict[int, int]] = {pid: {} for pid in pids}
        self._first = {pid: _ticks(pid) for pid in pids}
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="threads", daemon=True)

    def __enter__(self) -> Threads:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            for pid, seen in self._seen.items():
                seen.update(_ticks(pid))

    def cores_used(self) -> float:
        """Of the process that used most: the time of all threads against that of the busiest."""
        spent = [
            [ticks - self._first[pid].get(thread, 0) for thread, ticks in seen.items()]
            for pid, seen in self._seen.items()
        ]
        dearest = max(spent, key=sum)
        return sum(dearest) / max(dearest)


def _ticks(pid: int) -> dict[int, int]:
    """utime and stime of each thread (proc(5), /proc/PID/task/TID/stat); none if the process has ended."""
    found = {}
    for file in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            text = file.read_text(encoding="ascii", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        fields = text[text.rindex(")") + 2 :].split()
        found[int(file.parent.name)] = int(fields[11]) + int(fields[12])
    return found
