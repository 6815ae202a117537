"""The state of each migration, as far as the gateway has heard.

Pure values and transitions. All but `progress` can be derived again from the records of the log: `replay` does so at
start, with the functions that also run when things happen.

    assigned ─► running ─► handing_over ─► completed | failed | cancelled        (denied: never began)

Relays report; receipts, which are signed, have the last word: a progress report never leaves a final state, a
receipt may (a destination that certifies "running" outweighs a source that gave up waiting). One host's word that it
is completed is believed after some seconds; until then the other's receipt, with the rest of the facts, may arrive. A
guest in post-copy runs at the destination, as that one certifies, before all of its memory is there: its migration is
`handing_over` until the source says that it is completed, or the permit's `recover_until` is past.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from gateway.standing import Standing, standing_of
from policy.facts import moves_guest

BEGIN_GRACE_SECONDS: Final = 60  # after a permit's `exp`: clock skew, and a report that is under way
END_GRACE_SECONDS: Final = 300  # after `session_until`, for receipts that are spooled
SECOND_RECEIPT_SECONDS: Final = 10  # how long "completed" waits for the other host's receipt
NOT_BEGUN: Final = "the source relay did not begin before the permit expired"
MAX_RECEIPTS: Final = 32  # of one host of a migration, and beside them what none of these says; recoveries bring many
_NO_RECEIPT: Final = "no receipt arrived: look at both hosts before repeating"
_MEMORY_LEFT: Final = (
    "the guest runs at the destination without all of its memory, for all that was heard, and the permit's "
    "recover_until is past: an operator must look at both hosts (docs/failures.md, When an operator must decide)"
)


class State(StrEnum):
    ASSIGNED = "assigned"
    RUNNING = "running"
    HANDING_OVER = "handing_over"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    DENIED = "denied"


FINAL: Final = frozenset({State.COMPLETED, State.FAILED, State.CANCELLED, State.DENIED})
_RANK: Final = {State.ASSIGNED: 0, State.RUNNING: 1, State.HANDING_OVER: 2}


@dataclass(frozen=True, slots=True)
class ReceiptOnFile:
    role: str
    outcome: str
    body: str
    body_sha256: str
    record_index: int
    lacks_memory: bool = False  # the guest runs there, and not all of its memory has come


@dataclass(frozen=True, slots=True)
class Migration:
    """Times are unix seconds. `begin_until` is the permit's `exp`, `end_until` its `session_until`.

    `standing`: what it was allowed on. `obligation`: the strongest that a revocation in flight had, if there was one.
    """

    migration_id: str
    vm_uuid: str | None
    vm_name: str | None
    source: str | None
    destination: str | None
    requested_by: str
    state: State
    record_index: int
    jti: str | None = None
    decided: int = 0
    begin_until: int = 0
    end_until: int = 0
    recover_until: int = 0
    permit_sha256: str | None = None
    completed_at: int | None = None
    ended: int | None = None  # since when it is as it is, where that is final and not presumed from silence
    cancel_requested: bool = False
    progress: Mapping[str, Any] | None = None
    message: str | None = None
    receipts: tuple[ReceiptOnFile, ...] = ()
    break_glass: str | None = None
    standing: Standing | None = None
    obligation: str | None = None
    revoked_because: str | None = None
    elsewhere: str | None = None  # the other gateway of this site that permitted it
    site_role: str | None = None  # of this site, where another one takes part: source or destination
    moves_guest: bool = True  # as its permit says (`PermitClaims`)

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    @property
    def lacks_memory(self) -> bool:
        """Whether, as far as was heard, the guest runs at the destination and part of its memory is at the source."""
        said = {each.outcome for each in self.receipts if each.role == "source"}
        if self.state is not State.HANDING_OVER or State.COMPLETED in said:
            return False
        if "handed-over" in said or (self.progress or {}).get("remaining_bytes", 0) > 0:
            return True
        return self._destination_lacks_memory

    @property
    def _destination_lacks_memory(self) -> bool:
        """By its own receipts, of which one without outweighs the others. A source that certifies that it has not given
        its guest away says the opposite of all of them: that is a contradiction, and nothing to wait for."""
        said = {each.outcome for each in self.receipts if each.role == "source"}
        running = [each for each in self.receipts if (each.role, each.outcome) == ("destination", "running")]
        return bool(running) and all(each.lacks_memory for each in running) and not said & {"failed", "cancelled"}

    @property
    def settled_at(self) -> int:
        """From when on, of one that has ended, no guest is under way."""
        return self.heard_until if self.ended is None else self.ended

    @property
    def heard_until(self) -> int:
        """Until when a relay may have something to say of it."""
        return (max(self.recover_until, self.end_until) if self.lacks_memory else self.end_until) + END_GRACE_SECONDS

    def at(self, now: int) -> Migration:
        """The same, given that it is `now`: what should have been heard of and was not has failed, or was cancelled."""
        if self.state is State.ASSIGNED and now > self.begin_until + BEGIN_GRACE_SECONDS:
            # Of a cancel, the end of the gateway may have come between its two records.
            return replace(self, state=State.CANCELLED if self.cancel_requested else State.FAILED, message=NOT_BEGUN)
        if not self.is_final and self.completed_at is not None and now >= self.completed_at:
            return replace(self, state=State.COMPLETED, ended=self.completed_at)
        if not self.is_final and now > self.heard_until:
            return replace(self, state=State.FAILED, message=_MEMORY_LEFT if self.lacks_memory else _NO_RECEIPT)
        return self

    def expecting_silence(self) -> Migration:
        """The same; that something has begun to arrive from another site nobody tells us: our host's receipt does."""
        return replace(self, begin_until=self.end_until) if self.site_role == "destination" else self

    def may_still_run(self, now: int) -> bool:
        """Whether its guest may be under way, for all that was heard.

        Silence ends nothing: a relay that took the permit and cannot, or will not, reach us is presumed to have failed
        (`at`), and moves its guest all the same.
        """
        if self.jti is None or self.is_final or now > self.heard_until:
            return False
        return self.completed_at is None or now < self.completed_at

    def with_progress(
        self, state: State, progress: Mapping[str, Any] | None, message: str | None, now: int
    ) -> Migration:
        """What the source relay reported. Never backwards, never out of a final state."""
        if self.state is state is State.FAILED and self.message is None:
            return replace(self, message=message)  # the destination's receipt came first, which does not say why
        if self.is_final:
            return self
        told = replace(self, progress=progress or self.progress, message=message or self.message)
        match state:
            case State.COMPLETED:
                return replace(told, message=message)._presume_completed(now)  # what was in the way is so no more
            case State.FAILED | State.CANCELLED:
                return told._final(state, now)
            case _:
                return replace(told, state=max(state, self.state, key=_RANK.__getitem__))._weighed(now)

    def with_receipt(self, receipt: ReceiptOnFile, now: int) -> Migration:
        """With one more receipt on file, received `now`."""
        known = replace(self, receipts=(*self.receipts, receipt))
        said = {(each.role, each.outcome) for each in known.receipts}
        at_destination = bool(said & {("destination", "running"), ("destination", "completed")})
        at_source = ("source", "completed") in said
        if at_destination and at_source:
            presumed = now if self.completed_at is None else self.completed_at
            return replace(known, message=None)._final(State.COMPLETED, min(now, presumed))
        if self.state is State.COMPLETED:
            return known
        if (receipt.role, receipt.outcome) == ("source", "handed-over"):
            return replace(known, state=State.HANDING_OVER, completed_at=None)
        if receipt.lacks_memory and known._destination_lacks_memory:
            known = replace(known, state=State.HANDING_OVER, completed_at=None)
        if at_destination or at_source:
            return known if known.lacks_memory else known._presume_completed(now)
        was_cancelled = self.state is State.CANCELLED or any(outcome == "cancelled" for _, outcome in said)
        return known._final(State.CANCELLED if was_cancelled else State.FAILED, now)

    def with_revocation(self, record: Mapping[str, Any]) -> Migration:
        """What a `migration.revoked` record (as JSON) says of it."""
        details = record["details"]
        told = replace(self, obligation=details["obligation"], revoked_because=details["because"])
        match record.get("outcome"):
            case "cancel_requested":
                return told.with_cancel_request()
            case "too_late":  # the handover began while the request was being recorded: nobody was asked
                return replace(told, cancel_requested=False)
            case _:
                return told

    def withdrawn(self, record: Mapping[str, Any]) -> Migration:
        """As a `migration.withdrawn` record (as JSON) says: nothing began, and nothing can begin."""
        if self.state is not State.ASSIGNED:
            return self
        state = State.CANCELLED if record.get("outcome") == State.CANCELLED else State.FAILED
        because = str(record["details"].get("because", ""))[:500]
        return replace(self, state=state, ended=self.decided, message=because)

    def restored(self, now: int) -> Migration:
        """As it is after a restart: relays get a moment to say that it has begun, which no record says."""
        return replace(self, begin_until=max(self.begin_until, now)) if self.state is State.ASSIGNED else self

    def with_cancel_request(self) -> Migration:
        return replace(self, cancel_requested=True)

    def _final(self, state: State, now: int) -> Migration:
        """In this final state, and if it was so before, since then: no host makes it later by saying it again."""
        since = self.ended if self.state is state and self.ended is not None else now
        return replace(self, state=state, ended=since)

    def _presume_completed(self, now: int) -> Migration:
        until = self.completed_at if self.completed_at is not None else now + SECOND_RECEIPT_SECONDS
        return replace(self, state=State.HANDING_OVER, completed_at=until)

    def _weighed(self, now: int) -> Migration:
        """What the destination certified, by what the source says `now` of memory that it has."""
        if self.lacks_memory:
            return replace(self, completed_at=None)
        return self if self.certified_host() is None else self._presume_completed(now)

    def certified_host(self) -> str | None:
        """The destination, once it certified that the guest runs there.

        Of a guest that left for another site its source certifies that: no receipt of the destination comes to us.
        """
        if not self.moves_guest:
            return None
        running = any(r.role == "destination" and r.outcome in {"running", "completed"} for r in self.receipts)
        if self.site_role == "source":
            running = any(r.role == "source" and r.outcome in {"completed", "handed-over"} for r in self.receipts)
        return self.destination if running else None


