"""How much of the log one person may fill with what is refused: so much at once, and so much more each minute.

Each request of a person that is denied, fails, or only asks is a record, and so none of them is decided unseen. Whoever
has had their share waits (429, Retry-After), and is told so before anything is decided; of that one record a minute
says how many requests it left out. What is allowed costs nothing, however much it is: hosts are emptied by hundreds.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from audit.errors import AuditError
from gateway.errors import GatewayError, TooManyRefusals
from gateway.recording import Event, Recorder, actor_of
from policy.facts import FROM_SITE, NOT_AUTHENTICATED, Person

KIND: Final = "decision.throttled"
# Allowed or not, they are records of which nothing comes, or could come once alone.
QUESTIONS: Final = frozenset({"decision.check", "drain.check", "migration.cancel_requested"})
REFUSALS_AT_ONCE: Final = 1_000  # unless [limits] says otherwise, and as many more a minute:
REFUSALS_PER_MINUTE: Final = 60
RECORD_SECONDS: Final = 60.0
MAX_WAIT_SECONDS: Final = 300.0  # however many records one request was: an evacuation of a host is hundreds
REMEMBERED: Final = 10_000  # people; who is forgotten has their whole share again

log = structlog.get_logger("gateway.people")


@dataclass(slots=True)
class _Asker:
    left: float
    at: float
    recorded_at: float = -math.inf
    left_out: int = 0


class Patience:
    """`at_once` such records of one person, and `per_minute` more. `monotonic`: seconds."""

    def __init__(self, recorder: Recorder, at_once: int, per_minute: int, monotonic: Callable[[], float]) -> None:
        self._recorder = recorder
        self._at_once = float(at_once)
        self._per_second = per_minute / 60
        self._monotonic = monotonic
        self._askers: OrderedDict[str, _Asker] = OrderedDict()

    def note(self, event: Event) -> None:
        """Of each record that is about to be made."""
        actor = event.actor
        if actor is None or event.kind == KIND or actor.authenticated_by == FROM_SITE:  # they wait at their own gateway
            return
        # Of a sign-in that was refused the actor is whoever somebody claimed to be.
        if actor.authenticated_by == NOT_AUTHENTICATED and event.kind != "migration.decision":
            return
        if event.outcome in {"denied", "failed"} or event.kind in QUESTIONS:
            asker = self._asker(actor.id)
            asker.left = max(asker.left - 1, -MAX_WAIT_SECONDS * self._per_second)

    async def require(self, person: Person, address: str) -> None:
        """Errors: TooManyRefusals; counted, and recorded once in RECORD_SECONDS."""
        asker = self._asker(person.id)
        if asker.left >= 1:
            return
        wait_seconds = max(1, math.ceil((1 - asker.left) / self._per_second))
        await self._record(asker, person, address, wait_seconds)
        raise TooManyRefusals(wait_seconds)

    async def _record(self, asker: _Asker, person: Person, address: str, wait_seconds: int) -> None:
        """A log that cannot take it changes nothing: the answer is no in any case."""
        now = self._monotonic()
        if now - asker.recorded_at < RECORD_SECONDS:
            asker.left_out += 1
            return
        before, left_out = asker.recorded_at, asker.left_out
        asker.recorded_at, asker.left_out = now, 0
        details = {"client_address": address, "retry_after_seconds": wait_seconds, "left_out_before": left_out}
        try:
            await self._recorder.append(Event(KIND, "denied", actor=actor_of(person), details=details))
        except (GatewayError, AuditError) as error:
            asker.recorded_at, asker.left_out = before, asker.left_out + left_out + 1
            log.warning("a person who has to wait could not be recorded", error=str(error))

    def _asker(self, who: str) -> _Asker:
        now = self._monotonic()
        asker = self._askers.pop(who, None) or _Asker(self._at_once, now)
        asker.left = min(self._at_once, asker.left + (now - asker.at) * self._per_second)
        asker.at = now
        self._askers[who] = asker
        if len(self._askers) > REMEMBERED:
            self._askers.popitem(last=False)
        return asker
