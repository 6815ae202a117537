"""Records of what the gateway does: one place that stamps them (sequence, boot, times) and hands them on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol

from audit.checkpoint import LogSigner
from audit.group import After, Draft, Unsigned
from audit.log import Commit, EntryBuilder, Recovery
from audit.record import CLOCK_STEP_KIND, Actor, Record, Vm, format_time
from gateway.committer import Committer, Outage
from policy.facts import Person
from policy.many_groups import MANY, compact_ids, digest_of_ids

CLOCK_STEP_MS: Final = 500
MAX_NAMES: Final = 50
MAX_NAME_CHARS: Final = 64

EntryAfter = Callable[[int, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Event:
    """What a record says, without its stamps. `details`: JSON without floats."""

    kind: str
    outcome: str | None = None
    migration_id: str | None = None
    actor: Actor | None = None
    vm: Vm | None = None
    source: str | None = None
    destination: str | None = None
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Clock:
    """The clocks of this process: wall (timezone-aware), monotonic (ns), and how wrong the wall clock may be."""

    wall: Callable[[], datetime]
    monotonic_ns: Callable[[], int]
    error_us: Callable[[], int | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where the record is, the hash of its leaf, and the commit that proves it."""

    index: int
    leaf_hash: bytes
    commit: Commit


class History(Protocol):
    """The records of the log, as far as they are asked for."""

    async def records_since(
        self, kinds: Sequence[str], since: str, who: str | None = None
    ) -> list[tuple[int, dict[str, Any]]]:
        """Oldest first. `who`: only those whose actor has this id. Errors: LogUnavailable."""


class Recorder:
    """Stamps events and appends them; those of one commit are signed together."""

    def __init__(self, committer: Committer, signer: LogSigner, boot_id: str, clock: Clock) -> None:
        self._committer = committer
        self._signer = signer
        self._boot_id = boot_id
        self._clock = clock
        self._latest: tuple[datetime, int] | None = None
        self.on_event: Callable[[Event], None] | None = None  # hears of each before it is recorded

    async def append(self, event: Event, entry_after: EntryAfter | None = None) -> Recorded:
        """Commit the record, and right after it, in the same commit, what `entry_after(index, leaf_hash)` makes of it.

        Errors: LogUnavailable, Overloaded, audit's RecordError, and what `entry_after` raises; nothing logged then.
        """
        if self.on_event is not None:
            self.on_event(event)
        index = 0

        def build(first_index: int) -> Sequence[Draft]:
            nonlocal index
            drafts, index = self._stamped(event, first_index)
            return drafts if entry_after is None else [*drafts, After(partial(entry_after, index))]

        committed = await self._committer.append(build)
        return Recorded(index, committed.commit.leaf_hash(index), committed.commit)

    def of_outage(self, outage: Outage) -> EntryBuilder:
        """The record that the log failed and works again, for `Committer.announce`."""
        details = {
            "because": outage.because,
            "lately": outage.lately,
            "outage_ms": int(outage.seconds * 1000),
            "attempts": outage.attempts,
            "recovered": recovery_details(outage.recovery),
        }
        return lambda first_index: self._stamped(Event("log.recovered", details=details), first_index)[0]

    def _stamped(self, event: Event, first_index: int) -> tuple[list[Draft], int]:
        """The record, last, and its index; before it one of a clock that was stepped."""
        # In the log's thread: times rise with the sequence, whoever was faster on the way.
        now, ticks = self._clock.wall(), self._clock.monotonic_ns()
        drafts: list[Draft] = []
        if (step_ms := self._step_ms(now, ticks)) is not None:
            step = Event(CLOCK_STEP_KIND, details={"step_ms": step_ms})
            drafts.append(self._draft(step, first_index, now, ticks))
        self._latest = now, ticks
        index = first_index + len(drafts)
        return [*drafts, self._draft(event, index, now, ticks)], index

    def _step_ms(self, now: datetime, ticks: int) -> int | None:
        """By how much the wall clock was stepped since the last record, if it was: auditors must be told."""
        if self._latest is None:
            return None
        before, ticks_before = self._latest
        elapsed_ms = (now - before) // timedelta(milliseconds=1)
        step_ms = elapsed_ms - (ticks - ticks_before) // 1_000_000
        # Within this, both clocks agree but for slewing (500 ppm at most) and the time between the two readings.
        is_step = abs(step_ms) > CLOCK_STEP_MS + abs(elapsed_ms) // 1000
        return step_ms if is_step or now < before else None

    def _draft(self, event: Event, index: int, now: datetime, ticks: int) -> Unsigned:
        record = Record(
            version=2,
            clock_error_us=self._clock.error_us(),
            kind=event.kind,
            origin=self._signer.origin,
            sequence=index,
            boot_id=self._boot_id,
            time=format_time(now),
            monotonic_ns=ticks,
            migration_id=event.migration_id,
            outcome=event.outcome,
            actor=event.actor,
            vm=event.vm,
            source=event.source,
            destination=event.destination,
            reason=event.reason,
            details=dict(event.details),
        )
        return Unsigned.of(record)


