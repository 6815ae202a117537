"""People who look after delivery: what they may see and ask for, by policy, and the record of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import trio

from gateway.asking import decide
from gateway.deciding import decision_document
from gateway.errors import NotAllowed
from gateway.gate import Gate
from gateway.recording import Event, actor_of, identity_of
from gateway.siem.delivery import Delivery
from gateway.siem.jobs import Job
from policy.facts import Context, Person, Question


class Oversight:
    """Every refusal is recorded, and everything that asks for work."""

    def __init__(self, gate: Gate, delivery: Delivery) -> None:
        self._gate = gate
        self._delivery = delivery

    async def statuses(self, person: Person, now: datetime, address: str) -> list[dict[str, Any]]:
        """Needs ReadSiem. Errors: NotAllowed."""
        await self._require("ReadSiem", person, now, address, {"status": True}, recorded=False)
        return [self._delivery.status(name) for name in self._delivery.names]

    async def status(self, name: str, person: Person, now: datetime, address: str) -> dict[str, Any]:
        """Needs ReadSiem. Errors: NotAllowed, NotKnown."""
        await self._require("ReadSiem", person, now, address, {"status": name[:64]}, recorded=False)
        return self._delivery.status(name)

    async def begin(self, job: Job, person: Person, now: datetime, address: str) -> dict[str, Any]:
        """Comparing needs ReadSiem, sending ManageSiem. Errors: NotAllowed, NotKnown, Conflict, RequestRefused."""
        action = "ManageSiem" if job.what == "resend" or job.repair else "ReadSiem"
        asked = {job.what: job.sink[:64], "from": job.start, "to": job.end, "repair": job.repair}
        await self._require(action, person, now, address, asked, recorded=True)
        job.actor = actor_of(person)
        return self._delivery.begin(job)

    async def quarantine(self, name: str, after: int, limit: int) -> dict[str, Any]:
        """What a sink refused for ever. It shows records: the caller has asked for ReadAudit. Errors: NotKnown."""
        kept, count = await trio.to_thread.run_sync(self._delivery.shipper(name).quarantine.list, after, limit)
        return {
            "count": count,
            "entries": [{"index": each.index, "cause": each.cause, "entry": each.entry} for each in kept],
            "next": kept[-1].index if len(kept) == limit else None,
        }

    async def _require(
        self, action: str, person: Person, now: datetime, address: str, asked: Mapping[str, Any], *, recorded: bool
    ) -> None:
        decision = decide(self._gate.engine, Question(action, person, None, None, None, Context(time=now)))
        if recorded or not decision.allowed:
            details = {"client_address": address, "asked": dict(asked), "decision": decision_document(decision)}
            details |= identity_of(person)
            outcome = "allowed" if decision.allowed else "denied"
            await self._gate.recorder.append(Event("siem.asked", outcome, actor=actor_of(person), details=details))
        if not decision.allowed:
            raise NotAllowed(f"this is denied: {decision.denied_because}")
