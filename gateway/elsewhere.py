"""Permits of the other gateways of this site: relays show them here, so that what they permitted is no alarm here.

Each gateway has a log and keys of its own and decides by itself; both pin each other's. A permit that a relay uses,
with the proof that it is in the other one's log, is put on record here (`migration.elsewhere`). From then on this
gateway knows the migration: it takes its receipts, keeps the VM from being moved twice, and judges placement by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from audit.errors import AuditError
from audit.record import Vm
from certs.identity import SpiffeId
from gateway.elsewhere_settings import PeerTable
from gateway.errors import ConfigRefused, RelayRefused
from gateway.gate import Gate
from gateway.migrations import from_elsewhere
from gateway.reading import Reading
from gateway.recording import Event, host_actor
from gateway.turns import Turns
from policy.permit import VerifiedPermit
from transport.errors import OfferRefused
from transport.relay.permits import verify_past
from transport.relay.pins import Pins, read_pins

KIND = "migration.elsewhere"


class Elsewhere:
    """`pinned`: of each other gateway, by its name."""

    def __init__(self, gate: Gate, reading: Reading, pinned: Mapping[str, Pins]) -> None:
        self._gate = gate
        self._reading = reading
        self._pinned = pinned
        self._turns = Turns(1, 1)

    async def take(self, host: SpiffeId, token: str) -> None:
        """A permit that `host` says is used there. Nothing is done for one that is known.

        Errors: RelayRefused (no permit of another gateway of this site, or not of this host), Overloaded,
        LogUnavailable.
        """
        name, permit = self._verified(token)
        claims = permit.claims
        if str(host) not in {claims.source, claims.destination}:
            raise RelayRefused("the permit is for other hosts", code="not_a_party")
        async with self._turns.of(str(host)):  # both hosts show it at once, and it must not become two records
            await self._take_new(name, permit, token, host)

    async def _take_new(self, name: str, permit: VerifiedPermit, token: str, host: SpiffeId) -> None:
        claims = permit.claims
        now = int(self._gate.clock.wall().timestamp())
        if await self._reading.migration(claims.migration_id, now) is not None:
            return
        known = self._gate.inventory.vm(claims.vm)
        event = Event(
            KIND,
            "allowed",
            migration_id=claims.migration_id,
            actor=host_actor(str(host)),
            vm=Vm(claims.vm, known.name if known is not None else None),
            source=claims.source,
            destination=claims.destination,
            details={
                "gateway": name,
                "permit": {
                    "jti": claims.jti,
                    "iat": claims.iat,
                    "exp": claims.exp,
                    "session_until": claims.session_until,
                    "recover_until": claims.recover_until,
                },
                "permit_sha256": hashlib.sha256(token.encode()).hexdigest(),
                "checkpoint": permit.proof.checkpoint,
                **({} if claims.moves_guest else {"named_port": claims.named_port}),
            },
        )
        recorded = await self._gate.recorder.append(event)
        document = {
            "migration_id": claims.migration_id,
            "vm": {"uuid": claims.vm, "name": known.name if known is not None else None},
            "source": claims.source,
            "destination": claims.destination,
            "details": event.details,
        }
        self._gate.migrations.put(from_elsewhere(recorded.index, document))

    def _verified(self, token: str) -> tuple[str, VerifiedPermit]:
        for name, pins in self._pinned.items():
            try:
                return name, verify_past(token, pins)
            except OfferRefused:
                continue
        raise RelayRefused("not a permit of another gateway of this site", code="not_a_party")


def read_peers(tables: tuple[PeerTable, ...], folder: Path) -> dict[str, Pins]:
    """Paths are relative to `folder`. Errors: ConfigRefused."""
    pinned: dict[str, Pins] = {}
    for table in tables:
        try:
            permit_files = [folder / name for name in table.permit_keys]
            pinned[table.name] = read_pins(permit_files, [folder / name for name in table.log_keys])
        except (AuditError, OSError, ValueError) as error:
            raise ConfigRefused(folder / "gateway.toml", "peers", f"{table.name}: {error}") from error
    return pinned
