"""The watch over running migrations: every some seconds, and at once when something changed, each is decided anew.

One hung directory does not keep the watch from the others: people whose groups it tells wait for it in a place of their
own, with its deadline. What cannot be known is left alone for a grace, and then taken for a no. Silence of a relay ends
nothing: a migration is watched until it is known to have ended, or its permit's time is up.
"""

from __future__ import annotations

import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import structlog
import trio

from audit.errors import RecordTooLarge
from audit.record import Vm
from gateway.asking import decide, protection_of
from gateway.cancelling import ask_for_end, tell_to_end
from gateway.deciding import decision_document
from gateway.errors import GatewayError
from gateway.gate import Gate
from gateway.hosts_seen import HostsSeen
from gateway.migrations import Migration, State
from gateway.observing import is_observable
from gateway.people import People
from gateway.recording import Event
from gateway.relays import HostTrust
from gateway.revocation import Effect, Revoked, effect_of, obligation_of, question_again, strength
from gateway.standing import Standing
from gateway.unfetched import Unfetched
from policy.errors import DirectoryUnavailable
from policy.facts import FROM_SITE, Person
from policy.many_groups import compact_entities

PEOPLE_AT_ONCE: Final = 4  # look-ups in a directory
PERSON_SECONDS: Final = 25.0  # for one of them, the wait for a turn included
HEED_SECONDS: Final = 30.0  # a source that goes on for longer after it was asked to end is not asked alone any more
_CAN_END: Final = frozenset({State.ASSIGNED, State.RUNNING})

log = structlog.get_logger("gateway.alarm")


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """`unknown_grace_seconds`: how long a migration goes on while nobody can tell whether it still may."""

    interval_seconds: float
    unknown_grace_seconds: float


class Unknown(Exception):
    """It cannot be told now whether the migration may go on."""


