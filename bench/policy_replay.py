"""How many decisions of a log are made again in a second, by one core: `sealane policy replay` without its printing.

The log holds decisions by a bundle of 100 policies of mixed kinds, for forty people who are in a hundred groups each,
as the gateway writes them; it is replayed under that bundle, and under one that decides otherwise.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from audit.group import Unsigned
from audit.log import Log
from audit.record import Record, Vm, format_time
from bench.audit_log_maker import ORIGIN, UnsafeDisk, bench_signer
from bench.harness import BenchError, Plan
from bench.policy_decisions import made_bundle, made_questions
from gateway.cli.past_decisions import PastDecisions
from gateway.deciding import decision_document
from gateway.recording import actor_of
from policy.authoring.compare import Comparison, compare, rules_of
from policy.decision import evaluate
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
    """`replay_per_s`, processor time of one thread."""
    files = made_bundle(POLICIES)
    count = QUICK_DECISIONS if plan.quick else DECISIONS
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        log = make_log(Path(name) / "log", rules_of(files), count)
        rates = []
        for _ in range(plan.rounds_to_run):
            began = time.process_time()
            same = _replay(log, files)
            rates.append(count / (time.process_time() - began))
        other = _replay(log, files | {"policies/more.cedar": ONE_MORE})
    if (same.compared, same.differing, same.shifted) != (count, 0, 0) or not other.differing:
        raise BenchError(f"a replay found {same.differing} differences of its own bundle, {other.differing} of another")
    return {"replay_per_s": statistics.median(rates), "replay_decisions": float(count)}


def _replay(log: Path, files: dict[str, str]) -> Comparison:
    return compare(None, rules_of(files), PastDecisions(log, "2020-01-01").decisions())


def make_log(folder: Path, rules: Rules, count: int) -> Path:
    """A log of `count` decisions by these rules."""
    with Log.open(folder, bench_signer(), disk=UnsafeDisk()) as log:
        records = _records(rules, count)
        while entries := list(itertools.islice(records, A_COMMIT)):
            log.append([lambda _, entries=entries: entries])  # type: ignore[misc]
    return folder


def _records(rules: Rules, count: int) -> Iterator[Unsigned]:
    questions = list(made_questions())
    for number in range(count):
        question = questions[number % len(questions)]
        assert question.vm is not None
        decision = evaluate(rules, "0" * 64, request_of(question), entities_of(question))
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
                actor=actor_of(question.person),
                vm=Vm(question.vm.uuid, question.vm.name),
                details={
                    "decision": decision_document(decision),
                    "policy_request": decision.request,
                    "policy_entities": compact_entities(decision.entities),
                },
            )
        )
