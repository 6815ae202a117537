"""The steps of every rollover: may this person → does it follow → are the hosts ready → on record → done."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import structlog

from certs.errors import CertificateError
from gateway.asking import decide
from gateway.deciding import decision_document
from gateway.errors import GatewayError, NotAllowed, NotKnown, RequestRefused
from gateway.gate import Gate
from gateway.recording import Event, actor_of, identity_of
from gateway.rollover.kinds import Kind, NotNow, State, StepFailed
from gateway.rollover.places import Stage
from gateway.rollover.progress import Progress
from gateway.turns import Turns
from policy.facts import Context, Person, Question

ACTION: Final = "RollKey"
log = structlog.get_logger("gateway.rollover")


class Step(StrEnum):
    BEGIN = "begin"
    SWITCH = "switch"
    RETIRE = "retire"


FOLLOWS: Final = {Step.BEGIN: Stage.PREPARED, Step.SWITCH: Stage.BEGUN, Step.RETIRE: Stage.SWITCHED}
KIND_OF_RECORD: Final = {
    Step.BEGIN: "key.rollover_begun",
    Step.SWITCH: "key.rollover_switched",
    Step.RETIRE: "key.rollover_retired",
}


class Rollovers:
    """`kinds`: by the name that people use. `pinned`: the public keys that whoever comes now is to believe."""

    def __init__(self, gate: Gate, kinds: Mapping[str, Kind], pinned: Mapping[str, list[str]]) -> None:
        self.pinned = pinned
        self._gate = gate
        self._kinds = kinds
        self._turns = Turns(1, 1)

    async def status(self, person: Person, address: str) -> list[dict[str, Any]]:
        """Errors: NotAllowed (recorded)."""
        await self._permitted("key.rollover_status", person, {"client_address": address}, None)
        return [self._state(what, kind).document() for what, kind in self._kinds.items()]

    async def take(
        self, person: Person, what: str, step: Step, reason: str, force: bool, address: str
    ) -> dict[str, Any]:
        """One step. Errors: NotAllowed, NotNow (both recorded), NotKnown, StepFailed (recorded), Overloaded."""
        if (kind := self._kinds.get(what)) is None:
            known = ", ".join(self._kinds) or "nothing"
            raise NotKnown(f"{what} cannot be rolled over here", next_step=f"this gateway rolls over: {known}")
        async with self._turns.of(person.id):
            asked = {"client_address": address, "what": what, "forced": force}
            event = await self._permitted(KIND_OF_RECORD[step], person, asked, reason)
            try:
                progress = self._ready(kind, step)
                if progress is not None and not progress.is_complete and not force:
                    raise NotNow(str(progress), next_step=_unless(kind, what, step))
            except (GatewayError, CertificateError, OSError) as error:
                await self._record(event, "failed", {"because": str(error)[:500]})
                if isinstance(error, GatewayError):
                    raise
                raise RequestRefused(str(error), next_step="correct what is prepared") from error
            facts = {"facts": kind.facts(), **({} if progress is None else {"progress": progress.document()})}
            await self._record(event, "allowed", facts)
            left = await self._do(kind, step, event)
            log.warning("rollover", what=what, step=step.value, forced=force)
            state = self._state(what, kind)
            return {**state.document(), "left": left}

    def _ready(self, kind: Kind, step: Step) -> Progress | None:
        """Errors: NotNow, CertificateError."""
        if kind.stage is not FOLLOWS[step] and not (step is Step.BEGIN and kind.stage is Stage.IDLE):
            raise NotNow(f"{step.value} does not follow: this rollover is {kind.stage.value}")
        match step:
            case Step.BEGIN:
                kind.check_begin()
                return None
            case Step.SWITCH:
                return kind.ready_to_switch()
            case Step.RETIRE:
                return kind.ready_to_retire()

    async def _do(self, kind: Kind, step: Step, event: Event) -> str:
        try:
            match step:
                case Step.BEGIN:
                    await kind.begin()
                case Step.SWITCH:
                    await kind.switch()
                case Step.RETIRE:
                    return await kind.retire()
        except (CertificateError, OSError, GatewayError) as error:
            log.error("a step of a rollover failed", step=step.value, error=str(error))
            await self._record(event, "failed", {"because": str(error)[:500]})
            raise StepFailed(str(error)) from error
        return ""

    def _state(self, what: str, kind: Kind) -> State:
        stage, progress = kind.stage, None
        if stage is Stage.BEGUN:
            progress = kind.ready_to_switch()
        elif stage is Stage.SWITCHED:
            progress = kind.ready_to_retire()
        return State(what, stage, progress, kind.facts(), _next_step(what, stage, progress))

    async def _permitted(self, kind: str, person: Person, details: dict[str, Any], reason: str | None) -> Event:
        context = Context(time=self._gate.clock.wall(), reason_given=bool(reason and reason.strip()))
        decision = decide(self._gate.engine, Question(ACTION, person, None, None, None, context))
        details = {**details, "decision": decision_document(decision), **identity_of(person)}
        event = Event(kind, actor=actor_of(person), reason=reason, details=details)
        if not decision.allowed:
            recorded = await self._record(event, "denied", {})
            raise NotAllowed(f"{ACTION} is denied", decision.denied_because, recorded)
        return event

    async def _record(self, event: Event, outcome: str, more: dict[str, Any]) -> int:
        details = {**dict(event.details), **more}
        recorded = await self._gate.recorder.append(
            Event(event.kind, outcome, actor=event.actor, reason=event.reason, details=details)
        )
        return recorded.index


def _unless(kind: Kind, what: str, step: Step) -> str:
    return f"wait for them, or sealane certs rollover {step.value} {what} --reason TEXT --force: then {kind.breaks}"


def _next_step(what: str, stage: Stage, progress: Progress | None) -> str:
    command = "sealane certs rollover"
    match stage:
        case Stage.IDLE:
            return "nothing is under way"
        case Stage.PREPARED:
            return f"{command} begin {what} --reason TEXT"
        case Stage.BEGUN:
            following = f"{command} switch {what} --reason TEXT"
        case Stage.SWITCHED:
            following = f"{command} retire {what} --reason TEXT"
    return (
        following if progress is None or progress.is_complete else f"wait until all hosts are ready, then {following}"
    )
