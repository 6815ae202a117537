"""The shell around `grant`: each step is decided by policy, recorded, and only then counts.

One step at a time. If a step's record may or may not have reached the log (it failed, or who asked hung up), the state
is derived from the log again before the next step: memory never knows better than the log.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

import structlog

from audit.record import Vm, format_time
from gateway.asking import Asked, Facts, collect_facts, decide, make_known
from gateway.break_glass.grant import (
    APPROVED,
    ENDED,
    KINDS,
    REQUESTED,
    USED,
    Grant,
    State,
    apply,
    derive,
    problem_of,
    steady_since,
)
from gateway.break_glass.wish import Wish, WishRules, check_reason, check_wish
from gateway.deciding import commit, decision_document, decision_event
from gateway.errors import Conflict, GatewayError, NotAllowed, NotKnown, Overloaded
from gateway.gate import Gate
from gateway.migrations import State as MigrationState
from gateway.recording import Event, History, Recorded, actor_of, document_of, identity_of
from gateway.sites.own_only import require_own
from gateway.turns import Turns
from policy.engine import Decision
from policy.facts import APPROVAL, CLIENT_CERTIFICATE, NOT_AUTHENTICATED, Context, Person, Question
from policy.identity.sameness import are_same

MEMORY: Final = timedelta(days=3)  # what is older has ended: a grant lives for a day at most, as does a request

MAX_SHOWN: Final = 200

log = structlog.get_logger("gateway.alarm")


@dataclass(frozen=True, slots=True)
class Step:
    """Who takes a step, from where, and why."""

    person: Person
    address: str
    reason: str | None = None


class BreakGlass:
    """All breakings of glass of this gateway."""

    def __init__(self, gate: Gate, rules: WishRules, history: History) -> None:
        self._gate = gate
        self._rules = rules
        self._history = history
        self._time = gate.time
        self._turns = Turns(1, 1)
        self._grants: dict[str, Grant] = {}
        self._is_stale = True

    async def restore(self) -> None:
        """At start: what the log says. Errors: LogUnavailable."""
        async with self._turn():
            pass

    async def request(self, step: Step, wish: Wish) -> Grant:
        """Ask for it. Errors: RequestRefused, NotAllowed (recorded), Overloaded (recorded), LogUnavailable."""
        check_wish(wish, self._rules)
        require_own(self._gate, wish.destination, "glass is broken for")
        async with self._turn(step.person.id) as now:
            asked = Asked(wish.vm, wish.destination, step.reason, wish.ports, step.address)
            await make_known(self._gate, asked)
            facts = collect_facts(self._gate, step.person, asked, self._gate.clock.wall(), "BreakGlass")
            decision = _by_a_person(decide(self._gate.engine, facts.question), step.person, "asks")
            marks = await self._gate.people.marks_of(step.person, step.address)
            obstacle = self._no_room(marks, now) if decision.allowed else None
            grant_id = self._new_id()
            said = {
                "id": grant_id,
                "at": now,
                "ticket": wish.ticket,
                "minutes": wish.minutes,
                "answer_until": now + self._rules.answer_minutes * 60,
                "marks": sorted(marks),
                "ports": sorted(facts.question.context.ports),
            }
            event = _with_glass(decision_event(REQUESTED, facts, decision, obstacle, None, None), said)
            recorded = await self._commit(event)
            _alarm("glass is to be broken", event, grant_id)
            if not decision.allowed:
                raise NotAllowed("breaking glass is denied", decision.denied_because, recorded.index)
            if obstacle is not None:
                raise obstacle
            grant = self._grants[grant_id] = derive([(recorded.index, document_of(event))])[grant_id]
            return grant

    async def approve(self, step: Step, grant_id: str) -> Grant:
        """The second person says yes. Errors: NotKnown, NotAllowed, Conflict (all recorded but the first)."""
        marks = await self._gate.people.marks_of(step.person, step.address)
        async with self._turn(step.person.id) as now:
            grant = self._known(grant_id, now)
            facts = self._facts_of_approval(step, grant)
            decision = _by_two_persons(decide(self._gate.engine, facts.question), grant, step.person, marks)
            obstacle = self._not_approvable(grant, facts) if decision.allowed else None
            until = now + grant.minutes * 60
            event = decision_event(APPROVED, facts, decision, obstacle, None, None)
            event = _with_glass(event, {"id": grant.id, "at": now, "until": until, "ticket": grant.ticket})
            recorded = await self._commit(event)
            _alarm("glass is broken", event, grant.id)
            if not decision.allowed:
                raise NotAllowed("approving is denied", decision.denied_because, recorded.index)
            if obstacle is not None:
                raise obstacle
            self._grants[grant.id] = apply(grant, document_of(event))
            return self._grants[grant.id]

    async def end(self, step: Step, grant_id: str) -> Grant:
        """End, refuse or take back. Errors: RequestRefused, NotKnown, NotAllowed (recorded), Conflict."""
        check_reason(step.reason)
        marks = await self._gate.people.marks_of(step.person, step.address)
        async with self._turn(step.person.id) as now:
            grant = self._known(grant_id, now)
            is_own = are_same(grant.marks, marks)
            context = Context(
                self._gate.clock.wall(),
                reason_given=bool(step.reason),
                own_request=step.person.id == grant.requester.id,
            )
            question = Question("EndBreakGlass", step.person, None, None, None, context)
            decision = decide(self._gate.engine, question)
            if decision.allowed and grant.state is State.ENDED:
                raise Conflict("it has ended already", code="already_ended", next_step="nothing to do")
            because = "ended" if grant.state is State.APPROVED else "withdrawn" if is_own else "refused"
            event = self._ending(grant, because, step, decision)
            recorded = await self._commit(event)
            _alarm("broken glass is ended", event, grant.id)
            if not decision.allowed:
                raise NotAllowed("ending it is denied", decision.denied_because, recorded.index)
            self._take_end(grant, event)
            return self._grants[grant.id]

    async def judge(self, facts: Facts, decision: Decision, *, recorded: bool = True) -> tuple[Facts, Decision]:
        """Whether the grant that the requester names covers what they ask for; a use is recorded before it counts."""
        async with self._turn(facts.question.person.id) as now:
            grant = self._grants.get(facts.asked.break_glass or "")
            problem = self._misfit(grant, facts, now)
            if problem is not None:
                because = f"This is not covered by the breaking of glass that was named: {problem}."
                decision = replace(decision, allowed=False, denied_because=because, by_policy=False)
            if recorded:
                event = decision_event(USED, facts, decision, None, None, None)
                event = _with_glass(event, {"id": (facts.asked.break_glass or "")[:64], "problem": problem})
                await self._commit(event)
                _alarm("broken glass is used", event, (facts.asked.break_glass or "")[:64])
            if grant is None or grant.until is None or problem is not None:
                return facts, decision
            return replace(facts, grant_seconds=grant.until - now), decision

    async def seen_by(self, person: Person) -> list[Grant]:
        """The grants, newest first; whoever may not see all sees their own. Errors: LogUnavailable."""
        async with self._turn(person.id) as now:
            context = Context(self._gate.clock.wall())
            may_see_all = decide(
                self._gate.engine, Question("ReadBreakGlass", person, None, None, None, context)
            ).allowed
            shown = [grant.at(now) for grant in self._grants.values() if may_see_all or grant.requester.id == person.id]
            return sorted(shown, key=lambda grant: grant.record_index, reverse=True)[:MAX_SHOWN]

    async def record_endings(self) -> None:
        """Put into the log what ended by itself, or was used up. Errors: LogUnavailable; the state does not need it."""
        async with self._turn() as now:
            for grant in list(self._grants.values()):
                later = grant.at(now)
                used = grant.state is State.APPROVED and self._is_used(grant)
                if grant.state is not State.ENDED and (used or later.state is State.ENDED):
                    because = "used" if used else later.ended_because or "expired"
                    event = self._ending(grant, because, None, None)
                    await self._commit(event)
                    _alarm("broken glass has ended", event, grant.id)
                    self._take_end(grant, event)

    def problem_of(self, grant_id: str) -> str | None:
        """Why a migration under this grant may not go on; None if it may. For what began under it."""
        grant = self._grants.get(grant_id)
        return "the log does not know it" if grant is None else problem_of(grant, self._time.now())

    def counts(self) -> dict[str, int]:
        """How many wait and how many are in force, for anyone to see."""
        states = [grant.at(self._time.now()).state for grant in self._grants.values()]
        return {"pending": states.count(State.PENDING), "approved": states.count(State.APPROVED)}

    def _take_end(self, grant: Grant, event: Event) -> None:
        self._grants[grant.id] = apply(grant, document_of(event))
        self._gate.bell.ring()  # a migration under it may have to end

    @asynccontextmanager
    async def _turn(self, of: str = "") -> AsyncIterator[int]:
        """One step at a time, on what the log says; yields now. `of`: whose step it is. Errors: Overloaded."""
        async with self._turns.of(of):
            if self._is_stale:
                # Of the wall clock, as the records' times are: the steady one may be days ahead of it.
                wall = self._gate.clock.wall()
                records = await self._history.records_since(KINDS, format_time(wall - MEMORY))
                for _, record in records:
                    self._time.not_before(steady_since(record, wall))
                self._grants = derive(records)
                self._is_stale = False
            self._forget_old(self._time.now())
            yield self._time.now()

    def _forget_old(self, now: int) -> None:
        """What is that old has ended long ago: the log has it."""
        oldest = now - MEMORY.total_seconds()
        for grant_id in [each.id for each in self._grants.values() if each.requested_at < oldest]:
            del self._grants[grant_id]

    async def _commit(self, event: Event) -> Recorded:
        # Until this is through, nobody knows whether the record is in the log.
        self._is_stale = True
        recorded = await commit(self._gate, event, None)
        self._is_stale = False
        return recorded

    def _known(self, grant_id: str, now: int) -> Grant:
        if (grant := self._grants.get(grant_id)) is None:
            raise NotKnown("no such breaking of glass", next_step="look at `sealane break-glass list`")
        return grant.at(now)

    def _new_id(self) -> str:
        """Short enough to be read over the telephone; it opens nothing by itself."""
        while (grant_id := self._gate.new_id()[:8]) in self._grants:
            pass
        return grant_id

    def _no_room(self, marks: frozenset[str], now: int) -> GatewayError | None:
        waiting = [grant for grant in self._grants.values() if grant.at(now).state is State.PENDING]
        of_requester = [grant for grant in waiting if are_same(grant.marks, marks)]
        if len(waiting) < self._rules.max_pending and len(of_requester) < self._rules.max_pending_per_person:
            return None
        return Overloaded(
            "too many requests to break glass wait for an answer",
            code="too_many_pending",
            next_step="have one approved or ended first: `sealane break-glass list`",
        )

    def _facts_of_approval(self, step: Step, grant: Grant) -> Facts:
        """The same VM and hosts as they are known now, with the approver as the principal."""
        asked = Asked(grant.vm_uuid, grant.destination, step.reason, grant.ports, step.address)
        facts = collect_facts(self._gate, step.person, asked, self._gate.clock.wall(), APPROVAL)
        return replace(facts, question=replace(facts.question, requester=grant.requester))

    def _not_approvable(self, grant: Grant, facts: Facts) -> GatewayError | None:
        if grant.state is not State.PENDING:
            return Conflict(
                f"it does not wait for an approval: it is {grant.state.value}",
                code="not_pending",
                next_step="ask again with `sealane break-glass request`",
            )
        if facts.source is None or facts.source.spiffe_id != grant.source:
            return Conflict(
                f"{grant.vm_name} is not where it was when this was asked for",
                code="vm_has_moved",
                next_step="ask again with `sealane break-glass request`",
            )
        return None

    def _misfit(self, grant: Grant | None, facts: Facts, now: int) -> str | None:
        """Why the grant does not cover the question. Of others' grants nobody learns that they exist."""
        if grant is None or grant.requester.id != facts.question.person.id:
            return "you have none of that id"
        if (problem := problem_of(grant, now)) is not None:
            return problem
        if facts.vm is None or facts.vm.uuid != grant.vm_uuid:
            return f"it is for VM {grant.vm_name}"
        if facts.destination is None or facts.destination.spiffe_id != grant.destination:
            return f"it is for a move to {grant.destination.rpartition('/')[2]}"
        if self._is_used(grant):
            return "the move that it was for is done"
        if facts.source is None or facts.source.spiffe_id != grant.source:
            return f"the VM is not on {grant.source.rpartition('/')[2]} any more"
        if not facts.question.context.ports <= set(grant.ports):
            return "it does not open these ports"
        return None

    def _is_used(self, grant: Grant) -> bool:
        now = int(self._gate.clock.wall().timestamp())
        return any(m.state is MigrationState.COMPLETED for m in self._gate.migrations.under(grant.id, now))

    def _ending(self, grant: Grant, because: str, step: Step | None, decision: Decision | None) -> Event:
        details: dict[str, Any] = {"break_glass": {"id": grant.id, "because": because, "ticket": grant.ticket}}
        if step is not None and decision is not None:
            details |= {
                "client_address": step.address,
                "action": "EndBreakGlass",
                "asked": {"break_glass": grant.id},
                "decision": decision_document(decision),
                **identity_of(step.person),
            }
        return Event(
            ENDED,
            "completed" if decision is None or decision.allowed else "denied",
            actor=actor_of(step.person) if step is not None else None,
            vm=Vm(grant.vm_uuid, grant.vm_name),
            source=grant.source,
            destination=grant.destination,
            reason=step.reason if step is not None else None,
            details=details,
        )


