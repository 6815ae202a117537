"""Asking relays for the end of a migration: the source's, or where that cannot be told, the destination's."""

from __future__ import annotations

import trio

from gateway.dispatch import PERMIT, Assignment, QueueFull
from gateway.errors import Conflict, RelayUnreachable
from gateway.gate import Gate
from gateway.migrations import Migration


def ask_for_end(gate: Gate, migration: Migration, now: int) -> bool:
    """Through the source relay, once. Errors: Conflict (already ended), RelayUnreachable.

    True: the relay did not have the permit yet, which was withdrawn: nothing begins. `Unfetched` puts that on record.
    """
    source = migration.source
    if migration.is_final or source is None:
        raise Conflict(f"the migration has ended: {migration.state}", code="already_ended", next_step="nothing to do")
    if migration.cancel_requested:
        return False
    migration = migration.with_cancel_request()
    if gate.dispatch.withdraw(source, migration.migration_id):
        gate.migrations.put(migration)
        return True
    # A relay whose answer was lost does not fetch it again, to begin what is to end.
    gate.dispatch.acknowledge(source, migration.migration_id, frozenset({PERMIT}))
    tell_to_end(gate, source, migration, now)
    gate.migrations.put(migration)
    return False


def tell_to_end(gate: Gate, host: str, migration: Migration, now: int) -> None:
    """Put it into the host's queue. A relay that does not know the migration ignores it. Errors: RelayUnreachable."""
    document = {"kind": "cancel", "migration_id": migration.migration_id}
    expires = trio.current_time() + max(1, migration.end_until - now)
    try:
        gate.dispatch.assign(host, Assignment(migration.migration_id, "cancel", document, expires))
    except QueueFull as error:
        raise RelayUnreachable("the source relay does not take its assignments") from error
