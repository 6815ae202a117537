"""``make fuzz``: every Hypothesis test of the suite, over and over with new random examples, until time is up.

A target is any Hypothesis test (pytest marks them ``hypothesis``): a parser's own property tests are its fuzz
targets, and those that only make sense in great numbers live in this folder. Each pass draws twice as many examples
for each target as the one before, so that a short time sees every target and a long one goes deep. Exits 1 at the
first failure, with Hypothesis's smallest example and the blob that repeats it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "-x",
    "-n",
    "2",
    "-m",
    "hypothesis and not real",
    "-p",
    "no:cacheprovider",
]


FIRST_EXAMPLES = 100


def run_pass(seed: int, examples: int, timeout_seconds: float, more: list[str]) -> int | None:
    """One pass over all targets. Returns pytest's exit code, None when it was stopped by the timeout."""
    environment = os.environ | {"HYPOTHESIS_PROFILE": "fuzz", "FUZZ_EXAMPLES": str(examples)}
    command = [*PYTEST, f"--hypothesis-seed={seed}", *more]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            return process.wait(timeout_seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # pytest and its workers: all in the session made for them
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("pytest_arguments", nargs="*", help="for example tests/policy or -k jws")
    arguments, unknown = parser.parse_known_args()
    started = time.monotonic()
    passes = 0
    while (left := arguments.seconds - (time.monotonic() - started)) > 0:
        seed = time.time_ns() % 2**32
        examples = FIRST_EXAMPLES * 2**passes
        print(f"fuzz: pass {passes + 1}, {examples} examples a target, seed {seed}, {left:.0f} s left", flush=True)
        code = run_pass(seed, examples, left, [*arguments.pytest_arguments, *unknown])
        if code not in {None, 0}:
            print(f"fuzz: FAILED in pass {passes + 1}, seed {seed}")
            return 1
        passes += code is not None
    print(f"fuzz: no failure; whole passes: {passes}, seconds: {time.monotonic() - started:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
