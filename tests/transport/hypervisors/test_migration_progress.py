"""Answers to query-migrate, as QEMU 7.2 gives them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.hypervisors.errors import HypervisorGarbled
from transport.hypervisors.migration_progress import MigrationProgress, read_progress


def test_no_migration_was_begun() -> None:
    assert read_progress({}) == MigrationProgress("none")


def test_a_running_migration_tells_its_expected_downtime() -> None:
    seen = read_progress(
        {
            "status": "active",
            "expected-downtime": 300,
            "total-time": 812,
            "ram": {
                "total": 138231808,
                "remaining": 4096,
                "transferred": 105000000,
                "mbps": 8.5,
                "dirty-sync-count": 3,
                "dirty-pages-rate": 77,
                "page-size": 4096,
            },
        }
    )
    assert seen == MigrationProgress("active", 105000000, 4096, 138231808, 1062500, 3, 77, downtime_ms=300)


def test_a_finished_migration_tells_its_measured_downtime() -> None:
    assert read_progress({"status": "completed", "downtime": 12, "expected-downtime": 300}).downtime_ms == 12


def test_a_failed_migration_tells_why() -> None:
    assert read_progress({"status": "failed", "error-desc": "Broken pipe"}).error == "Broken pipe"


@pytest.mark.parametrize("downtime", [-1, 2**53, 10**400])
def test_a_downtime_that_is_none_does_not_reach_a_receipt_which_no_gateway_would_take(downtime: int) -> None:
    for name in ("downtime", "expected-downtime"):
        assert read_progress({"status": "completed", name: downtime}).downtime_ms is None


def test_counts_have_a_bound() -> None:
    with pytest.raises(HypervisorGarbled):
        read_progress({"status": "active", "ram": {"transferred": 2**53}})


@pytest.mark.parametrize("status", ["", "\x1b]0;owned\x07", "active ", "a" * 100, "[red]"])
def test_a_status_is_a_word_that_a_terminal_may_show(status: str) -> None:
    with pytest.raises(HypervisorGarbled):
        read_progress({"status": status})


@given(st.dictionaries(st.sampled_from(["status", "ram", "downtime"]), st.none() | st.integers() | st.text()))
def test_any_answer_gives_progress_or_garbled_and_nothing_else(answer: object) -> None:
    with contextlib.suppress(HypervisorGarbled):
        read_progress(answer)


@pytest.mark.parametrize("mbps", [float("inf"), float("nan"), -1.0])
def test_an_impossible_rate_is_garbled(mbps: float) -> None:
    with pytest.raises(HypervisorGarbled):
        read_progress({"status": "active", "ram": {"mbps": mbps}})
