"""How many decisions of a log are made again in a second, by one core: `sealane policy replay` without its printing.

Two logs, as the gateway writes them. One is of the example bundle, and of the moves that its own tests' people, VMs and
hosts make possible; the other of 100 policies of mixed kinds. Everybody is in a hundred groups. Each log is replayed
under the bundle that decided it, and under one that decides otherwise.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from audit.group import Unsigned
from audit.log import Log
from audit.record import Record, format_time
from bench.audit_log_maker import ORIGIN, UnsafeDisk, bench_signer
from bench.harness import BenchError, Plan
from bench.policy_decisions import made_bundle, made_questions
from gateway.cli.past_decisions import PastDecisions
from gateway.deciding import decision_document
from gateway.starter import EXAMPLE_BUNDLE
from policy.authoring.compare import Asked, Comparison, compare, grid, rules_of
from policy.bundle_files import read_bundle_files
from policy.cedar_policy import GROUP
from policy.decision import evaluate
from policy.facts import VM_ACTIONS
from policy.many_groups import compact_entities
from policy.request import entities_of, request_of
from policy.rules import Rules

POLICIES = 100
DECISIONS = 8_000
QUICK_DECISIONS = 800
A_COMMIT = 400
NOW = datetime(2026, 11, 1, tzinfo=UTC)
ONE_MORE = '@id("made-more") @reason("R.") forbid (principal, action, resource) when { context.reason_given };'


def measure(plan: Plan) -> dict[str, float]:
    """`replay_per_s` of the example bundle, `replay_per_s_100` of 100 policies: by processor time of one thread."""
    example = read_bundle_files(EXAMPLE_BUNDLE)
    made = made_bundle(POLICIES)
    return {
        "replay_per_s": _rate(plan, example, example_asked(example)),
        "replay_per_s_100": _rate(plan, made, made_asked()),
    }


def _rate(plan: Plan, files: dict[str, str], asked: Sequence[Asked]) -> float:
    count = QUICK_DECISIONS if plan.quick else DECISIONS
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        log = make_log(Path(name) / "log", rules_of(files), asked, count)
        rates = []
        for _ in range(plan.rounds_to_run):
            began = time.process_time()
            same = _replay(log, files)
            rates.append(count / (time.process_time() - began))
        other = _replay(log, files | {"policies/more.cedar": ONE_MORE})
    if (same.compared, same.differing, same.shifted) != (count, 0, 0) or not other.differing:
        raise BenchError(f"a replay found {same.differing} differences of its own bundle, {other.differing} of another")
    return statistics.median(rates)


def example_asked(files: dict[str, str]) -> list[Asked]:
    """The grid's moves, by people who are in a hundred groups more than their tests say."""
    more = [{"type": GROUP, "id": f"S-1-5-21-7-7-7-{1000 + number}"} for number in range(100)]
    asked, _ = grid(files)
    moves = [each for each in asked if each.request["action"]["id"] in VM_ACTIONS]
    return [
        replace(
            each, entities=[{**each.entities[0], "parents": each.entities[0]["parents"] + more}, *each.entities[1:]]
        )
        for each in moves
    ]


def made_asked() -> list[Asked]:
    """What the decisions of `policy_decisions` are asked."""
    return [Asked("", request_of(question), entities_of(question)) for question in made_questions()]


def _replay(log: Path, files: dict[str, str]) -> Comparison:
    return compare(None, rules_of(files), PastDecisions(log, "2020-01-01").decisions())


def make_log(folder: Path, rules: Rules, asked: Sequence[Asked], count: int) -> Path:
    """A log of `count` decisions by these rules."""
    with Log.open(folder, bench_signer(), disk=UnsafeDisk()) as log:
        records = _records(rules, asked, count)
        while entries := list(itertools.islice(records, A_COMMIT)):
            log.append([lambda _, entries=entries: entries])  # type: ignore[misc]
    return folder


def _records(rules: Rules, asked: Sequence[Asked], count: int) -> Iterator[Unsigned]:
    for number, each in enumerate(itertools.islice(itertools.cycle(asked), count)):
        decision = evaluate(rules, "0" * 64, each.request, each.entities)
        yield Unsigned.of(
            Record(
                version=2,
                clock_error_us=0,
                kind="migration.decision",
                origin=ORIGIN,
                sequence=number,
                boot_id="0" * 32,
                time=format_time(NOW + timedelta(seconds=number)),
                monotonic_ns=number,
                outcome="allowed" if decision.allowed else "denied",
                details={
                    "decision": decision_document(decision),
                    "policy_request": decision.request,
                    "policy_entities": compact_entities(decision.entities),
                },
            )
        )
