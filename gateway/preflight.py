"""Preflight: both hosts are asked about a VM before anything is touched; what they say against it, in words.

Only who may move the VM is told: a policy's "may not" comes before any "cannot".
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.asking import Facts
from gateway.errors import CannotMove
from gateway.gate import Gate
from gateway.preflight_findings import Finding, destination_findings, source_findings
from policy.facts import HostFacts
from transport.hypervisors.preflight_facts import without_sizes
from transport.link_version import DISK_SIZES


async def preflight(gate: Gate, facts: Facts) -> list[Finding]:
    """Everything that stands in the way; empty if nothing does. Never raises for what a relay does."""
    vm, source, destination = facts.vm, facts.source, facts.destination
    if vm is None or source is None or destination is None or source == destination:
        return []
    if facts.asked.named_port is not None:
        return []  # no guest moves
    for host, role in ((source, "source"), (destination, "destination")):
        if not gate.dispatch.is_reachable(host.spiffe_id, gate.relay_silence_seconds):
            return [_silent(host, role)]
    here = await gate.inspections.ask(source.spiffe_id, {"vm": vm.uuid, "wanted": None})
    copies_disks = "disks" in facts.asked.ports
    found = list(source_findings(here, source.name, copies_disks=copies_disks))
    if here.machine is None:
        return found
    knows_sizes = (gate.dispatch.link(destination.spiffe_id) or 0) >= DISK_SIZES
    wanted = msgspec.to_builtins(here.machine if knows_sizes else without_sizes(here.machine))
    there = await gate.inspections.ask(destination.spiffe_id, {"vm": vm.uuid, "wanted": wanted})
    return found + list(destination_findings(here.machine, there, destination.name, copies_disks=copies_disks))


def _silent(host: HostFacts, role: str) -> Finding:
    message = f"the relay on {host.name} has not been heard of lately: start it"
    return Finding("relay_silent", "cannot", f"operator of the {role} host", message)


async def hindrance(gate: Gate, facts: Facts, *, allowed: bool) -> CannotMove | None:
    """Why an allowed migration cannot work, if the site asks that first."""
    if not (allowed and gate.preflight_first):
        return None
    found = [finding for finding in await preflight(gate, facts) if finding.severity == "cannot"]
    if not found:
        return None
    return CannotMove("; ".join(finding.message for finding in found)[:2000], who_must_act=found[0].who_must_act)


def can_move(findings: list[Finding]) -> bool:
    return not any(finding.severity == "cannot" for finding in findings)


def findings_document(findings: list[Finding]) -> list[dict[str, Any]]:
    return [
        {
            "code": finding.code,
            "severity": finding.severity,
            "who_must_act": finding.who_must_act,
            "message": finding.message,
        }
        for finding in findings
    ]
