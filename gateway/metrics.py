"""Metrics in Prometheus' text format, read from the running pieces at each scrape: nothing is counted twice.

Served by the API itself (`GET /metrics`, TLS) to whoever has the token of `[metrics] token_file`, and not at all
without that table: lag and log size tell an outsider when migrations happen. No label holds a name of people or VMs.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.errors import NotKnown, Unauthenticated

Source = Callable[[], Iterable[Metric]]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """`token`: None where metrics are not configured. Sources are asked in the event loop and must not wait."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._registry = CollectorRegistry()

    def add(self, source: Source) -> None:
        """One more piece that has something to tell."""
        self._registry.register(_Asked(source))

    def text(self, bearer: str | None) -> bytes:
        """Errors: NotKnown where there are none, Unauthenticated."""
        if self._token is None:
            raise NotKnown("no such call")
        if bearer is None or not hmac.compare_digest(bearer.encode(), self._token.encode()):
            raise Unauthenticated("metrics need the token of [metrics] token_file")
        return generate_latest(self._registry)


class _Asked(Collector):
    def __init__(self, source: Source) -> None:
        self._source = source

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return self._source()


def of_log(size: Callable[[], int], failed: Callable[[], bool]) -> Source:
    """How long the log is, and whether it refuses everything."""

    def ask() -> Iterable[Metric]:
        yield GaugeMetricFamily("sealane_log_entries", "Committed entries of the audit log.", size())
        yield GaugeMetricFamily("sealane_log_failed", "1 while the log refuses appends.", int(failed()))

    return ask


def of_witnesses(ages: Callable[[], dict[str, int]]) -> Source:
    """How old the newest cosignature of each witness is."""

    def ask() -> Iterable[Metric]:
        age = GaugeMetricFamily(
            "sealane_witness_cosignature_age_seconds", "Since its last cosignature, or the start.", labels=["witness"]
        )
        for name, seconds in ages().items():
            age.add_metric([name], seconds)
        yield age

    return ask


def of_siem(statuses: Callable[[], Iterable[dict[str, Any]]]) -> Source:
    """How far each sink has got."""

    def ask() -> Iterable[Metric]:
        lag = GaugeMetricFamily("sealane_siem_lag_entries", "Entries yet to be delivered.", labels=["sink"])
        failing = GaugeMetricFamily("sealane_siem_failing_seconds", "How long it has been failing.", labels=["sink"])
        stopped = GaugeMetricFamily("sealane_siem_stopped", "1 where an operator must act.", labels=["sink"])
        delivered = CounterMetricFamily("sealane_siem_delivered", "Entries delivered since the start.", labels=["sink"])
        refused = CounterMetricFamily("sealane_siem_quarantined", "Entries that it refuses for ever.", labels=["sink"])
        for status in statuses():
            label = [status["name"]]
            lag.add_metric(label, status["lag"])
            failing.add_metric(label, status["failing_seconds"] or 0)
            stopped.add_metric(label, int(status["state"] == "stopped"))
            delivered.add_metric(label, status["delivered"])
            refused.add_metric(label, status["quarantined"])
        return [lag, failing, stopped, delivered, refused]

    return ask


def of_authority(
    glass: Callable[[], dict[str, int]], would_deny: Callable[[], int], revoked: Callable[[], Mapping[str, int]]
) -> Source:
    """What departs from the ordinary: broken glass by state, what policy would have denied, what was revoked."""

    def ask() -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "sealane_break_glass", "Breakings of glass that wait or are in force.", labels=["state"]
        )
        for state, count in glass().items():
            states.add_metric([state], count)
        observed = CounterMetricFamily(
            "sealane_observe_would_deny",
            "Requests that policy would have denied and observe mode let through.",
            would_deny(),
        )
        revocations = CounterMetricFamily(
            "sealane_revocations", "Running migrations that lost their permission, by what was done.", labels=["effect"]
        )
        for effect, count in revoked().items():
            revocations.add_metric([effect], count)
        return [states, observed, revocations]

    return ask


def of_policy(version: Callable[[], int], shadow: Callable[[], Mapping[str, int]]) -> Source:
    """The version in force, and how a candidate compares with it."""

    def ask() -> Iterable[Metric]:
        in_force = GaugeMetricFamily("sealane_policy_version", "The version of the policy in force.", version())
        compared = GaugeMetricFamily(
            "sealane_policy_shadow", "Decisions since the candidate's trial began, by what it says.", labels=["says"]
        )
        for says, count in shadow().items():
            compared.add_metric([says], count)
        return [in_force, compared]

    return ask


def of_certificates(
    days_left: Callable[[], Mapping[str, float]], renewals_refused: Callable[[], Mapping[str, int]]
) -> Source:
    """Days until each certificate or CRL of this gateway ends, below zero once it has; whom it certified no more."""

    def ask() -> Iterable[Metric]:
        days = GaugeMetricFamily("sealane_certificate_days_left", "Days until it ends.", labels=["what"])
        for what, left in days_left().items():
            days.add_metric([what], left)
        refused = CounterMetricFamily(
            "sealane_renewals_refused", "Hosts' renewals that were refused, by the answer's code.", labels=["because"]
        )
        for code, count in renewals_refused().items():
            refused.add_metric([code], count)
        return [days, refused]

    return ask
