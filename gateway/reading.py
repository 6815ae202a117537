"""Reading the log: records, proofs and what can be derived from them.

Reading records is an action of its own (ReadAudit), and itself recorded, refused or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import msgspec

from audit.errors import EntryPruned
from audit.query import Node, fields, terms
from audit.query.tree import Between, Is, all_of, any_of
from audit.record import PermitEntry, decode_entry, parse_time
from gateway.asking import decide
from gateway.committer import Committer
from gateway.errors import NotKnown, RequestRefused
from gateway.gate import Gate
from gateway.migrations import Migration, State, from_decision, from_elsewhere, receipt_on_file
from gateway.requiring import Wanted, require
from gateway.searching import Search
from gateway.turns import Turns
from policy.engine import Decision
from policy.facts import Context, Person, Question

MAX_PAGE: Final = 200
MAX_RECORDS_OF_MIGRATION: Final = 100
PAGE_OF_RESTORE: Final = 1000
MAX_ASKED: Final = 200_000  # records that one question may take together
RESTORED_SECONDS: Final = 2 * 86_400  # of migrations: what began before has ended, or its permit has
ACTIONS_OF_ONESELF: Final = ("CheckDecision", "ReadOwnMigrations", "CancelMigration", "ReadAudit")
# An evacuation's permits are decided hours ahead: such a migration is known once somebody speaks of it.
DECISIONS: Final = frozenset({"migration.decision", "evacuation.decision"})
RESTORED_KINDS: Final = (
    "migration.decision",
    "migration.receipt",
    "migration.cancel_requested",
    "migration.revoked",
    "migration.withdrawn",
    "migration.other_site",
    "migration.elsewhere",
)


@dataclass(frozen=True, slots=True)
class Page:
    """Records as JSON with their indices; `next` continues after them, None at the end."""

    records: list[dict[str, Any]]
    next: int | None


class Reading:
    """What auditors and the gateway itself read of the log; proofs come between commits, records from its files."""

    def __init__(self, gate: Gate, committer: Committer, search: Search) -> None:
        self._gate = gate
        self._committer = committer
        self.search = search
        # Questions over all records of a span: one at a time, because each may hold MAX_ASKED of them.
        self.spans = Turns(1, 1, search.turns.wait_seconds)
        # Of other sites' answers; never waited for within a turn of `spans`.
        self.abroad = Turns(1, 1, search.turns.wait_seconds)

    async def require_read_audit(
        self,
        person: Person,
        now: datetime,
        address: str,
        what: Mapping[str, Any],
        *,
        recorded: bool,
        called: str = "reading the audit log",
    ) -> None:
        """Errors: those of `require`."""
        wanted = Wanted("ReadAudit", called, "audit.read", {"read": dict(what)})
        await require(self._gate, wanted, person, now, address, recorded=recorded)

    def permissions(self, person: Person, now: datetime) -> dict[str, Decision]:
        """What the policy says of the person's own rights where no VM is concerned; it shows no record."""
        context = Context(time=now)
        return {
            action: decide(self._gate.engine, Question(action, person, None, None, None, context))
            for action in ACTIONS_OF_ONESELF
        }

    def may_read_own(self, person: Person, now: datetime) -> bool:
        context = Context(time=now)
        return decide(self._gate.engine, Question("ReadOwnMigrations", person, None, None, None, context)).allowed

    async def page(self, where: Node, after: int | None, limit: int) -> Page:
        """Newest first, up to `limit` (at most MAX_PAGE). Errors: RequestRefused, SearchUnavailable."""
        found = await self.search.page(where, after=after, limit=limit + 1)
        shown = found[:limit]
        records = [{"index": index, "record": record} for index, record in shown]
        return Page(records, shown[-1][0] if len(found) > limit else None)

    async def entry(self, index: int) -> dict[str, Any]:
        """One entry, whole, as it is in the log. Errors: NotKnown, LogUnavailable."""
        try:
            entry = await self._committer.read(lambda log: log.entry(index))
        except EntryPruned as error:
            raise NotKnown(str(error), next_step="mount the archive, or ask whoever keeps it") from error
        except IndexError as error:
            raise NotKnown("the log has no entry of that index") from error
        envelope = msgspec.json.decode(entry)
        if isinstance(decode_entry(entry), PermitEntry):
            return {"index": index, "permit_entry": envelope, "entry": entry.decode()}
        return {"index": index, **envelope, "entry": entry.decode()}

    async def inclusion(self, index: int, size: int) -> list[bytes]:
        """Errors: NotKnown, LogUnavailable."""
        try:
            return await self._committer.read(lambda log: log.inclusion_path(index, size))
        except (IndexError, ValueError) as error:
            raise NotKnown("the log has no such entry or size") from error

    async def consistency(self, old_size: int, new_size: int) -> list[bytes]:
        """Errors: NotKnown, LogUnavailable."""
        try:
            return await self._committer.read(lambda log: log.consistency_path(old_size, new_size))
        except (IndexError, ValueError) as error:
            raise NotKnown("the log has no such sizes") from error

    async def checkpoint(self) -> str:
        """The newest signed checkpoint. Errors: LogUnavailable."""
        return await self._committer.read(lambda log: log.checkpoint_text)

    async def migration(self, migration_id: str, now: int) -> Migration | None:
        """From memory, else derived from the log and remembered. Errors: LogUnavailable."""
        if (known := self._gate.migrations.get(migration_id, now)) is not None:
            return known

        where = terms({"migration": migration_id})
        found = await self.search.page(where, limit=MAX_RECORDS_OF_MIGRATION, newest_first=False)
        derived = derive(found).get(migration_id)
        if derived is not None:
            self._gate.migrations.put(derived)
            return derived.at(now)
        return None

    async def restore(self, now: int) -> None:
        """At start: placement and the newest migrations, from the log, in the order in which things happened.

        Older migrations have ended; who asks for one gets it from the log.
        """
        arrivals = await self.search.arrivals()
        for vm, arrival in arrivals.items():
            self._gate.placement.restore(vm, arrival.host, arrival.time_us / 10**6, arrival.source)
        for migration in derive(await self._lately()).values():
            self._gate.migrations.put(migration.restored(now).at(now))
            came = arrivals.get(migration.vm_uuid or "")
            has_left = migration.site_role == "source" and (came is None or came.time_us < migration.decided * 10**6)
            if has_left and migration.vm_uuid is not None and (host := migration.certified_host()) is not None:
                self._gate.placement.restore(migration.vm_uuid, host, float(migration.decided), "receipt")

    async def newest_time(self) -> int:
        """Unix seconds of the latest of all records; 0 for an empty log. Errors: SearchUnavailable."""
        span = await self.search.span()
        return 0 if span is None else span[1] // 10**6

    async def records_since(
        self, kinds: Sequence[str], since: str, who: str | None = None
    ) -> list[tuple[int, dict[str, Any]]]:
        """All records of these kinds from a time on, oldest first. Errors: SearchUnavailable."""
        where = _of_kinds(kinds, since)
        where = where if who is None else all_of(where, Is(fields.WHO_ID, who))
        return (await self._newest(where, None))[::-1]

    async def some_since(
        self, kinds: Sequence[str], since: str, brief: Callable[[Mapping[str, Any]], dict[str, Any]]
    ) -> list[tuple[int, dict[str, Any]]]:
        """The same for whoever asks, in their turn of `spans`: MAX_ASKED at most, each cut to what `brief` keeps of it.

        Errors: SearchUnavailable, RequestRefused: there are more.
        """
        found = await self._newest(_of_kinds(kinds, since), MAX_ASKED + 1, brief)
        if len(found) > MAX_ASKED:
            raise RequestRefused(f"more than {MAX_ASKED} records since then", next_step="ask for a shorter time")
        return found[::-1]

    async def _lately(self) -> list[tuple[int, dict[str, Any]]]:
        """The records of migrations that may not have ended, oldest first: as many as migrations are remembered."""
        span = await self.search.span()
        kinds = any_of(*(Is(fields.KIND, kind) for kind in RESTORED_KINDS))
        since = 0 if span is None else span[1] - RESTORED_SECONDS * 10**6
        where = all_of(kinds, Between(fields.TIME, since, None))
        return (await self._newest(where, self._gate.migrations.limit * len(RESTORED_KINDS)))[::-1]

    async def _newest(
        self, where: Node, at_least: int | None, brief: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    ) -> list[tuple[int, dict[str, Any]]]:
        """All that match, page by page, newest first; with `at_least`, no more pages than that takes."""
        found: list[tuple[int, dict[str, Any]]] = []
        while at_least is None or len(found) < at_least:
            page = await self.search.page(where, after=found[-1][0] if found else None, limit=PAGE_OF_RESTORE)
            found += [(index, brief(record)) for index, record in page]
            if len(page) < PAGE_OF_RESTORE:
                break
        return found


