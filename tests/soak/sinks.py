"""`make soak-sinks`: KILLS kills of each receiver while the shipper delivers to it; one JSON line for each on stdout.

Exits 1 where something is missing at an acknowledging receiver. Syslog has no acknowledgement: what it misses is told.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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


def soak(name: str, kills: int, seed: int) -> dict[str, Any]:
    """One receiver's run: how many entries there were, which are missing, how many came more than once."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        receiver = RECEIVERS[name](Path(folder))
        try:
            run = partial(killed_at_random_it_misses_nothing, receiver, Path(folder), kills, seed, restart_seconds=60)
            missing = trio.run(run)
            held = Counter(receiver.held())
        finally:
            receiver.close()
    return {
        "receiver": name,
        "kills": kills,
        "entries": len(held) + len(missing),
        "missing": len(missing),
        "repeated": sum(count - 1 for count in held.values()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.sinks", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=RECEIVERS, help="this receiver and no other")
    options = parser.parse_args()
    results = [soak(name, options.kills, options.seed) for name in ([options.only] if options.only else RECEIVERS)]
    for result in results:
        print(json.dumps(result))
    return 1 if any(each["missing"] and each["receiver"] in ACKNOWLEDGED for each in results) else 0


if __name__ == "__main__":
    sys.exit(main())
