"""`make soak-sinks`: KILLS kills of each receiver while the shipper delivers to it; one JSON line for each on stdout.

Exits 1 where something is missing at an acknowledging receiver. Syslog has no acknowledgement: what it misses is told.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from audit.siem.syslog import Resend
from tests.audit.siem.elastic_receiver import ElasticsearchReceiver
from tests.audit.siem.receivers import FakeSplunkReceiver, FakeWebhookReceiver, RsyslogReceiver
from tests.audit.siem.sink_contract import killed_at_random_it_misses_nothing

RECEIVERS: dict[str, Callable[[Path], Any]] = {
    "elasticsearch": ElasticsearchReceiver,
    "relp": lambda folder: RsyslogReceiver(folder, "relp"),
    "syslog": lambda folder: RsyslogReceiver(folder, "syslog"),
    "syslog-without-resending": lambda folder: RsyslogReceiver(folder, "syslog", resend=Resend(0, 0)),
    "fake-splunk": FakeSplunkReceiver,
    "fake-webhook": FakeWebhookReceiver,
}
ACKNOWLEDGED = {"elasticsearch", "relp", "fake-splunk", "fake-webhook"}
TOLD_EVERY: Final = 10  # restarts


def soak(name: str, kills: int, seed: int, minutes: float) -> dict[str, Any]:
    """One receiver's run: how many entries there were, which are missing, how many came more than once."""
    end = time.monotonic() + minutes * 60
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        receiver = RECEIVERS[name](Path(folder))
        restarts = receiver.start = Restarts(name, kills, receiver.start)
        try:
            run = partial(
                killed_at_random_it_misses_nothing,
                receiver,
                Path(folder),
                kills,
                seed,
                restart_seconds=240,
                goes_on=lambda: time.monotonic() < end,
            )
            missing = trio.run(run)
            held = Counter(receiver.held())
        finally:
            receiver.close()
    return {
        "receiver": name,
        "kills": len(restarts.seconds),
        "slowest_restart_seconds": round(max(restarts.seconds, default=0.0), 1),
        "entries": len(held) + len(missing),
        "missing": len(missing),
        "first_missing": missing[:10],
        "repeated": sum(count - 1 for count in held.values()),
    }


class Restarts:
    """`start`, timed. Tells on stderr how far the run has come: an hour of silence looks like a hang."""

    def __init__(self, name: str, kills: int, start: Callable[[], None]) -> None:
        self._name, self._kills, self._start = name, kills, start
        self.seconds: list[float] = []

    def __call__(self) -> None:
        began = time.monotonic()
        self._start()
        self.seconds.append(time.monotonic() - began)
        if len(self.seconds) % TOLD_EVERY == 0:
            print(f"{self._name}: killed {len(self.seconds)} times of {self._kills}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.sinks", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=RECEIVERS, help="this receiver and no other")
    parser.add_argument("--minutes", type=float, default=600, help="for each receiver: then no more kills")
    options = parser.parse_args()
    results = []
    for name in [options.only] if options.only else RECEIVERS:
        results.append(soak(name, options.kills, options.seed, options.minutes))
        print(json.dumps(results[-1]), flush=True)
    return 1 if any(each["missing"] and each["receiver"] in ACKNOWLEDGED for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