class Migrations:
    """All that the gateway remembers: bounded; what is final and oldest goes first (the log keeps it)."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._by_id: dict[str, Migration] = {}
        self._open_by_vm: dict[str, set[str]] = {}  # ids of those that were not heard to have ended
        self._reserved: set[str] = set()

    def get(self, migration_id: str, now: int) -> Migration | None:
        found = self._by_id.get(migration_id)
        return found.at(now) if found is not None else None

    def active_of(self, vm_uuid: str, now: int) -> Migration | None:
        """The migration of this VM that has not ended; the newest, if another gateway's permit made it two."""
        found = (self.get(each, now) for each in self._open_by_vm.get(vm_uuid, ()))
        under_way = (each for each in found if each is not None and not each.is_final)
        return max(under_way, key=lambda each: each.record_index, default=None)

    def latest_of(self, vm_uuid: str, now: int) -> Migration | None:
        """The permitted migration of this VM that was decided last, if it is remembered; a named port is none."""
        of_vm = (each for each in self._by_id.values() if each.vm_uuid == vm_uuid and each.moves_guest)
        permitted = (each for each in of_vm if each.jti is not None)
        found = max(permitted, key=lambda each: each.record_index, default=None)
        return found.at(now) if found is not None else None

    def reserve(self, vm_uuid: str, now: int) -> bool:
        """Keep other requests off this VM while one is being committed; False if it is taken or migrating."""
        if vm_uuid in self._reserved or self.active_of(vm_uuid, now) is not None:
            return False
        self._reserved.add(vm_uuid)
        return True

    def release(self, vm_uuid: str) -> None:
        self._reserved.discard(vm_uuid)

    def put(self, migration: Migration) -> None:
        """Remember it as it is now."""
        self._by_id[migration.migration_id] = migration
        if (vm := migration.vm_uuid) is not None:
            others = self._open_by_vm.pop(vm, set()) - {migration.migration_id}
            if still_open := others if migration.is_final else others | {migration.migration_id}:
                self._open_by_vm[vm] = still_open
        if len(self._by_id) > self.limit:
            self._evict()

    def active(self, now: int) -> Iterator[Migration]:
        """All that have not ended."""
        found = (self.get(each, now) for ids in self._open_by_vm.values() for each in ids)
        return (each for each in found if each is not None and not each.is_final)

    def heard(self, migration_id: str) -> Migration | None:
        """As its relays and receipts told it, nothing presumed from their silence."""
        return self._by_id.get(migration_id)

    def unsettled(self, now: int) -> list[Migration]:
        """Those whose guests may be under way, as they were heard; what can run no more is settled on the way."""
        found = []
        for migration in list(self._by_id.values()):
            if migration.may_still_run(now):
                found.append(migration)
            elif not migration.is_final and migration.jti is not None:
                self.put(migration.at(now))
        return found

    def under(self, grant_id: str, now: int) -> Iterator[Migration]:
        """The migrations that were permitted under a breaking of glass."""
        for migration in self._by_id.values():
            if migration.break_glass == grant_id and migration.jti is not None:
                yield migration.at(now)

    def _evict(self) -> None:
        for migration_id, migration in self._by_id.items():
            if migration.is_final:
                del self._by_id[migration_id]
                return
        # Nothing is final: the active ones are bounded by the number of VMs of the inventory.


