"""What relays tell the gateway (progress, receipts), and what it tells them (assignments, cancellation)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
import structlog
import trio

from audit.errors import RecordError
from audit.record import Vm
from certs.identity import SpiffeId
from gateway.asking import decide
from gateway.cancelling import ask_for_end
from gateway.deciding import decision_document
from gateway.enrolment.told import told_trust
from gateway.errors import NotAllowed, NotKnown, ReceiptRefused, RelayRefused
from gateway.gate import Gate
from gateway.hosts_seen import HostsSeen
from gateway.migrations import FINAL, MAX_RECEIPTS, Migration, ReceiptOnFile, State
from gateway.reading import Reading
from gateway.receipts import SignedReceipt, read_body, receipt_details, verify_receipt
from gateway.recording import Event, actor_of, host_actor, identity_of
from gateway.relays import HostTrust
from gateway.rollover.progress import Holdings
from gateway.throttle import Throttle
from gateway.turns import Turns
from gateway.unfetched import Unfetched
from policy.facts import Context, Person, Question

log = structlog.get_logger("gateway.reporting")

_MIGRATE: Final = frozenset({"migrate"})
_ALL: Final = frozenset({"migrate", "cancel"})


class Reporting:
    """`trust` is replaced as a whole at a reload; `told` is what relays hear of it."""

    def __init__(self, gate: Gate, reading: Reading, trust: HostTrust, unfetched: Unfetched) -> None:
        self._gate = gate
        self.put_in_force(trust)
        self.seen = HostsSeen()
        self.holdings = Holdings()
        self._reading = reading
        self._unfetched = unfetched
        self._receipts = Turns(1, 1)
        self._said = Throttle(20, 1.0, trio.current_time)

    def put_in_force(self, trust: HostTrust) -> None:
        self.trust = trust
        sites = self._gate.sites.by_domain.values() if self._gate.sites is not None else ()
        foreign = {site.trust_domain: texts for site in sites if (texts := site.crl_texts())}
        self.told = told_trust(trust.trust, foreign, trust.rolling)

    def tell_foreign_crls(self) -> None:
        """Relays hear of what was kept of other sites since; nothing else changes, and no other file is read."""
        self.put_in_force(self.trust)

    async def progress(
        self, host: SpiffeId, migration_id: str, state: State, numbers: Mapping[str, Any], message: str | None
    ) -> None:
        """Take a relay's report. It is not recorded: receipts are. Errors: RelayRefused (no part in it), NotKnown."""
        now = self._now()
        migration = await self._of_host(host, migration_id, now)
        if str(host) != migration.source:
            return  # the source drives: only its word moves the state, the destination's is in its receipt
        heard = self._gate.migrations.heard(migration_id)
        if heard is not None and heard.may_still_run(now):
            migration = heard  # it was only presumed to have failed: whoever reports, late as it is, is under way
        updated = migration.with_progress(state, numbers, message, now)
        self._gate.migrations.put(updated)
        self._gate.dispatch.acknowledge(str(host), migration_id, _ALL if state in FINAL else _MIGRATE)

    async def receipt(self, host: SpiffeId, receipt: SignedReceipt) -> int:
        """Verify and record a receipt; the index of its record, the same one however often it is sent.

        Errors: ReceiptRefused, RelayRefused, NotKnown, LogUnavailable, Overloaded (nothing taken: the relay keeps it).
        """
        body = read_body(receipt)
        async with self._receipts.of(str(host)):  # two copies at once must not become two records
            moment = self._gate.clock.wall()
            now = int(moment.timestamp())
            migration = await self._of_host(host, body.migration_id, now)
            for known in migration.receipts:
                if (known.role, known.body_sha256) == (body.role, receipt.body_sha256):
                    return known.record_index
            lacks_memory = body.lacks_memory is not msgspec.UNSET
            said = [(each.outcome, each.lacks_memory) for each in migration.receipts if each.role == body.role]
            if len(said) >= MAX_RECEIPTS and (body.outcome, lacks_memory) in said:
                raise ReceiptRefused("number", f"this migration has {len(said)} receipts of its {body.role} already")
            verify_receipt(receipt, body, host, migration, self.trust, moment)
            places_vm = self._may_place(migration, datetime.fromisoformat(body.started).timestamp(), now)
            event = Event(
                "migration.receipt",
                outcome=body.outcome,
                migration_id=migration.migration_id,
                actor=host_actor(str(host)),
                vm=Vm(migration.vm_uuid, migration.vm_name),
                source=migration.source,
                destination=migration.destination,
                details=receipt_details(receipt, body, migration, places_vm=places_vm),
            )
            try:
                recorded = await self._gate.recorder.append(event)
            except RecordError as error:
                raise ReceiptRefused("form", f"it cannot be recorded: {error}") from error
            on_file = ReceiptOnFile(
                body.role,
                body.outcome,
                receipt.body,
                receipt.body_sha256,
                recorded.index,
                lacks_memory=lacks_memory,
            )
            # Progress may have come in while the record was being committed: start from what is known now.
            latest = self._gate.migrations.get(migration.migration_id, now) or migration
            self._take(latest.with_receipt(on_file, now), places_vm=places_vm)
        self._gate.dispatch.acknowledge(str(host), migration.migration_id, _ALL)
        return recorded.index

    async def cancel(self, person: Person, migration_id: str, now: datetime, address: str) -> None:
        """Ask for the end of a migration; a permit that no relay has is withdrawn, and on record as that.

        Errors: NotKnown, NotAllowed, TooManyRefusals, Conflict (already ended), RelayUnreachable; LogUnavailable,
        Overloaded: what was withdrawn by then stays so, and goes on record later.
        """
        seconds = int(now.timestamp())
        migration = await self._reading.migration(migration_id, seconds)
        if migration is None:
            raise NotKnown("no such migration")
        context = Context(time=now, own_migration=migration.requested_by == person.id)
        decision = decide(self._gate.engine, Question("CancelMigration", person, None, None, None, context))
        if not decision.allowed or migration.is_final or migration.cancel_requested:  # nothing comes of it but a record
            await self._gate.people.patience.require(person, address)
        details = {"client_address": address, "decision": decision_document(decision), **identity_of(person)}
        event = Event(
            "migration.cancel_requested",
            outcome="allowed" if decision.allowed else "denied",
            migration_id=migration_id,
            actor=actor_of(person),
            vm=Vm(migration.vm_uuid, migration.vm_name),
            source=migration.source,
            destination=migration.destination,
            details=details,
        )
        recorded = await self._gate.recorder.append(event)
        if not decision.allowed:
            raise NotAllowed("cancelling this migration is denied", decision.denied_because, recorded.index)
        if ask_for_end(self._gate, self._gate.migrations.get(migration_id, seconds) or migration, seconds):
            await self._unfetched.look()

    def _may_place(self, migration: Migration, started: float, now: int) -> bool:
        """Whether one more receipt can tell where the VM is now: that of an earlier move may come late, and whoever had
        the VM once can certify again that it runs there. `started`: its session, by its host's word.
        """
        if migration.certified_host() is not None:
            return False
        vm = self._gate.inventory.vm(migration.vm_uuid or "")
        known = None if vm is None else self._gate.placement.expected(vm, self._gate.inventory)
        if vm is None or known is None or known.source == "inventory":  # which may lag behind
            return True
        if known.at <= migration.decided:
            return True
        if known.host not in {migration.source, migration.destination}:
            return False
        latest = self._gate.migrations.latest_of(vm.uuid, now)
        is_last = latest is None or latest.record_index <= migration.record_index
        if is_last and now <= migration.heard_until:
            return True  # what was learned since its decision is of what went before it
        # A permit of an evacuation is used hours after its decision: the VM may have been away, and come back.
        return known.at <= started <= migration.begin_until

    def _take(self, migration: Migration, *, places_vm: bool) -> None:
        self._gate.migrations.put(migration)
        if places_vm and (host := migration.certified_host()) is not None and migration.vm_uuid is not None:
            self._gate.placement.certify(migration.vm_uuid, host)

    async def _of_host(self, host: SpiffeId, migration_id: str, now: int) -> Migration:
        """The migration, if `host` has a part in it. A foreign one is as unknown as one that does not exist."""
        migration = await self._reading.migration(migration_id, now)
        if migration is None or str(host) not in {migration.source, migration.destination} or migration.jti is None:
            self.say_refused("report on a migration of others", host=str(host), migration_id=migration_id)
            raise RelayRefused("no migration of this host has that id", code="not_a_party")
        return migration

    def say_refused(self, what: str, **facts: str) -> None:
        """Within a rate: a host that is out asks as often as it likes, and must not fill the operators' log."""
        if self._said.admits("all"):
            log.warning(what, **facts)

    def _now(self) -> int:
        return int(self._gate.clock.wall().timestamp())
