"""`python -m bench`: which areas to measure, how long, against whom."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import (
    audit_asking,
    audit_log,
    audit_log_maker,
    certs,
    drain_check,
    libvirt_migration,
    permit_directory,
    permit_latency,
    policy_decisions,
    policy_replay,
    relay_cores,
    relay_cuts,
    relay_downtime,
    relay_idle,
    relay_link,
    relay_migration,
    relay_stream,
    siem_backlog,
    siem_elastic,
    siem_rsyslog,
)
from bench.harness import BenchError, Plan, print_figures, write_results
from bench.peers import PEER_NAMES

PARTS = {
    "relay": {
        "stream": relay_stream.measure,
        "migration": relay_migration.measure,
        "stream-apart": relay_stream.measure_apart,
        "migration-apart": relay_migration.measure_apart,
        "multifd": relay_migration.measure_multifd,
        "downtime": relay_downtime.measure,
        "libvirt": libvirt_migration.measure,
        "idle": relay_idle.measure,
        "link": relay_link.measure,
        "cuts": relay_cuts.measure,
        "cores": relay_cores.measure,
    },
    "policy": {
        "permit": permit_latency.measure,
        "directory": permit_directory.measure,
        "decisions": policy_decisions.measure,
        "replay": policy_replay.measure,
        "drain": drain_check.measure,
    },
    "audit": {"log": audit_log.measure, "asking": audit_asking.measure, "gateway": audit_log.measure_gateway},
    "certs": {"hosts": certs.measure},
    "siem": {"rsyslog": siem_rsyslog.measure, "elastic": siem_elastic.measure, "backlog": siem_backlog.measure},
}
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(PARTS)}; without: all")
    parser.add_argument("--rounds", type=int, default=5, help="of which the medians are taken (default 5)")
    parser.add_argument("--quick", action="store_true", help="short runs to see that all works; writes no results")
    parser.add_argument("--only", metavar="PART", help="stream, migration, …; its results go to a file of their own")
    parser.add_argument("--peers", help=f"comma-separated, of {', '.join(PEER_NAMES)}; writes no results")
    parser.add_argument(
        "--records", type=int, help="of the log of area audit (default 5,000,000; quick 80,000); fewer write no results"
    )
    options = parser.parse_args()
    peers = frozenset(options.peers.split(",")) if options.peers else frozenset(PEER_NAMES)
    for what, names, known in (("area", options.areas, PARTS), ("peer", peers, PEER_NAMES)):
        if unknown := set(names) - set(known):
            parser.error(f"unknown {what} {', '.join(sorted(unknown))}: use {', '.join(known)}")
    records = options.records or (80_000 if options.quick else audit_log_maker.ENTRIES)
    plan = Plan(rounds=options.rounds, quick=options.quick, peers=peers, records=records)
    whole = not (options.quick or options.peers) and records >= audit_log_maker.ENTRIES
    if options.only and not any(options.only in PARTS[area] for area in options.areas or PARTS):
        parser.error(
            f"unknown part {options.only}: use {', '.join(part for parts in PARTS.values() for part in parts)}"
        )
    failed = False
    for area in options.areas or PARTS:
        figures: dict[str, float] = {}
        for part, measure in PARTS[area].items():
            if options.only in {None, part}:
                try:
                    figures |= measure(plan)
                except BenchError as error:
                    # The figures of the others took minutes each, and stand for themselves.
                    print(f"bench: {area} {part}: {error}", file=sys.stderr)
                    failed = True
        if not figures:
            continue
        print_figures(area, figures)
        if whole:
            # Of a part alone beside the others, whose figures are of another run.
            write_results(RESULTS / (f"{area}.{options.only}.json" if options.only else f"{area}.json"), figures)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
