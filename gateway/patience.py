"""How much of the log one person may fill with what is refused: so much at once, and so much more each minute.

Each request of a person that is denied, fails, or only asks is a record, and so none of them is decided unseen. Whoever
has had their share waits (429, Retry-After), and is told so before anything is decided; of that one record a minute
says how many requests it left out. What is allowed costs nothing, however much it is: hosts are emptied by hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import structlog

from audit.errors import AuditError
from gateway.errors import GatewayError, TooManyRefusals
from gateway.recorded_refusals import RecordedRefusals
from gateway.recording import Event, Recorder, actor_of
from gateway.throttle import Throttle
from policy.facts import FROM_SITE, NOT_AUTHENTICATED, Person

KIND: Final = "decision.throttled"
# Allowed or not, they are records of which nothing comes, or could come once alone.
QUESTIONS: Final = frozenset({"decision.check", "drain.check", "evacuation.withdrawn", "migration.cancel_requested"})
REFUSALS_AT_ONCE: Final = 1_000  # unless [limits] says otherwise, and as many more a minute:
REFUSALS_PER_MINUTE: Final = 60
RECORD_SECONDS: Final = 60.0
MAX_WAIT_SECONDS: Final = 300.0  # however many records one request was: an evacuation of a host is hundreds
REMEMBERED: Final = 10_000  # people; who is forgotten has their whole share again

log = structlog.get_logger("gateway.people")


class Patience:
    """`at_once` such records of one person, and `per_minute` more. `monotonic`: seconds."""

    def __init__(self, recorder: Recorder, at_once: int, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._askers = Throttle(at_once, 60 / per_minute, monotonic, REMEMBERED)
        self._refusals = RecordedRefusals(recorder, Throttle(1, RECORD_SECONDS, monotonic, REMEMBERED))

    def note(self, event: Event) -> None:
        """Of each record that is about to be made."""
        actor = event.actor
        if actor is None or event.kind == KIND or actor.authenticated_by == FROM_SITE:  # they wait at their own gateway
            return
        # Of a sign-in that was refused the actor is whoever somebody claimed to be.
        if actor.authenticated_by == NOT_AUTHENTICATED and event.kind != "migration.decision":
            return
        if event.outcome in {"denied", "failed"} or event.kind in QUESTIONS:
            asker = self._askers.bucket(actor.id)
            asker.tokens = max(asker.tokens - 1, -MAX_WAIT_SECONDS / self._askers.seconds)

    async def require(self, person: Person, address: str) -> None:
        """Errors: TooManyRefusals; counted, and recorded once in RECORD_SECONDS."""
        asker = self._askers.bucket(person.id)
        if asker.tokens >= 1:
            return
        wait_seconds = max(1, math.ceil((1 - asker.tokens) * self._askers.seconds))
        details = {"client_address": address, "retry_after_seconds": wait_seconds}
        try:
            await self._refusals.record(Event(KIND, "denied", actor=actor_of(person), details=details), person.id)
        except (GatewayError, AuditError) as error:  # it changes nothing: the answer is no in any case
            log.warning("a person who has to wait could not be recorded", error=str(error))
        raise TooManyRefusals(wait_seconds)