def _by_two_persons(decision: Decision, grant: Grant, approver: Person, marks: frozenset[str]) -> Decision:
    """Whatever a bundle says: the requester is nobody's second person, under any name by which we know them."""
    if approver.id != grant.requester.id and not are_same(grant.marks, marks):
        return _by_a_person(decision, approver, "approves")
    because = "A second person approves, never the requester, also not under another account: find somebody else."
    return replace(decision, allowed=False, denied_because=because, by_policy=False)


def _by_a_person(decision: Decision, person: Person, does: str) -> Decision:
    """Whatever a bundle says: no program is one of the two. Who keeps it would be both, or have it act for somebody."""
    is_program = person.is_program or person.authenticated_by in {CLIENT_CERTIFICATE, NOT_AUTHENTICATED}
    if person.actor is None and not is_program:
        return decision
    because = f"A person {does}, not a program on their behalf: sign in as yourself."
    return replace(decision, allowed=False, denied_because=because, by_policy=False)


def _with_glass(event: Event, said: Mapping[str, Any]) -> Event:
    return replace(event, details={**event.details, "break_glass": dict(said)})


def _alarm(what: str, event: Event, grant_id: str) -> None:
    """Loud in the operational log, too: whoever is on call must not have to look for it."""
    who = event.actor.id if event.actor is not None else "nobody: by itself"
    vm = event.vm.name if event.vm is not None else None
    log.critical(what, alarm=True, kind=event.kind, outcome=event.outcome, break_glass=grant_id, who=who, vm=vm)
