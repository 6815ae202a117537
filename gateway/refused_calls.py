"""Calls of libvirt that relays refused, put on record as `libvirt.refused`: what somebody tried beside a migration.

A host says this of itself and of its peers, so its certificate's name is the actor. A report that comes again is known
by its epoch and sequence; after a restart of the gateway one may be recorded twice, under the same `report`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import structlog
import trio

from audit.record import Vm
from certs.identity import SpiffeId
from gateway.api.bodies import RefusalReport, RefusedLibvirtCall
from gateway.errors import GatewayError
from gateway.gate import Gate
from gateway.recording import Event, host_actor
from gateway.throttle import Throttle
from gateway.turns import Turns

log = structlog.get_logger("gateway.refused_calls")
KIND: Final = "libvirt.refused"
LEFT_OUT_SECONDS: Final = 60.0


class RefusedCallsOnRecord:
    """One gateway's. Not `RecordedRefusals`: it counts calls, of which a report says many, and tells of those that were
    left out though the host is quiet; what the log did not take its relay reports again.

    `at_once` records of one host, and `per_minute` more.
    """

    def __init__(self, gate: Gate, at_once: int, per_minute: int) -> None:
        self._gate = gate
        self._throttle = Throttle(at_once, 60 / per_minute, trio.current_time)
        self._left_out: Counter[str] = Counter()  # calls, by host
        self._known: dict[str, tuple[str, int, int]] = {}  # by host: epoch, sequence, entries that are done
        self._turns = Turns(1, 1)

    async def take(self, host: SpiffeId, report: RefusalReport) -> None:
        """Returns once all of it is on record, or counted as left out. Errors: LogUnavailable, Overloaded."""
        name = str(host)
        async with self._turns.of(name):
            epoch, sequence, done = self._known.get(name, ("", 0, 0))
            if epoch == report.epoch and report.sequence < sequence:
                return
            if (epoch, sequence) != (report.epoch, report.sequence):
                done = 0
                self._left_out[name] += report.lost
                self._known[name] = (report.epoch, report.sequence, 0)
            for number, refused in enumerate(report.refusals[done:], done + 1):
                await self._record(name, refused, f"{report.epoch}-{report.sequence}")
                self._known[name] = (report.epoch, report.sequence, number)

    async def run(self) -> None:
        """Put on record what was left out of a host that has gone quiet since, for ever."""
        while True:
            await trio.sleep(LEFT_OUT_SECONDS)
            try:
                await self.record_left_out()
            except GatewayError as error:
                log.warning("left-out refusals could not be recorded", error=error.detail)

    async def record_left_out(self) -> None:
        async with self._turns.of(KIND):
            for name in [name for name, calls in self._left_out.items() if calls]:
                if self._throttle.admits(name):
                    await self._append(name, Event(KIND, "denied", actor=host_actor(name)), {})

    async def _record(self, name: str, refused: RefusedLibvirtCall, report: str) -> None:
        if not self._throttle.admits(name):
            self._left_out[name] += refused.count
            return
        inventory = self._gate.inventory
        known = inventory.host(refused.peer)
        peer = known.spiffe_id if known is not None else None
        source, destination = (name, peer) if refused.role == "source" else (peer, name)
        told = refused.model_dump()
        details = {key: told[key] for key in sorted(told) if key != "vm" and told[key] is not None}
        event = Event(
            KIND,
            "denied",
            actor=host_actor(name),
            vm=self._vm(refused),
            source=source,
            destination=destination,
        )
        await self._append(name, event, {**details, "report": report})

    async def _append(self, name: str, event: Event, details: dict[str, Any]) -> None:
        """With what was left out of this host until now, which is told once it is durable."""
        left_out = self._left_out[name]
        more = {"left_out": left_out} if left_out else {}
        await self._gate.recorder.append(
            Event(event.kind, event.outcome, None, event.actor, event.vm, event.source, event.destination,
                  details={**details, **more})
        )  # fmt: skip
        self._left_out[name] -= left_out

    def _vm(self, refused: RefusedLibvirtCall) -> Vm | None:
        """By UUID if there is one; the name is the inventory's where it knows the VM, else what the caller said."""
        asked = refused.vm or refused.vm_name
        if asked is None:
            return None
        known = self._gate.inventory.vm(asked)
        return Vm(known.uuid, known.name) if known is not None else Vm(refused.vm, refused.vm_name)
