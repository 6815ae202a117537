"""How long the policy engine needs for one decision, and how a large bundle is loaded beside it.

Decisions are of an engine that is warm: permits of groups, of zones and of networks, forbids by tag, country, hour and
age of a fact, asked by people in a hundred nested groups; each decision evaluates every policy. The bundle of 1,000
policies is loaded as the gateway does it, while a task of the same event loop measures how long it is kept waiting.
"""

# ruff: noqa: E501 - policies, a line each

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio

import policy
from bench.harness import Plan
from policy.bundle import Bundle
from policy.bundle_files import MANIFEST, SCHEMA
from policy.engine import decide
from policy.facts import Context, HostFacts, Person, Provenance, Question, VmFacts, VmProvenance

POLICIES_A_FILE = 50
WARM_UP = 200
DECISIONS_PER_ROUND = 1_000
QUICK_DECISIONS = 300
TICK_SECONDS = 0.001
_DOMAIN = "S-1-5-21-1004336348-1177238915-682003330-"
_NOON = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
_CONDITIONS = (
    'forbid (principal, action in Sealane::Action::"AnyMove", resource) when {{ resource.tags.contains("tag-{n}") }};',
    'permit (principal in Sealane::Group::"{group}", action == Sealane::Action::"MigrateVm", resource)'
    ' when {{ resource.zone == "zone-{m}" && context.destination.zone == resource.zone }};',
    'permit (principal in Sealane::Group::"{group}", action in [Sealane::Action::"MigrateVm", Sealane::Action::"Evacuate"],'
    ' resource) when {{ context.destination.address.isInRange(ip("10.{m}.0.0/16")) && context.ports.contains("memory") }};',
    'forbid (principal, action == Sealane::Action::"MigrateVm", resource) when {{ resource.classification == "class-{n}" &&'
    " context.destination.jurisdiction != context.source.jurisdiction }} unless {{ context.reason_given }};",
    'forbid (principal in Sealane::Group::"{group}-none", action, resource) when {{ principal.issuer == "other-{n}" }};',
    'permit (principal in Sealane::Group::"{group}", action in Sealane::Action::"AnyMove", resource) when {{'
    ' context.time >= datetime("2030-01-{day:02}") && resource.provenance.zone.age_seconds < {n} }};',
    'permit (principal, action in [Sealane::Action::"ReadAudit", Sealane::Action::"ReadSiem"], resource)'
    ' when {{ principal in Sealane::Group::"{group}" || principal.authenticated_by == "method-{n}" }};',
)


def measure(plan: Plan) -> dict[str, float]:
    """Milliseconds of decisions at 100 and 1,000 policies; seconds of a load of 1,000, and the longest pause in it."""
    decisions = QUICK_DECISIONS if plan.quick else DECISIONS_PER_ROUND * plan.rounds
    figures: dict[str, float] = {}
    for count in (100, 1_000):
        times = sorted(decision_times(Bundle.from_files(made_bundle(count)), decisions))
        figures[f"decision_p50_ms_{count}"] = statistics.median(times)
        figures[f"decision_p99_ms_{count}"] = times[len(times) * 99 // 100]
    loads = [load_beside_a_loop(made_bundle(1_000)) for _ in range(1 if plan.quick else plan.rounds)]
    figures["bundle_load_s_1000"] = statistics.median(seconds for seconds, _ in loads)
    figures["bundle_load_pause_ms_1000"] = statistics.median(pause for _, pause in loads)
    return figures


def decision_times(bundle: Bundle, count: int) -> Iterator[float]:
    """Milliseconds of each decision, the making of its request and entities included."""
    questions = list(made_questions())
    for number in range(WARM_UP):
        decide(bundle, questions[number % len(questions)])
    gc.collect()
    for number in range(count):
        question = questions[number % len(questions)]
        started = time.perf_counter()
        decide(bundle, question)
        yield (time.perf_counter() - started) * 1000


def made_bundle(count: int) -> dict[str, str]:
    """A bundle of `count` policies of mixed kinds, as `Bundle.from_files` takes it."""
    schema = (Path(policy.__file__).parent / "schema.cedarschema").read_text(encoding="utf-8")
    files = {MANIFEST: 'name = "made"\nversion = 1\n', SCHEMA: schema}
    texts = [_policy(number) for number in range(count)]
    for begin in range(0, count, POLICIES_A_FILE):
        files[f"policies/{begin:05}.cedar"] = "\n".join(texts[begin : begin + POLICIES_A_FILE])
    return files


def _policy(number: int) -> str:
    group = f"{_DOMAIN}{1100 + number % 400}"
    body = _CONDITIONS[number % len(_CONDITIONS)].format(n=number, m=number % 50, day=1 + number % 28, group=group)
    return f'@id("made-{number}") @reason("Made for the bench, number {number}.")\n{body}\n'


def made_questions() -> Iterator[Question]:
    """Forty moves that end in allow and in both kinds of denial."""
    fresh = Provenance("inventory", 5)
    for number in range(40):
        groups = frozenset(f"{_DOMAIN}{1100 + (number * 7 + each) % 400}" for each in range(100))
        person = Person(f"https://idp.test#{number}", "https://idp.test", f"person {number}", groups, "oidc")
        told = VmProvenance(fresh, fresh, fresh)
        tags = frozenset({"linux", "tag-0"} if number % 4 == 0 else {"linux"})
        uuid = f"0e3b7b2c-0000-4000-8000-{number:012}"
        vm = VmFacts(uuid, f"vm-{number}", f"zone-{number % 50}", "internal", tags, provenance=told)
        a, b = (
            HostFacts(
                f"spiffe://made.test/host/{name}", name, "fra", f"zone-{number % 50}", "DE", address, provenance=fresh
            )
            for name, address in (("a", f"10.{number % 50}.0.1:7443"), ("b", f"10.{number % 50}.0.2:7443"))
        )
        yield Question("MigrateVm", person, vm, a, b, Context(_NOON + timedelta(hours=number), reason_given=True))


def load_beside_a_loop(files: dict[str, str]) -> tuple[float, float]:
    """Seconds of one load in a thread, and the milliseconds that the loop was late at most meanwhile."""

    async def main() -> tuple[float, float]:
        late = 0.0

        async def tick() -> None:
            nonlocal late
            while True:
                before = trio.current_time()
                await trio.sleep(TICK_SECONDS)
                late = max(late, trio.current_time() - before - TICK_SECONDS)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            await trio.sleep(10 * TICK_SECONDS)
            late, started = 0.0, trio.current_time()
            await trio.to_thread.run_sync(Bundle.from_files, files)
            taken = trio.current_time() - started
            nursery.cancel_scope.cancel()
        return taken, late * 1000

    return trio.run(main)