class Watch:
    """`trust` tells the trust in hosts that is in force now."""

    def __init__(
        self, gate: Gate, people: People, seen: HostsSeen, trust: Callable[[], HostTrust], unfetched: Unfetched
    ) -> None:
        self._gate = gate
        self._people = people
        self._seen = seen
        self._trust = trust
        self._unfetched = unfetched
        self._unknown_since: dict[str, float] = {}
        self._asked_since: dict[str, float] = {}  # the migrations that are to end
        self._destinations_told: set[str] = set()
        self.revoked: Counter[str] = Counter()
        self._limiter = trio.CapacityLimiter(PEOPLE_AT_ONCE)

    async def run(self, settings: WatchSettings) -> None:
        """For ever. Its first round tells relays again what was asked of them before a restart."""
        self._tell_again()
        while True:
            begun = trio.current_time()
            try:
                await self.look(settings.unknown_grace_seconds)
                if self._gate.break_glass is not None:
                    await self._gate.break_glass.record_endings()
            except GatewayError as error:
                log.error("the watch over migrations could not record; it tries again", error=error.detail)
            except Exception:  # noqa: BLE001 - a bug met in one round must end neither the watch nor the gateway
                log.error("bug: a round of the watch failed; it tries again", traceback=traceback.format_exc())
            # From beginning to beginning: a round that a slow directory draws out does not delay the next one as well.
            await self._gate.bell.wait(max(0.0, begun + settings.interval_seconds - trio.current_time()))

    async def look(self, grace_seconds: float) -> None:
        """One round over all running migrations. Errors: LogUnavailable; nothing is done that is not recorded."""
        by_person: defaultdict[tuple[Person, int | None] | None, list[Migration]] = defaultdict(list)
        unsettled = self._gate.migrations.unsettled(self._now())
        for migration in unsettled:
            if migration.elsewhere is not None:
                continue  # decided by another gateway, which watches over it
            # By two tokens one person is looked up twice: what they told ends at two times.
            person = migration.standing.person if migration.standing else None
            by_person[None if person is None else (person, person.told_until)].append(migration)
        self._forget_all_but({each.migration_id for each in unsettled})
        failures: list[GatewayError] = []
        async with trio.open_nursery() as nursery:
            for known, migrations in by_person.items():
                nursery.start_soon(self._look_at, known and known[0], migrations, grace_seconds, failures)
        self._insist()
        if failures:
            raise failures[0]

    async def _look_at(
        self, known: Person | None, migrations: Sequence[Migration], grace_seconds: float, failures: list[GatewayError]
    ) -> None:
        """All migrations of one person, as they were known then; they are looked up once."""
        person: Person | Unknown
        try:
            person = (
                await self._person_now(known) if known is not None else Unknown("its record tells too little of it")
            )
        except DirectoryUnavailable as error:
            person = Unknown(f"nobody can tell whether the requester still may: {error.detail}")
        except Exception:  # noqa: BLE001 - a person whom we cannot cope with must not keep the watch from all others
            log.error("bug: a requester could not be looked up", traceback=traceback.format_exc())
            person = Unknown("nobody can tell whether the requester still may: looking them up failed")
        for migration in migrations:
            await trio.lowlevel.checkpoint()  # a decision holds the loop for a millisecond, and there may be a thousand
            try:
                revoked = self._judge(migration, person)
                self._unknown_since.pop(migration.migration_id, None)
            except Unknown as unknown:
                since = self._unknown_since.setdefault(migration.migration_id, trio.current_time())
                lasted = trio.current_time() - since
                revoked = Revoked(f"{unknown}, for {lasted:.0f} s") if lasted >= grace_seconds else None
            if revoked is not None:
                try:
                    await self._revoke(migration, revoked)
                except GatewayError as error:
                    failures.append(error)

    async def _person_now(self, person: Person) -> Person:
        """Errors: DirectoryUnavailable."""
        if person.authenticated_by == FROM_SITE:
            return person  # nobody here can look them up; our policies decide on them anew, theirs do so there
        if not self._people.asks_directory(person):
            return await self._people.reconsider(person, self._gate.clock.wall())
        # However many wait for a directory that hangs: each has an answer of some kind when its time is up.
        with trio.move_on_after(PERSON_SECONDS):
            async with self._limiter:
                return await self._people.reconsider(person, self._gate.clock.wall())
        raise DirectoryUnavailable("timeout", f"no answer within {PERSON_SECONDS:.0f} s, others waiting")

    def _judge(self, migration: Migration, person: Person | Unknown) -> Revoked | None:
        """Why it would not be allowed any more; None if it would. Raises Unknown."""
        gate, standing = self._gate, migration.standing
        if (because := self._of_hosts(migration, gate.clock.wall())) is not None:
            return Revoked(because)
        if migration.break_glass is not None:
            problem = "no glass can be broken here" if gate.break_glass is None else None
            if gate.break_glass is not None:
                problem = gate.break_glass.problem_of(migration.break_glass)
            if problem is not None:
                return Revoked(f"the broken glass is whole again: {problem}")
        if isinstance(person, Unknown):
            # Whoever keeps a directory from answering must not escape what is forbidden to them as they were known.
            revoked = self._of_policy(migration, standing, standing.person) if standing is not None else None
            if revoked is None:
                raise person
            return revoked
        assert standing is not None  # else there is nobody to look up
        if (revoked := self._of_policy(migration, standing, person)) is None:
            self._require_shown(migration, gate.clock.wall())
        return revoked

    def _of_policy(self, migration: Migration, standing: Standing, person: Person) -> Revoked | None:
        gate = self._gate
        uuid = migration.vm_uuid or ""
        vm = gate.inventory.vm(uuid) or standing.told_vm
        both = (migration.source or "", migration.destination or "")
        hosts = [gate.inventory.host(each) or standing.told_hosts.get(each) for each in both]
        if (vm is None or None in hosts) and (why := gate.inventory.why_unknown(uuid)):
            if person.groups is None:  # a no whatever the inventory may say
                problem = person.directory.problem if person.directory is not None else "the issuer left them out"
                return Revoked(f"The requester's groups are not known: {problem}.")
            raise Unknown(f"the inventory is silent: {why}")
        protection = protection_of(gate.terms.protection, standing.action)
        question = question_again(standing, person, vm, hosts[0], hosts[1], protection=protection)
        decision = decide(gate.engine, question)
        if decision.allowed or (standing.observed and is_observable(decision)):
            if not standing.opens_libvirt:
                return None
            # What `automatic_admission` asked beside the move itself, and what no zone's observation lets through.
            decision = decide(gate.engine, replace(question, action="OpenLibvirt"))
            if decision.allowed:
                return None
        if decision.errors and not any(reason.effect == "forbid" for reason in decision.reasons):
            raise Unknown(f"the policy cannot be evaluated: {decision.errors[0]}")
        return Revoked(decision.denied_because, decision)

    def _of_hosts(self, migration: Migration, now: datetime) -> str | None:
        for role, host in (("source", migration.source), ("destination", migration.destination)):
            if host is not None and self._seen.is_revoked(host, self._trust(), now):
                return f"the certificate of the {role} host {host.rpartition('/')[2]} has been revoked"
        return None

    def _require_shown(self, migration: Migration, now: datetime) -> None:
        """Raises Unknown for a host that was revoked before this gateway's start, and has shown no certificate since:
        one that has come back does so within seconds."""
        for host in (migration.source, migration.destination):
            if host is not None and self._seen.is_out(host, self._trust(), now):
                raise Unknown(f"{host.rpartition('/')[2]} was revoked, and has shown no other certificate")

    async def _revoke(self, migration: Migration, revoked: Revoked) -> None:
        """Record it, then act. Once for each obligation that is stronger than the last one. Errors: LogUnavailable."""
        said = migration.standing.obligations if migration.standing is not None else ()
        obligation = obligation_of(said, revoked.decision)
        if strength(obligation) <= strength(migration.obligation):
            return
        latest = self._gate.migrations.heard(migration.migration_id)
        if latest is None or not latest.may_still_run(self._now()):
            return
        effect = effect_of(obligation, latest)
        await self._record(latest, revoked, obligation, effect)
        self.revoked[effect.value] += 1
        what = {"migration_id": migration.migration_id, "vm": migration.vm_name, "because": revoked.because}
        log.critical("a running migration is not allowed any more", alarm=True, effect=effect.value, **what)
        # Progress may have come in while the record was being committed.
        latest = self._gate.migrations.heard(migration.migration_id) or latest
        latest = replace(latest, obligation=obligation, revoked_because=revoked.because)
        self._gate.migrations.put(latest)
        if effect is Effect.CANCEL_REQUESTED and latest.may_still_run(self._now()):
            if latest.state in _CAN_END:
                if self._cancel(latest):
                    await self._unfetched.look()
            else:
                await self._record(latest, revoked, obligation, Effect.TOO_LATE)

    async def _record(self, migration: Migration, revoked: Revoked, obligation: str, effect: Effect) -> None:
        try:
            await self._gate.recorder.append(_event(migration, revoked, obligation, effect))
        except RecordTooLarge:
            brief = Revoked(revoked.because)  # the facts of the decision are too many for one record
            await self._gate.recorder.append(_event(migration, brief, obligation, effect))

    def _cancel(self, migration: Migration) -> bool:
        """True: no relay had its permit, which was withdrawn and is to be recorded."""
        self._asked_since.setdefault(migration.migration_id, trio.current_time())
        try:
            if ask_for_end(self._gate, migration, self._now()):
                return True
        except GatewayError as error:
            self._could_not_tell(migration, "source", error)
        self._tell_destination(migration)
        return False

    def _tell_destination(self, migration: Migration) -> None:
        """Once, where the source does not hear us, or does not heed."""
        latest = self._gate.migrations.heard(migration.migration_id)
        if latest is None or latest.state not in _CAN_END or latest.destination is None:
            return
        is_revoked = self._seen.is_revoked(latest.source or "", self._trust(), self._gate.clock.wall())
        if latest.standing is not None and latest.standing.post_copy and not is_revoked:
            return  # only the source knows whether it has switched; a destination that discards then costs the guest
        lasted = trio.current_time() - self._asked_since.get(latest.migration_id, trio.current_time())
        is_told = latest.cancel_requested and not self._cannot_hear(latest.source or "") and lasted < HEED_SECONDS
        if is_told or latest.migration_id in self._destinations_told:
            return
        try:
            tell_to_end(self._gate, latest.destination, latest, self._now())
            self._destinations_told.add(latest.migration_id)
        except GatewayError as error:
            self._could_not_tell(latest, "destination", error)

    def _insist(self) -> None:
        """Of all that were asked to end and go on: a relay may have become silent, or its queue been full, since."""
        for migration_id in list(self._asked_since):
            migration = self._gate.migrations.heard(migration_id)
            if migration is not None and migration.state in _CAN_END:
                self._cancel(migration)  # `ask_for_end` asks a source once

    def _could_not_tell(self, migration: Migration, role: str, error: GatewayError) -> None:
        what = f"the relay at the {role} could not be told to cancel; it is tried again"
        log.error(what, migration_id=migration.migration_id, error=error.detail)

    def _forget_all_but(self, unsettled: set[str]) -> None:
        for since in (self._unknown_since, self._asked_since):
            for migration_id in since.keys() - unsettled:
                del since[migration_id]
        self._destinations_told &= unsettled

    def _cannot_hear(self, host: str) -> bool:
        """A relay whose certificate was revoked gets no answer from us any more."""
        reachable = self._gate.dispatch.is_reachable(host, self._gate.relay_silence_seconds)
        return not reachable or self._seen.is_revoked(host, self._trust(), self._gate.clock.wall())

    def _tell_again(self) -> None:
        for migration in self._gate.migrations.unsettled(self._now()):
            if migration.cancel_requested:
                self._cancel(replace(migration, cancel_requested=False))

    def _now(self) -> int:
        return int(self._gate.clock.wall().timestamp())


def _event(migration: Migration, revoked: Revoked, obligation: str, effect: Effect) -> Event:
    details: dict[str, Any] = {
        "because": revoked.because[:2000],
        "obligation": obligation,
        "requested_by": migration.requested_by,
        "decision_record": migration.record_index,
        "state": migration.state.value,
        "break_glass": None if migration.break_glass is None else {"id": migration.break_glass},
    }
    if revoked.decision is not None:
        details |= {
            "decision": decision_document(revoked.decision),
            "policy_request": revoked.decision.request,
            "policy_entities": compact_entities(revoked.decision.entities),
        }
    return Event(
        "migration.revoked",
        effect.value,
        migration_id=migration.migration_id,
        vm=Vm(migration.vm_uuid, migration.vm_name),
        source=migration.source,
        destination=migration.destination,
        details=details,
    )