def _of_kinds(kinds: Sequence[str], since: str) -> Node:
    return all_of(any_of(*(Is(fields.KIND, kind) for kind in kinds)), terms({"since": since}))


def derive(records: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, Migration]:
    """The migrations that these records (as JSON, in order) speak of, by id; the same as if it happened now."""
    found: dict[str, Migration] = {}
    for index, record in records:
        migration_id = record.get("migration_id") or ""
        kind = record["kind"]
        if kind in DECISIONS:
            # Of one id a decision that permitted counts: another site may ask again, and is refused under the same id.
            if (known := found.get(migration_id)) is None or known.jti is None:
                found[migration_id] = from_decision(index, record)
        elif kind == "migration.elsewhere":
            found.setdefault(migration_id, from_elsewhere(index, record))
        elif (migration := found.get(migration_id)) is None:
            continue
        elif kind == "migration.receipt":
            found[migration_id] = migration.with_receipt(receipt_on_file(index, record), _seconds(record))
        elif kind == "migration.cancel_requested" and record.get("outcome") == "allowed":
            found[migration_id] = migration.with_cancel_request()
        elif kind == "migration.other_site" and record.get("outcome") != "allowed":
            because = str(record["details"].get("because", ""))[:500]
            found[migration_id] = replace(migration, state=State.FAILED, message=because)
        elif kind == "migration.revoked":
            found[migration_id] = migration.with_revocation(record)
        elif kind == "migration.withdrawn":
            found[migration_id] = migration.withdrawn(record)
    return found


def _seconds(record: Mapping[str, Any]) -> int:
    return int(parse_time(record["time"]).timestamp())
