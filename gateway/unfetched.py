"""Permits that no relay fetched in time: withdrawn, put on record, and only then told.

Withdrawing is done in `gateway.dispatch`, where the only copy was. A log that takes no record delays what is told, and
brings no permit back.
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
from gateway.migrations import Migration
from gateway.recording import Event

KIND: Final = "migration.withdrawn"
LOOK_SECONDS: Final = 1.0

log = structlog.get_logger("gateway.relays")


class Unfetched:
    """The permits that were withdrawn, until they are on record."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._to_record: list[tuple[str, Assignment]] = []

    async def run(self) -> None:
        """For ever."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except GatewayError as error:
                log.error("a withdrawn permit is not on record yet; it is tried again", error=error.detail)

    async def look(self) -> None:
        """Errors: LogUnavailable, Overloaded; what is left is recorded the next time."""
        for host, assignment in self._gate.dispatch.withdrawn():
            log.warning("a permit was withdrawn: no relay fetched it", host=host, migration_id=assignment.migration_id)
            self._to_record.append((host, assignment))
        while self._to_record:
            host, assignment = self._to_record[0]
            try:
                await self._record(host, assignment)
            except AuditError as error:  # not to be tried for ever; it fails when its permit would have expired
                told = {"host": host, "migration_id": assignment.migration_id}
                log.error("a withdrawn permit cannot be recorded", error=str(error), **told)
            del self._to_record[0]

    async def _record(self, host: str, assignment: Assignment) -> None:
        gate = self._gate
        migration = gate.migrations.heard(assignment.migration_id)
        if migration is None:
            return  # forgotten among very many: the log has its decision, and nothing that followed
        because = words(host, assignment.fetch_by - assignment.queued)
        await gate.recorder.append(_event(migration, because))
        gate.migrations.put((gate.migrations.heard(migration.migration_id) or migration).withdrawn(because))


def words(host: str, seconds: float) -> str:
    """For whoever asked."""
    name = host.rpartition("/")[2]
    return (
        f"the relay on {name} did not fetch the permit within {seconds:.0f} s, so it was withdrawn; nothing has moved. "
        f"The operator of {name} starts its relay (or looks why it does not hear this gateway); then repeat the request"
    )


def _event(migration: Migration, because: str) -> Event:
    return Event(
        KIND,
        "failed",
        migration_id=migration.migration_id,
        vm=Vm(migration.vm_uuid, migration.vm_name),
        source=migration.source,
        destination=migration.destination,
        details={
            "because": because,
            "decision_record": migration.record_index,
            "requested_by": migration.requested_by,
            "jti": migration.jti,
        },
    )
