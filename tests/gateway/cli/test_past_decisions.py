"""What a log's folder tells of its decisions: how far back it goes, and what cannot be made again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit.group import Unsigned
from audit.log import Log
from audit.pruned import FILE, Pruned
from audit.record import format_time
from audit.tiles import TILE_WIDTH, bundle_path
from bench.audit_log_maker import ORIGIN, UnsafeDisk, bench_signer
from bench.policy_decisions import made_bundle
from bench.policy_replay import A_COMMIT, NOW, made_asked, make_log
from gateway.cli.errors import BadConfiguration
from gateway.cli.past_decisions import PastDecisions
from policy.authoring.compare import compare, rules_of
from tests.audit.samples import record
from tests.gateway.cli.conftest import Sealane

EVER = "2020-01-01"
DECISIONS = A_COMMIT + 20  # the second commit seals the first bundle


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_log(tmp_path_factory.mktemp("past") / "log", rules_of(made_bundle(20)), made_asked(), DECISIONS)


def test_a_log_is_replayed_under_the_rules_that_decided_it_without_a_difference(log: Path) -> None:
    past = PastDecisions(log, EVER)
    found = compare(None, rules_of(made_bundle(20)), past.decisions())
    assert (found.compared, found.differing, found.shifted) == (DECISIONS, 0, 0)
    assert past.notes() == [
        f"the log begins at {format_time(NOW)}, later than 2020-01-01T00:00:00.000000Z: nothing is known of before"
    ]


def test_records_before_since_are_left_alone(log: Path) -> None:
    past = PastDecisions(log, "2026-11-01T00:01:00Z")
    assert sum(1 for _ in past.decisions()) == DECISIONS - 60
    assert past.notes() == []


def test_a_pruned_log_without_its_archive_says_how_far_it_goes(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    pruned = Pruned(str(tmp_path / "nowhere"), bundles=1, record=TILE_WIDTH)
    bundle = log / bundle_path(0)
    kept = bundle.read_bytes()
    bundle.chmod(0o644)
    bundle.unlink()
    (log / FILE).write_bytes(pruned.encode())
    try:
        past = PastDecisions(log, EVER)
        assert sum(1 for _ in past.decisions()) == DECISIONS - TILE_WIDTH
        assert "entries 0 to 255 were pruned" in past.notes()[1]
        (tmp_path / "nowhere").mkdir()
        archived = tmp_path / "nowhere" / bundle_path(0)
        archived.parent.mkdir(parents=True)
        archived.write_bytes(kept)
        assert sum(1 for _ in PastDecisions(log, EVER).decisions()) == DECISIONS
    finally:
        (log / FILE).unlink()
        bundle.write_bytes(kept)


def test_a_decision_that_cannot_be_made_again_is_counted_and_an_entry_that_is_gone_ends_it(tmp_path: Path) -> None:
    def records() -> Iterator[Unsigned]:
        told: list[dict[str, Any]] = [{"policy_request": 7}, {"policy_request": {}, "policy_entities": []}, {}]
        for number, details in enumerate(told):
            yield Unsigned.of(record(number, origin=ORIGIN, time=format_time(NOW), outcome="denied", details=details))

    with Log.open(tmp_path / "log", bench_signer(), disk=UnsafeDisk()) as log:
        log.append([lambda _: list(records())])
    past = PastDecisions(tmp_path / "log", EVER)
    assert list(past.decisions()) == []
    assert past.notes()[1] == (
        "left out: 2 records with a decision that cannot be made again: run `sealane audit verify`"
    )
    next((tmp_path / "log" / "tail").iterdir()).write_bytes(b"")
    with pytest.raises(BadConfiguration):
        list(PastDecisions(tmp_path / "log", EVER).decisions())
