"""Asking relays for the end of a migration: the source's, or where that cannot be told, the destination's."""

from __future__ import annotations

from dataclasses import replace

import trio

from gateway.dispatch import PERMIT, Assignment, QueueFull
from gateway.errors import Conflict, RelayUnreachable
from gateway.gate import Gate
from gateway.migrations import Migration, State


def ask_for_end(gate: Gate, migration: Migration, now: int) -> None:
    """Through the source relay, once. Errors: Conflict (already ended), RelayUnreachable."""
    source = migration.source
    if migration.is_final or source is None:
        raise Conflict(f"the migration has ended: {migration.state}", code="already_ended", next_step="nothing to do")
    if migration.cancel_requested:
        return
    migration = migration.with_cancel_request()
    if gate.dispatch.withdraw(source, migration.migration_id):
        # The relay never had the permit, so nothing can begin.
        gate.migrations.put(replace(migration, state=State.CANCELLED, message="cancelled before it began"))
        return
    # A relay whose answer was lost does not fetch it again, to begin what is to end.
    gate.dispatch.acknowledge(source, migration.migration_id, frozenset({PERMIT}))
    tell_to_end(gate, source, migration, now)
    gate.migrations.put(migration)


def tell_to_end(gate: Gate, host: str, migration: Migration, now: int) -> None:
    """Put it into the host's queue. A relay that does not know the migration ignores it. Errors: RelayUnreachable."""
    document = {"kind": "cancel", "migration_id": migration.migration_id}
    expires = trio.current_time() + max(1, migration.end_until - now)
    try:
        gate.dispatch.assign(host, Assignment(migration.migration_id, "cancel", document, expires))
    except QueueFull as error:
        raise RelayUnreachable("the source relay does not take its assignments") from error
