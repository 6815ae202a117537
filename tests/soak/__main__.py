"""`make soak`: KILLS kills of a gateway under load; prints progress on stderr and one JSON line on stdout."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from tests.soak.kills import as_json, soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=Path(".soak"), help="goes on from where it was left there")
    parser.add_argument("--fresh", action="store_true", help="throw away what is in the folder")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(options.folder, ignore_errors=True)
    started = time.monotonic()

    def tell(kills: int) -> None:
        print(
            f"\r{kills} of {options.kills} kills, {time.monotonic() - started:.0f} s",
            end="",
            file=sys.stderr,
            flush=True,
        )

    result = soak(options.folder, options.kills, tell)
    print(file=sys.stderr)
    print(as_json(result))
    return 0 if result.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