def from_decision(index: int, record: Mapping[str, Any]) -> Migration:
    """The migration that a `migration.decision` record (as JSON) began, or refused."""
    details = record.get("details", {})
    permit = details.get("permit")
    vm = record.get("vm") or {}
    return Migration(
        migration_id=record["migration_id"],
        vm_uuid=vm.get("uuid"),
        vm_name=vm.get("name"),
        source=record.get("source"),
        destination=record.get("destination"),
        requested_by=(record.get("actor") or {}).get("id", ""),
        state=State.ASSIGNED if permit else State.DENIED if record.get("outcome") == "denied" else State.FAILED,
        record_index=index,
        jti=permit["jti"] if permit else None,
        decided=permit["iat"] if permit else 0,
        begin_until=permit["exp"] if permit else 0,
        end_until=permit["session_until"] if permit else 0,
        recover_until=permit.get("recover_until", 0) if permit else 0,
        message=details.get("not_admitted"),
        break_glass=details.get("asked", {}).get("break_glass"),
        standing=standing_of(record),
        site_role=(details.get("site") or {}).get("role"),
        moves_guest=moves_guest(details.get("action")),
    ).expecting_silence()


def from_elsewhere(index: int, record: Mapping[str, Any]) -> Migration:
    """The migration that a `migration.elsewhere` record (as JSON) speaks of: under way, for all that is known here."""
    permit, vm = record["details"]["permit"], record.get("vm") or {}
    return Migration(
        migration_id=record["migration_id"],
        vm_uuid=vm.get("uuid"),
        vm_name=vm.get("name"),
        source=record.get("source"),
        destination=record.get("destination"),
        requested_by="",
        state=State.RUNNING,
        record_index=index,
        jti=permit["jti"],
        decided=permit["iat"],
        begin_until=permit["exp"],
        end_until=permit["session_until"],
        recover_until=permit.get("recover_until", 0),
        permit_sha256=record["details"]["permit_sha256"],
        elsewhere=record["details"]["gateway"],
        moves_guest=record["details"].get("named_port") is None,
    )


def receipt_on_file(index: int, record: Mapping[str, Any]) -> ReceiptOnFile:
    """The receipt in a `migration.receipt` record."""
    details = record["details"]
    return ReceiptOnFile(
        role=details["role"],
        outcome=str(record.get("outcome")),
        body=details["body"],
        body_sha256=details["body_sha256"],
        record_index=index,
        lacks_memory=details.get("lacks_memory") is True,
    )
