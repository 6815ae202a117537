"""``make fuzz-guided``: every target of `targets` under libFuzzer, by the package atheris.

It sees which branches of our code an input reached and goes on from those that reached a new one, as often as decoder
and machine allow (docs/fuzzing.md). What led somewhere is kept in `.fuzz/NAME` and is where the next run begins.
Targets take turns, those that have had the least time first; `.fuzz/hours.json` counts, and a run that is stopped
counts what it ran. A target that fails has no more turns, its input is then `.fuzz/NAME.failure-*`. Exits 1 after a
failure, and if nothing was run. atheris is no dependency: `deploy/atheris.sh` fetches it.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fcntl
import importlib
import io
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.fuzz.hours import ROOT, Hours, Spent, commit_now, in_all, table
from tests.fuzz.keeping import HOURS, keep, take_up

KEPT: Final = ROOT / ".fuzz"
WORDS: Final = Path(__file__).with_name("words.dict")
ATHERIS: Final = ROOT / ".atheris"
OURS: Final = ["transport", "certs", "policy", "audit", "gateway"]
SHORTEST, LONGEST = 5, 300  # seconds of a turn
INPUT_SECONDS: Final = 20  # the longest that one input may take, on a machine that does much else
INPUT_BYTES: Final = 8192
MEMORY_MIB: Final = 1500
_RUNS: Final = re.compile(r"^(?:stat::number_of_executed_units: |#)(\d+)", re.M)
_REACHED: Final = re.compile(r"cov: \d+ ft: \d+ corp: \d+")


def begin(atheris: Any, target: Any, seconds: int) -> int:
    """A turn in a child of its own, which libFuzzer ends; or SIGUSR1, after the input that it is at. Returns its id."""
    corpus = KEPT / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate((*target.seeds, *target.wrong)):
        (corpus / f"seed-{number}").write_bytes(seed)
    sys.stdout.flush()
    child = os.fork()  # everything is imported by now, which takes longer than a turn on a slow machine
    if child:
        return child
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent says when to end
    with log_of(target.name).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    limits = [f"-timeout={INPUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}", f"-max_len={INPUT_BYTES}"]
    minimise(atheris, target, corpus, limits)
    kept = f"-artifact_prefix={KEPT / target.name}.failure-"
    ends = [f"-max_total_time={seconds}", "-print_final_stats=1", "-handle_int=0", "-handle_term=0"]
    atheris.Setup(["fuzz", str(corpus), "-len_control=20", f"-dict={WORDS}", *ends, *limits, kept], target)
    atheris.Fuzz()
    os._exit(0)


def minimise(atheris: Any, target: Any, corpus: Path, limits: list[str]) -> None:
    """Delete what reaches nothing that the seeds and smaller files do not: libFuzzer's merge, whose own way would run
    this program anew by its name. Its inner half writes what each file of a list reached.
    """
    files = sorted(corpus.iterdir(), key=lambda path: (not path.name.startswith("seed-"), path.stat().st_size))
    listed = KEPT / f"{target.name}.merge"
    listed.write_text("\n".join([str(len(files)), "0", *map(str, files), ""]))
    child = os.fork()
    if child == 0:
        atheris.Setup(["fuzz", "-merge_inner=1", f"-merge_control_file={listed}", *limits], target)
        atheris.Fuzz()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    reached: set[str] = set()
    for number, features in re.findall(r"^FT (\d+)(.*)$", listed.read_text(), re.M) if status == 0 else ():
        new = {*features.split()} - reached
        if not new and not files[int(number)].name.startswith("seed-"):
            files[int(number)].unlink()
        reached |= new
    listed.unlink()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The only run in this folder: two would take up what each other keeps, signed by keys that both have."""
    KEPT.mkdir(exist_ok=True)
    with (KEPT / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                "fuzz: another run goes on in .fuzz: wait for its end, or end it by Ctrl-C or SIGTERM"
            ) from None
        yield


def log_of(name: str) -> Path:
    return KEPT / f"{name}.log"


