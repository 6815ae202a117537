"""``make fuzz-guided``: every target of `targets` under libFuzzer, by the package atheris.

It sees which branches of our code an input reached and goes on from those that reached a new one, some thousand times a
second. What led somewhere is kept in `.fuzz/NAME` and is where the next run begins. Targets take turns, those that
have had the least time first; `.fuzz/done.json` counts. atheris is no dependency: `deploy/atheris.sh` fetches it.
Exits 1 at the first failure, whose input is then `.fuzz/NAME.failure-*`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
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


def run_one(name: str, seconds: int) -> tuple[int, int]:
    """One target in a process of its own. Returns how many inputs it was given and for how many seconds."""
    corpus = KEPT / name
    corpus.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "tests.fuzz.guided", "--inside", name, str(corpus),
        f"-max_total_time={seconds}", f"-timeout={INPUT_SECONDS}", f"-max_len={INPUT_BYTES}", "-len_control=20",
        f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={KEPT / name}.failure-", "-print_final_stats=1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", check=False)
    found = _RUNS.search(done.stderr)
    if done.returncode or found is None:
        print(done.stdout[-2000:], done.stderr[-6000:], sep="\n")
        raise SystemExit(f"fuzz: FAILED: {name}")
    return int(found[1]), int(found[2])


def inside(name: str, libfuzzer: list[str]) -> None:
    """In the process of one target: everything of ours is imported under atheris, which adds what it must see."""
    sys.path.insert(0, str(ATHERIS))
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=OURS):
        targets = importlib.import_module("tests.fuzz.targets").TARGETS
    target = targets[name]
    corpus = Path(libfuzzer[0])
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *libfuzzer], target)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(prog="make fuzz-guided", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--slice", type=int, default=60, help="seconds that a target has before it is another's turn")
    parser.add_argument("targets", nargs="*")
    arguments = parser.parse_args()
    names = arguments.targets or list(importlib.import_module("tests.fuzz.targets").TARGETS)
    KEPT.mkdir(exist_ok=True)
    done: dict[str, list[int]] = json.loads(DONE.read_text()) if DONE.exists() else {}
    until = time.monotonic() + arguments.seconds
    while (left := until - time.monotonic()) > 1:
        name = min(names, key=lambda each: done.get(each, [0, 0])[1])
        runs, seconds = run_one(name, max(1, round(min(left, arguments.slice))))
        before = done.get(name, [0, 0])
        done[name] = [before[0] + runs, before[1] + seconds]
        DONE.write_text(json.dumps(done, indent=0, sort_keys=True))
        print(f"fuzz: {name}: {runs} inputs in {seconds} s; in all {done[name][0]} in {done[name][1]} s", flush=True)
    print("fuzz: no failure")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
    else:
        main()