def document_of(event: Event) -> dict[str, Any]:
    """The parts of the record that state is derived from, so that memory and a restart derive alike."""
    actor, vm = event.actor, event.vm
    return {
        "kind": event.kind,
        "outcome": event.outcome,
        "actor": None
        if actor is None
        else {
            "id": actor.id,
            "name": actor.name,
            "issuer": actor.issuer,
            "authenticated_by": actor.authenticated_by,
            "groups": actor.groups,
        },
        "vm": None if vm is None else {"uuid": vm.uuid, "name": vm.name},
        "source": event.source,
        "destination": event.destination,
        "reason": event.reason,
        "details": event.details,
    }


def actor_of(person: Person) -> Actor:
    """The person as they were known at this moment; of very many groups those that policies name (`identity_of`)."""
    shown = person.groups if person.shown_groups is None else person.shown_groups
    groups = tuple(sorted(shown)) if shown is not None else None
    return Actor(person.id, person.name, person.authenticated_by, person.issuer, groups)


def identity_of(person: Person) -> dict[str, Any]:
    """`identity` of a record's details: what Active Directory told of the person for this decision, if it was asked.

    Of somebody in very many groups also how many and which they are in all, by digest (`policy.many_groups`).
    `delegation`: who acts for the person.
    """
    facts: dict[str, Any] = {}
    if person.directory is not None:
        facts = {"source": "active-directory", **asdict(person.directory)}
        read = facts.pop("groups")
        if person.groups is None:  # else they are the actor's, and are not written twice
            facts["groups"] = None if read is None else list(read) if len(read) <= MANY else compact_ids(read)
    if person.groups is not None and person.shown_groups is not None:
        facts |= {"groups_count": len(person.groups), "groups_sha256": digest_of_ids(person.groups)}
    delegation = {} if person.actor is None else {"actor": person.actor, "prior_actors": list(person.prior_actors)}
    return {**({"identity": facts} if facts else {}), **({"delegation": delegation} if delegation else {})}


def some_of(names: Sequence[str]) -> list[str]:
    """Of what somebody wrote: the first of many names, and the beginning of each. A record is bounded, and what is
    asked for goes on record whatever it is."""
    return [name[:MAX_NAME_CHARS] for name in names[:MAX_NAMES]]


def host_actor(spiffe_id: str) -> Actor:
    return Actor(spiffe_id, spiffe_id.rpartition("/")[2], "client-certificate")


def recovery_details(recovery: Recovery | None) -> dict[str, Any] | None:
    """What opening the log cut off, if it did, as records tell it."""
    return {"first_index": recovery.first_index, "cut_bytes": recovery.cut_bytes} if recovery else None
