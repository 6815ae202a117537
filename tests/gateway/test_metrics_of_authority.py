"""What departs from the ordinary is counted where a scrape sees it."""

from __future__ import annotations

from audit.siem.formats.severity import Severity, severity_of
from gateway.metrics import Metrics, of_authority


def test_broken_glass_observed_denials_and_revocations_are_counted() -> None:
    metrics = Metrics("token")
    metrics.add(of_authority(lambda: {"pending": 2, "approved": 1}, lambda: 7, lambda: {"cancel_requested": 3}))
    lines = metrics.text("token").decode().splitlines()
    assert 'sealane_break_glass{state="pending"} 2.0' in lines
    assert 'sealane_break_glass{state="approved"} 1.0' in lines
    assert "sealane_observe_would_deny_total 7.0" in lines
    assert 'sealane_revocations_total{effect="cancel_requested"} 3.0' in lines


def test_a_receiver_is_told_that_they_worry() -> None:
    for kind in ("requested", "approved", "used", "ended", "sealed_sign_in", "seal_broken"):
        assert severity_of(f"breakglass.{kind}", "success") is Severity.HIGH
    assert severity_of("migration.revoked", "unknown") is Severity.HIGH
