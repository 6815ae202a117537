"""What every measurement needs: whose CPU and memory, medians of interleaved rounds, tables, result files.

MB and GB are decimal (10^6, 10^9 bytes); MiB is 2^20.
"""

from __future__ import annotations

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table

from certs.files import write_atomically

MB = 10**6
GB = 10**9
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_SAMPLE_SECONDS = 0.05
_console = Console(highlight=False, width=None if Console().is_terminal else 110)
T = TypeVar("T")


class BenchError(Exception):
    """A measurement could not be made: what failed, and what to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the caller asked for. `quick` means one short round. `records`: of the log that area audit measures on."""

    rounds: int
    quick: bool
    peers: frozenset[str]
    records: int

    @property
    def rounds_to_run(self) -> int:
        return 1 if self.quick else self.rounds


@dataclass(frozen=True, slots=True)
class Run:
    """One contender in one round. `cpu_seconds` and `peak_rss_bytes` are of its relaying processes only."""

    seconds: float
    size_bytes: int
    cpu_seconds: float = 0.0
    peak_rss_bytes: int = 0  # of the larger of its processes

    @property
    def mb_per_second(self) -> float:
        return self.size_bytes / MB / self.seconds

    @property
    def cpu_seconds_per_gb(self) -> float:
        return self.cpu_seconds / (self.size_bytes / GB)


# --- Processes ------------------------------------------------------------------------------------------------------


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from `state` on (proc(5), field 3), empty when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text[text.rindex(")") + 2 :].split()


def children_of(pid: int) -> list[int]:
    """Living children and zombies of every thread of a process."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, file.read_text(encoding="ascii").split())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, of its descendants, and of those it has waited for.

    A zombie still tells its times, so a process that has ended counts until its parent has waited for it.
    """
    fields = _stat_fields(pid)
    own = sum(map(int, fields[11:15])) / _TICKS_PER_SECOND if fields else 0.0  # utime, stime, cutime, cstime
    return own + sum(cpu_seconds(child) for child in children_of(pid))


def forget_peak_rss(pid: int) -> None:
    """What `peak_rss_bytes` tells begins anew, at what the process holds now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_rss_bytes(pid: int) -> int:
    """VmHWM of a process: the most memory that it ever had resident. 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")]
    return max(own + [peak_rss_bytes(child) for child in children_of(pid)], default=0)


class Meter:
    """CPU time and peak memory of some processes while the block runs; memory is sampled, as processes may end."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="meter", daemon=True)
        self._cpu_at_start = 0.0
        self.cpu_seconds = 0.0
        self.peak_rss_bytes = 0

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self.peak_rss_bytes = max([self.peak_rss_bytes, *map(peak_rss_bytes, self._pids)])

    def __enter__(self) -> Self:
        self._cpu_at_start = sum(map(cpu_seconds, self._pids))
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu_seconds = sum(map(cpu_seconds, self._pids)) - self._cpu_at_start
        self._done.set()
        self._sampler.join()


def wait_until(happened: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Poll for something that gives no notice. BenchError at the deadline."""
    end = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > end:
            raise BenchError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.005)


def keep_apart(*hosts: Sequence[int]) -> list[int]:
    """Each host's processes, with all of their threads, on a core of its own; what they begin later stays there. The
    cores, by host."""
    cores = sorted(os.sched_getaffinity(0))[: len(hosts)]
    if len(cores) < len(hosts):
        raise BenchError("each host needs a core of its own")
    for core, pids in zip(cores, hosts, strict=True):
        for pid in pids:
            for thread in Path(f"/proc/{pid}/task").iterdir():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread.name), {core})
    return cores


# --- Rounds ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rounds:
    """Runs of all contenders, one of each in each round."""

    runs: dict[str, list[Run]] = field(default_factory=dict)

    def median(self, name: str, what: Callable[[Run], float]) -> float:
        return statistics.median(map(what, self.runs[name]))

    def times_as_fast(self, name: str, other: str) -> float:
        """Median over the rounds of other's time divided by name's, of runs that were neighbours in time."""
        pairs = zip(self.runs[name], self.runs[other], strict=True)
        return statistics.median(theirs.seconds / ours.seconds for ours, theirs in pairs)

    def cpu_against(self, name: str, other: str) -> float:
        """Median over the rounds of name's CPU time for each byte divided by other's."""
        pairs = zip(self.runs[name], self.runs[other], strict=True)
        return statistics.median(ours.cpu_seconds_per_gb / theirs.cpu_seconds_per_gb for ours, theirs in pairs)


