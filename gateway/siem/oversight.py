"""People who look after delivery: what they may see and ask for, by policy, and the record of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec
import trio

from audit.checkpoint import LogVerifier
from audit.errors import RecordError
from audit.index_questions import Bucket
from audit.query import Node
from audit.record import PermitEntry, SignedRecord, decode_entry
from audit.siem.elastic import ElasticSink
from audit.siem.reconcile import Held
from audit.siem.sink import SinkAway
from gateway.counted import counted
from gateway.errors import RequestRefused, SearchUnavailable
from gateway.gate import Gate
from gateway.reading import Page
from gateway.recording import Event, actor_of
from gateway.requiring import Wanted, require
from gateway.siem.delivery import Delivery
from gateway.siem.jobs import Job
from policy.facts import Person

Counted = TypeVar("Counted")


class Oversight:
    """Every refusal is recorded, and everything that asks for work."""

    def __init__(self, gate: Gate, delivery: Delivery, verifiers: Sequence[LogVerifier]) -> None:
        self._gate = gate
        self._delivery = delivery
        self._verifiers = tuple(verifiers)

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

    async def page(self, name: str, where: Node, after: int | None, limit: int) -> Page:
        """Records as a SIEM holds them, newest first: the caller has asked for ReadAudit.

        Each must be signed by this log, or it is no answer but a finding. Errors: NotKnown, RequestRefused,
        SearchUnavailable.
        """
        sink = self._elastic(name)
        try:
            found = await sink.find(where, self._verifiers[0].origin, after, limit + 1)
        except SinkAway as error:
            raise _unavailable(name, error) from error
        shown = [self._proven(name, held) for held in found[:limit]]
        return Page(shown, shown[-1]["index"] if len(found) > limit else None)

    async def count(self, name: str, where: Node) -> int:
        """How many there are by the SIEM's own word, which bears no signature. The caller has asked for ReadAudit.

        Errors: NotKnown, RequestRefused, SearchUnavailable.
        """
        return await self._counted(name, lambda sink: sink.count(where, self._verifiers[0].origin))

    async def histogram(self, name: str, where: Node, start: int, width: int, buckets: int) -> list[Bucket]:
        """The same by time and outcome; microseconds of whole seconds."""
        return await self._counted(
            name, lambda sink: sink.histogram(where, self._verifiers[0].origin, start, width, buckets)
        )

    async def _counted(self, name: str, ask: Callable[[ElasticSink], Awaitable[Counted]]) -> Counted:
        sink = self._elastic(name)
        if self._delivery.table(name).redact:
            raise RequestRefused(
                "this sink is denied fields, so that it cannot count by them", next_step="ask the gateway itself"
            )
        try:
            return await ask(sink)
        except SinkAway as error:
            raise _unavailable(name, error) from error

    def _elastic(self, name: str) -> ElasticSink:
        sink = self._delivery.shipper(name).sink
        if not isinstance(sink, ElasticSink):
            raise RequestRefused("this kind of receiver cannot be asked", next_step="name a sink of kind elasticsearch")
        return sink

    async def file_compared(
        self, name: str, found: Mapping[str, Any], person: Person, now: datetime, address: str
    ) -> dict[str, Any]:
        """Record what a person says that a comparison of the receiver's files has found: it is their word, by name.

        Needs ReadSiem. Errors: NotAllowed, NotKnown, RequestRefused.
        """
        asked = {"reconcile-file": name[:64], "from": found["from"], "to": found["to"]}
        await self._require("ReadSiem", person, now, address, asked, recorded=True)
        if isinstance(self._delivery.shipper(name).sink, ElasticSink):
            raise RequestRefused("this receiver can be asked", next_step=f"use: sealane siem reconcile {name}")
        size = self._delivery.log_size
        if not 0 <= found["from"] <= found["to"] <= size:
            raise RequestRefused(f"the range is not within the log, which has {counted(size, 'entry')}")
        agrees = not (found["missing_count"] or found["altered_count"] or found["added_count"])
        details = {"sink": name, "by": "reconcile-file", "agrees": agrees, "client_address": address, **found}
        event = Event("siem.reconciled", "completed" if agrees else "failed", actor=actor_of(person), details=details)
        committed = await self._gate.recorder.append(event)
        return {"index": committed.index, "agrees": agrees}

    def _proven(self, name: str, held: Held) -> dict[str, Any]:
        """The record in a document. A permit entry has no signature of its own, but is covered by reconciliation."""
        original: object = None
        match held.body:  # whatever it holds: it may be anything
            case {"event": {"original": str(original)}}:
                pass
            case {"sealane": {"redacted": _}}:
                raise RequestRefused(
                    "this sink is denied fields, so that it holds no record whole", next_step="ask the gateway itself"
                )
        try:
            entry = str(original).encode()
            read = decode_entry(entry)
        except (RecordError, UnicodeEncodeError):
            read = None
        if isinstance(read, SignedRecord) and read.is_signed_by(self._verifiers):
            return {"index": read.record.sequence, "record": msgspec.json.decode(read.record_bytes)}
        match held.body:
            case {"event": {"sequence": int(sequence)}} if isinstance(read, PermitEntry):
                return {"index": sequence, "record": msgspec.json.decode(entry)}
        raise SearchUnavailable(
            f"{name} holds at {held.place[:200]} what is no record of this log",
            next_step=f"run `sealane siem reconcile {name}`",
        )

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
        wanted = Wanted(action, action, "siem.asked", {"asked": dict(asked)})
        await require(self._gate, wanted, person, now, address, recorded=recorded)


def _unavailable(name: str, error: SinkAway) -> SearchUnavailable:
    return SearchUnavailable(f"{name} does not answer: {error}", next_step="ask the gateway itself")
