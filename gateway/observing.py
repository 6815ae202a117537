"""Observe mode: in zones that are being rolled out, what the policies would deny is let through, sealed and recorded.

Only the policies' own denials are observed. Unknown people, groups, VMs and hosts, errors, forbids marked @baseline and
every other action stay denied; and where an end of the move lies in another zone, nothing is observed at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from gateway.errors import StartRefused
from gateway.times import rfc3339
from policy.engine import Decision
from policy.facts import NOT_AUTHENTICATED, Question

OBSERVED_ACTION: Final = "MigrateVm"  # no evacuation: its permits could outlive the time of observing
MAX_DAYS: Final = 90

log = structlog.get_logger("gateway.observing")


@dataclass(slots=True)
class Observation:
    """`until`: unix seconds; from then on everything is enforced. `would_deny`: how often, since the start."""

    zones: frozenset[str]
    until: int
    would_deny: int = 0

    def is_on(self, now: int) -> bool:
        return now < self.until

    def covers(self, question: Question) -> bool:
        """The VM, where it is and where it goes: all in observed zones."""
        vm, source, destination = question.vm, question.source, question.destination
        if vm is None or source is None or destination is None:
            return False
        return {vm.zone, source.zone, destination.zone} <= self.zones

    def document(self, now: int) -> dict[str, Any]:
        until = rfc3339(datetime.fromtimestamp(self.until, UTC))
        return {
            "zones": sorted(self.zones),
            "until": until,
            "is_on": self.is_on(now),
            "would_deny": self.would_deny,
        }


def make_observation(zones: Iterable[str], until: datetime, now: int) -> Observation:
    """Errors: StartRefused, if it would last for longer than a rollout does."""
    end = int(until.timestamp())
    if end > now + timedelta(days=MAX_DAYS).total_seconds():
        raise StartRefused(f"policy.observe.until: is more than {MAX_DAYS} days ahead")
    observation = Observation(frozenset(zones), end)
    said = "zones are observed: what policy would deny there is let through" if end > now else "observation is over"
    log.critical(said, alarm=True, **observation.document(now))
    return observation


def is_observable(decision: Decision) -> bool:
    """Denied by policies alone, none of which is a baseline."""
    return not decision.allowed and decision.by_policy and not any(reason.is_baseline for reason in decision.reasons)


def lets_pass(observation: Observation | None, question: Question, decision: Decision, now: int) -> bool:
    """Whether observing means that what is denied here is let through; counts nothing."""
    if observation is None or question.action != OBSERVED_ACTION or not is_observable(decision):
        return False
    if question.person.authenticated_by == NOT_AUTHENTICATED:
        return False  # a host asked and named nobody: there is nobody whose rights could be observed
    return observation.is_on(now) and observation.covers(question)


def observe(observation: Observation | None, question: Question, decision: Decision, now: int) -> Decision:
    """The decision, allowed and marked as observed if that is what observing means here."""
    if observation is None or not lets_pass(observation, question, decision, now):
        return decision
    observation.would_deny += 1
    return replace(decision, allowed=True, observed=True)