class Turns:
    """Which target is next, and what came of each; `jobs` at once, until the time is over or all have had enough."""

    def __init__(self, atheris: Any, targets: Sequence[Any], arguments: argparse.Namespace) -> None:
        self._atheris = atheris
        self._targets = {target.name: target for target in targets}
        self._enough, self._jobs = arguments.each, arguments.jobs
        self._turn = min(LONGEST, max(SHORTEST, arguments.seconds * arguments.jobs / len(targets)))
        self._hours, self._commit = Hours(KEPT / HOURS), commit_now()
        self._running: dict[int, str] = {}
        self._is_stopped = False
        self.spent = Spent()
        self.failed: list[str] = []

    def stop(self, *_: object) -> None:
        """No more turns, and those that are on end after the input that they are at."""
        self._is_stopped = True
        for child in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGUSR1)

    def run(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            while (left := until - time.monotonic()) > 0 and (found := self._next()) is not None:
                name, wanted = found
                turn = max(1, round(min(left, self._turn, max(SHORTEST, wanted))))
                self._running[begin(self._atheris, self._targets[name], turn)] = name
            if self._is_stopped:
                self.stop()  # one may have begun since
            if not self._running:
                return
            self._end_one()

    def _next(self) -> tuple[str, float] | None:
        """Who has had least, and not enough: and how much is wanting."""
        told = self._hours.read()
        had = {name: in_all(told.get(name, {})).seconds for name in self._targets}
        free = sorted(had.keys() - self._running.values() - {*self.failed})
        if self._is_stopped or len(self._running) >= self._jobs or not free:
            return None
        name = min(free, key=had.__getitem__)
        return (name, self._enough - had[name]) if had[name] < self._enough else None

    def _end_one(self) -> None:
        child, status, used = os.wait4(-1, 0)
        name = self._running.pop(child)
        said = log_of(name).read_text(errors="replace")
        inputs = max(map(int, _RUNS.findall(said)), default=0)
        spent = Spent(round(used.ru_utime + used.ru_stime, 2), inputs)
        total = self._hours.add(name, self._commit, spent)
        self.spent += spent
        reached = (_REACHED.findall(said) or ["nothing"])[-1]
        now, ever = (f"{each.inputs} inputs in {each.seconds:.0f} s" for each in (spent, total))
        print(f"fuzz: {name}: {now}; {reached}; in all {ever}")
        if status and os.waitstatus_to_exitcode(status) != -signal.SIGUSR1:  # which came before libFuzzer awaited it
            self.failed.append(name)
            print(f"{said[-6000:]}\nfuzz: FAILED: {name}")
        else:
            log_of(name).unlink()
        sys.stdout.flush()


def instrumented() -> tuple[Any, dict[str, Any]]:
    """atheris and the targets, with everything of ours under its eyes."""
    sys.path.insert(0, str(ATHERIS))
    atheris: Any = importlib.import_module("atheris")
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=OURS):
        targets: dict[str, Any] = importlib.import_module("tests.fuzz.targets").TARGETS
    return atheris, targets


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fuzz-guided", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of this run (FUZZ_SECONDS)")
    parser.add_argument("--each", type=float, default=float("inf"), metavar="SECONDS", help="enough, over all runs")
    parser.add_argument("--jobs", type=int, default=1, help="targets at once")
    parser.add_argument("--report", action="store_true", help="only print what was run, over all runs")
    parser.add_argument(
        "--keep", action="store_true", help="only pack what was reached, and the hours, into tests/fuzz/kept"
    )
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing has begun
    take_up(KEPT)
    if arguments.keep:
        print(f"fuzz: kept {', '.join(keep(KEPT)) or 'nothing'}")
        return
    atheris, targets = instrumented()
    names = list(dict.fromkeys(arguments.targets)) or list(targets)
    for name in names:
        if name not in targets:
            near = ", ".join(difflib.get_close_matches(name, targets, n=5, cutoff=0.4) or sorted(targets))
            parser.error(f"no target is called {name!r}; there are: {near}")
    if arguments.report:
        print(table(Hours(KEPT / HOURS).read(), names))
        return
    turns = Turns(atheris, [targets[name] for name in names], arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, turns.stop)
    with alone():
        turns.run(arguments.seconds)
    if turns.failed:
        raise SystemExit(f"fuzz: FAILED: {', '.join(turns.failed)}")
    if not turns.spent.inputs:
        raise SystemExit(
            f"fuzz: nothing was run in {arguments.seconds:g} s: give it more (FUZZ_SECONDS), or a greater --each"
        )
    print(f"fuzz: no failure in {turns.spent.inputs} inputs, {turns.spent.seconds:.0f} s of processor")


if __name__ == "__main__":
    main()
