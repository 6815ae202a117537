"""Shadow: a candidate bundle answers every question beside the one in force; only differences are kept, none counts."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from audit.record import format_time
from policy.bundle import Bundle
from policy.engine import Decision, replay

SHOWN_POLICIES: Final = 10

log = structlog.get_logger("gateway.shadowing")


@dataclass(slots=True)
class _Trial:
    bundle: Bundle
    since: datetime
    compared: int = 0
    would_allow: int = 0
    would_deny: int = 0
    failed: int = 0


class Shadow:
    """At most one candidate; it ends with the gateway's process, as what it decides is of no consequence."""

    def __init__(self) -> None:
        self._trial: _Trial | None = None

    def begin(self, bundle: Bundle, now: datetime) -> None:
        """From now on; a candidate before it is forgotten."""
        self._trial = _Trial(bundle, now)

    def end(self) -> None:
        self._trial = None

    def look(self, decision: Decision) -> dict[str, Any] | None:
        """What the candidate says otherwise, for the decision's record; None if it agrees or there is none.

        Never raises: whatever is wrong with a candidate, the live decision stands.
        """
        trial = self._trial
        if trial is None or not decision.request:
            return None
        trial.compared += 1
        try:
            other = replay(trial.bundle, decision.request, decision.entities)
        except Exception:  # noqa: BLE001 - the edge between what counts and what does not
            log.error("the candidate bundle failed", digest=trial.bundle.digest, traceback=traceback.format_exc())
            trial.failed += 1
            return {"digest": trial.bundle.digest, "failed": True}
        if other.errors:
            trial.failed += 1
        elif other.allowed == decision.allowed:
            return None
        elif other.allowed:
            trial.would_allow += 1
        else:
            trial.would_deny += 1
        return {
            "digest": trial.bundle.digest,
            "version": trial.bundle.version,
            "allowed": other.allowed,
            "policies": [reason.id for reason in other.reasons][:SHOWN_POLICIES],
            "errors": list(other.errors)[:SHOWN_POLICIES],
        }

    def document(self) -> dict[str, Any] | None:
        """The candidate and what was counted since it began; None if there is none."""
        if (trial := self._trial) is None:
            return None
        return {
            "name": trial.bundle.name,
            "version": trial.bundle.version,
            "digest": trial.bundle.digest,
            "since": format_time(trial.since),
            **self.counts(),
        }

    def counts(self) -> dict[str, int]:
        trial = self._trial
        if trial is None:
            return {"compared": 0, "would_allow": 0, "would_deny": 0, "failed": 0}
        return {
            "compared": trial.compared,
            "would_allow": trial.would_allow,
            "would_deny": trial.would_deny,
            "failed": trial.failed,
        }
