"""Asking and proving on a log of five million entries: verifying it, making its index, pages, counts, a histogram.

The log is the one of `audit_log` (made once, kept in its BIG), and the index is left beside it. Queries are what people
ask: by VM, host, person, outcome, time; each page with its records read from the log and their hashes checked, and no
query is asked twice.
"""

from __future__ import annotations

import itertools
import os
import random
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from audit.index import Index
from audit.index_questions import Questions
from audit.query import parse
from audit.reader import CommittedLog, LogReader
from bench.audit_log import big_log, index_of
from bench.audit_log_maker import HOSTS, PEOPLE, VMS, telling
from bench.harness import BenchError, Plan

PAGE = 100
QUERIES = 400
VERIFIED, VERIFIED_ALONE = 1_000_000, 200_000  # entries: the rate does not depend on them
DAY = 86_400 * 10**6


def measure(plan: Plan) -> dict[str, float]:
    """Figures verify_* (cpu_us: of an entry, in all), index_rebuild_per_s, query_*, count_* and histogram_s."""
    # What a gateway under load wrote, and one where nobody else waited for the log: every signature is checked.
    figures = _verify(big_log(min(VERIFIED, plan.records)), name="verify_per_s")
    figures |= _verify(big_log(min(VERIFIED_ALONE, plan.records), alone=True), name="verify_alone_per_s")
    big = big_log(plan.records)
    return figures | _ask(big, index_of(big), QUERIES // 10 if plan.quick else QUERIES)


def _verify(log: Path, *, name: str) -> dict[str, float]:
    """By the command that an auditor runs, from its start to its end."""
    key = log.with_name("log.vkey")
    command = [str(Path(sys.executable).with_name("sealane")), "audit", "verify", str(log), "--key", str(key), "--json"]
    began, cpu = time.perf_counter(), os.times()
    done = subprocess.run([*command, "--workers", str(_workers())], capture_output=True, text=True)  # noqa: PLW1510
    seconds, cpu_after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise BenchError(f"the log was not verified: {(done.stderr or done.stdout)[-500:]}")
    verdict = msgspec.json.decode(done.stdout)
    if verdict["signatures"] != verdict["records"]:
        raise BenchError("not every signature was checked")
    used = cpu_after.children_user + cpu_after.children_system - cpu.children_user - cpu.children_system
    return {name: verdict["size"] / seconds, f"{name.removesuffix('_per_s')}_cpu_us": used / verdict["size"] * 1e6}


def _workers() -> int:
    return min(2, len(os.sched_getaffinity(0)))


def _ask(big: Path, path: Path, queries: int) -> dict[str, float]:
    lines = (big / "checkpoint").read_text(encoding="utf-8").split("\n", 2)
    reader = LogReader(big)
    log = CommittedLog(lines[0], int(lines[1]), reader)
    began = time.perf_counter()
    with Index(path, log.origin) as index:
        tell = telling(log.size, "making the index")
        index.rebuild(log, lambda done, _: tell(done), workers=_workers())
    figures = {"index_rebuild_per_s": log.size / (time.perf_counter() - began)}
    questions = Questions(path)
    now = datetime.now(UTC)
    pages, counts = [], []
    for text in itertools.islice(_texts(), queries):
        where = parse(text, now).where
        began = time.perf_counter()
        for position in questions.page(where, limit=PAGE, newest_first=True):
            reader.entry(position)
        pages.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        questions.count(where)
        counts.append((time.perf_counter() - began) * 1000)
    span = questions.span()
    assert span is not None
    began = time.perf_counter()
    questions.histogram(parse("", now).where, span[0], DAY, (span[1] - span[0]) // DAY + 1)
    histogram = time.perf_counter() - began
    questions.close()
    return figures | {
        "query_p50_ms": statistics.median(pages),
        "query_p95_ms": statistics.quantiles(pages, n=20)[-1],
        "count_p95_ms": statistics.quantiles(counts, n=20)[-1],
        "histogram_s": histogram,
        "index_bytes_per_entry": path.stat().st_size / log.size,
    }


def _texts() -> itertools.chain[str]:
    """Questions, each of its own: the same in every run."""
    luck = random.Random(7)

    def some() -> list[str]:
        vm, host, person = luck.randrange(VMS), luck.randrange(HOSTS), luck.randrange(PEOPLE)
        day = f"2026-{luck.randrange(1, 10):02}-{luck.randrange(1, 28):02}"
        return [
            f"vm:vm-{vm:04}",
            f"host:host-{host:03} outcome:denied",
            f"who:person-{person:03} time:[{day} TO *]",
            f"time:{day} kind:migration.decision",
            f"to:host-{host:03} outcome:allowed NOT who:person-{person:03}",
            f"vm:vm-{vm // 100:02}* who:person-{person:03}",
            f"policy:policy-{luck.randrange(24)} until:{day}",
            f"vm-{vm:04}",
        ]

    return itertools.chain.from_iterable(some() for _ in itertools.count())
