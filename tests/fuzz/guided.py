"""``make fuzz-guided``: every target of `targets` under libFuzzer, by the package atheris.

It sees which branches of our code an input reached and goes on from those that reached a new one, as often as decoder
and machine allow (docs/fuzzing.md). What led somewhere is kept in `.fuzz/NAME` and is where the next run begins.
Targets take turns, those that have had the least time first; `.fuzz/done.json` counts. atheris is no dependency:
`deploy/atheris.sh` fetches it. Exits 1 at the first failure, whose input is then `.fuzz/NAME.failure-*`, and if
nothing was run.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
KEPT: Final = ROOT / ".fuzz"
ATHERIS: Final = ROOT / ".atheris"
DONE: Final = KEPT / "done.json"
OURS: Final = ["transport", "certs", "policy", "audit", "gateway"]
INPUT_SECONDS: Final = 20  # the longest that one input may take, on a machine that does much else
INPUT_BYTES: Final = 8192
MEMORY_MIB: Final = 1500
_RUNS: Final = re.compile(r"Done (\d+) runs in (\d+) second")


def run_one(atheris: Any, target: Any, seconds: int) -> tuple[int, int]:
    """One target in a child of its own, which libFuzzer ends. Returns how many inputs it took, in how many seconds."""
    corpus, said = KEPT / target.name, KEPT / f"{target.name}.log"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    sys.stdout.flush()
    child = os.fork()  # everything is imported by now, which takes longer than a slice on a slow machine
    if child == 0:
        with said.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        limits = [f"-timeout={INPUT_SECONDS}", f"-max_len={INPUT_BYTES}", f"-rss_limit_mb={MEMORY_MIB}"]
        kept = f"-artifact_prefix={KEPT / target.name}.failure-"
        atheris.Setup(["fuzz", str(corpus), f"-max_total_time={seconds}", "-len_control=20", *limits, kept], target)
        atheris.Fuzz()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    text = said.read_text(errors="replace")
    found = _RUNS.search(text)
    if status or found is None:
        raise SystemExit(f"{text[-6000:]}\nfuzz: FAILED: {target.name}")
    said.unlink()
    return int(found[1]), int(found[2])


def instrumented() -> tuple[Any, dict[str, Any]]:
    """atheris and the targets, with everything of ours under its eyes."""
    sys.path.insert(0, str(ATHERIS))
    atheris: Any = importlib.import_module("atheris")
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=OURS):
        targets: dict[str, Any] = importlib.import_module("tests.fuzz.targets").TARGETS
    return atheris, targets


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fuzz-guided", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--slice", type=int, default=60, help="seconds that a target has before it is another's turn")
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    atheris, targets = instrumented()
    names = arguments.targets or list(targets)
    for name in names:
        if name not in targets:
            near = ", ".join(difflib.get_close_matches(name, targets, n=5, cutoff=0.4) or sorted(targets))
            parser.error(f"no target is called {name!r}; there are: {near}")
    KEPT.mkdir(exist_ok=True)
    done: dict[str, list[int]] = json.loads(DONE.read_text()) if DONE.exists() else {}
    until = time.monotonic() + arguments.seconds
    turns = inputs = 0
    while (left := until - time.monotonic()) > 0:
        name = min(names, key=lambda each: done.get(each, [0, 0])[1])
        runs, seconds = run_one(atheris, targets[name], max(1, round(min(left, arguments.slice))))
        before = done.get(name, [0, 0])
        done[name] = [before[0] + runs, before[1] + seconds]
        DONE.write_text(json.dumps(done, indent=0, sort_keys=True))
        print(f"fuzz: {name}: {runs} inputs in {seconds} s; in all {done[name][0]} in {done[name][1]} s", flush=True)
        turns, inputs = turns + 1, inputs + runs
    if not inputs:
        raise SystemExit(f"fuzz: nothing was run in {arguments.seconds:g} s: give it more (FUZZ_SECONDS)")
    print(f"fuzz: no failure in {inputs} inputs; turns: {turns}, targets: {len(names)}")


if __name__ == "__main__":
    main()