def run_interleaved(title: str, contenders: Mapping[str, Callable[[], Run]], rounds: int) -> Rounds:
    """Every contender once a round; each round begins with another one, so that no one always follows the same."""
    result = Rounds({name: [] for name in contenders})
    names = list(contenders)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            with _console.status(f"{title}: round {number + 1} of {rounds}, {name}"):
                run = contenders[name]()
            result.runs[name].append(run)
            _console.print(f"[dim]{title}, round {number + 1}: {name} {run.mb_per_second:,.0f} MB/s[/dim]")
    return result


def relay_figures(prefix: str, rounds: Rounds) -> dict[str, float]:
    """Flat figures of every contender: <prefix>_<name>_mb_s, _seconds, _cpu_s_per_gb, _rss_mib."""
    figures: dict[str, float] = {}
    for name in rounds.runs:
        key = f"{prefix}_{name.replace('-', '_')}"
        figures[f"{key}_mb_s"] = rounds.median(name, lambda run: run.mb_per_second)
        figures[f"{key}_seconds"] = rounds.median(name, lambda run: run.seconds)
        if any(run.cpu_seconds for run in rounds.runs[name]):
            figures[f"{key}_cpu_s_per_gb"] = rounds.median(name, lambda run: run.cpu_seconds_per_gb)
        if any(run.peak_rss_bytes for run in rounds.runs[name]):
            figures[f"{key}_rss_mib"] = rounds.median(name, lambda run: run.peak_rss_bytes) / 2**20
    return figures


# --- Output ---------------------------------------------------------------------------------------------------------


def print_rounds(title: str, rounds: Rounds, reference: str) -> None:
    """A table of medians, fastest first; `x` is the speed of `reference` over that row's."""
    table = Table(title=title)
    for heading in ("", "MB/s", "lowest", "highest", "CPU s/GB", "RSS MiB", f"{reference} x"):
        table.add_column(heading, justify="right" if heading else "left")
    for name in sorted(rounds.runs, key=lambda name: -rounds.median(name, lambda run: run.mb_per_second)):
        speeds = [run.mb_per_second for run in rounds.runs[name]]
        cpu = rounds.median(name, lambda run: run.cpu_seconds_per_gb)
        rss = rounds.median(name, lambda run: run.peak_rss_bytes) / 2**20
        compared = reference in rounds.runs and name != reference
        table.add_row(
            name,
            f"{statistics.median(speeds):,.0f}",
            f"{min(speeds):,.0f}",
            f"{max(speeds):,.0f}",
            f"{cpu:.2f}" if cpu else "-",
            f"{rss:.0f}" if rss else "-",
            f"{rounds.times_as_fast(reference, name):.2f}" if compared else "-",
            style="bold" if name == reference else None,
        )
    _console.print(table)


def tell(progress: str) -> None:
    """One line of how far a measurement is."""
    _console.print(f"[dim]{progress}[/dim]")


def print_figures(area: str, figures: Mapping[str, float]) -> None:
    """The figures as they stand in the result file."""
    table = Table(title=f"figures of {area}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in rounded(figures).items():
        table.add_row(name, f"{value:g}")
    _console.print(table)


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Four significant digits: more would claim what no run here can show."""
    return {name: float(f"{value:.4g}") for name, value in sorted(figures.items())}


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    info = _lines_of("/proc/cpuinfo")
    memory = next(line for line in _lines_of("/proc/meminfo") if line.startswith("MemTotal:"))
    return {
        "cpu": next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown"),
        "cores": os.cpu_count(),
        "memory": f"{int(memory.split()[1]) / 2**20:.1f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _lines_of(path: str) -> Iterable[str]:
    return Path(path).read_text(encoding="utf-8").splitlines()


def write_results(path: Path, figures: Mapping[str, float]) -> None:
    """Replace the area's result file as a whole: figures of two runs must never stand beside each other."""
    path.parent.mkdir(exist_ok=True)
    content = msgspec.json.encode({"machine": machine(), "figures": rounded(figures)})
    write_atomically(path, msgspec.json.format(content, indent=2) + b"\n")
    _console.print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
