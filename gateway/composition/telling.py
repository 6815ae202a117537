"""What the running gateway tells of itself: metrics, health, the details of its start record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.clocks import machine_boot_id
from gateway.committer import Committer
from gateway.config import GatewayConfig
from gateway.enrolment.office import Office
from gateway.errors import StartRefused
from gateway.gate import Gate
from gateway.log_keeping import LogKeeping
from gateway.metrics import Metrics, of_authority, of_certificates, of_log, of_policy, of_siem, of_witnesses
from gateway.publishing import Publishing
from gateway.recording import recovery_details
from gateway.reloading import Reloader
from gateway.siem.delivery import Delivery
from gateway.siem.receivers import secret
from gateway.watch import Watch


def make_metrics(config: GatewayConfig, keeping: LogKeeping, delivery: Delivery) -> Metrics:
    table, committer = config.metrics, keeping.committer
    try:
        metrics = Metrics(None if table is None else secret(config.path(table.token_file)))
    except ValueError as error:
        raise StartRefused(f"metrics.token_file: {error}") from error
    metrics.add(of_log(lambda: committer.size, lambda: committer.failed_because is not None))
    metrics.add(of_witnesses(keeping.witnessing.ages))
    metrics.add(of_siem(lambda: map(delivery.status, delivery.names)))
    return metrics


def add_metrics_of_policy(metrics: Metrics, gate: Gate, publishing: Publishing, watch: Watch) -> None:
    metrics.add(
        of_authority(
            lambda: gate.break_glass.counts() if gate.break_glass is not None else {},
            lambda: gate.observation.would_deny if gate.observation is not None else 0,
            lambda: watch.revoked,
        )
    )
    metrics.add(of_policy(lambda: gate.engine.bundle.version, publishing.shadow.counts))


def add_metrics_of_certificates(
    metrics: Metrics, days_left: Callable[[], Mapping[str, float]], office: Office | None
) -> None:
    metrics.add(of_certificates(days_left, lambda: {} if office is None else office.refused_renewals.counts))


def health_document(config: GatewayConfig, keeping: LogKeeping, gate: Gate) -> dict[str, Any]:
    return {"name": config.gateway.name, **keeping.health(), **_loud(gate)}


def _loud(gate: Gate) -> dict[str, Any]:
    """What departs from the ordinary, for anyone to see."""
    loud: dict[str, Any] = {}
    if gate.break_glass is not None:
        loud["break_glass"] = gate.break_glass.counts()
    if gate.observation is not None:
        loud["observe"] = gate.observation.document(gate.time.now())
    return loud


def start_details(config: GatewayConfig, listen: str, committer: Committer, reloader: Reloader) -> dict[str, Any]:
    machine = {"machine_boot_id": machine_boot_id()}
    details: dict[str, Any] = {"listen": listen, "name": config.gateway.name, **machine, **reloader.in_force()}
    details["heartbeat_seconds"] = config.log.heartbeat_seconds  # from now on a longer silence is a finding
    if committer.recovery is not None:
        details["recovered"] = recovery_details(committer.recovery)
    return details
