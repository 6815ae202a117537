"""Permits that no relay has, and none will get: not fetched in time, or taken back because somebody wanted the end.

Withdrawing is done in `gateway.dispatch`, where the only copy was; here it is put on record, and only then told. A log
that takes no record delays what is told, and brings no permit back.
"""

from __future__ import annotations

from typing import Final

import structlog
import trio

from audit.errors import AuditError
from audit.record import Vm
from gateway.dispatch import Assignment
from gateway.errors import GatewayError
from gateway.gate import Gate
from gateway.migrations import Migration, State
from gateway.recording import Event, document_of

KIND: Final = "migration.withdrawn"
LOOK_SECONDS: Final = 1.0
CANCELLED: Final = "cancelled before it began: no relay had the permit"

log = structlog.get_logger("gateway.relays")


class Unfetched:
    """The permits that were withdrawn, until they are on record."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._to_record: list[tuple[str, Assignment]] = []
        self._one = trio.Lock()

    async def run(self) -> None:
        """For ever."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except GatewayError as error:
                log.error("a withdrawn permit is not on record yet; it is tried again", error=error.detail)

    async def look(self) -> None:
        """When this returns, all that was withdrawn before is on record.

        Errors: LogUnavailable, Overloaded; what is left is recorded the next time.
        """
        async with self._one:
            self._to_record += self._gate.dispatch.withdrawn()
            while self._to_record:
                # What is on record is told, whatever becomes of the request that waits for it.
                with trio.CancelScope(shield=True):
                    await self._record(*self._to_record[0])
                del self._to_record[0]

    async def _record(self, host: str, assignment: Assignment) -> None:
        gate = self._gate
        migration = gate.migrations.heard(assignment.migration_id)
        if migration is None:
            return  # forgotten among very many: the log has its decision, and nothing that followed
        event = _event(migration, words(host, assignment.fetch_by - assignment.queued))
        told = {"host": host, "migration_id": assignment.migration_id, "because": event.details["because"]}
        try:
            await gate.recorder.append(event)
        except AuditError as error:  # not to be tried for ever; it fails when its permit would have expired
            log.error("a withdrawn permit cannot be recorded", error=str(error), **told)
            return
        log.warning("a permit was withdrawn", **told)
        latest = gate.migrations.heard(migration.migration_id) or migration
        gate.migrations.put(latest.withdrawn(document_of(event)))


def words(host: str, seconds: float) -> str:
    """For whoever asked."""
    name = host.rpartition("/")[2]
    return (
        f"the relay on {name} did not fetch the permit within {seconds:.0f} s, so it was withdrawn; nothing has moved. "
        f"The operator of {name} starts its relay (or looks why it does not hear this gateway); then repeat the request"
    )


def _event(migration: Migration, late: str) -> Event:
    is_cancelled = migration.cancel_requested
    return Event(
        KIND,
        (State.CANCELLED if is_cancelled else State.FAILED).value,
        migration_id=migration.migration_id,
        vm=Vm(migration.vm_uuid, migration.vm_name),
        source=migration.source,
        destination=migration.destination,
        details={
            "because": CANCELLED if is_cancelled else late,
            "decision_record": migration.record_index,
            "requested_by": migration.requested_by,
            "jti": migration.jti,
        },
    )
