"""Revocation in flight: what a running migration stood on may go away, and its policy says what becomes of it then.

Pure: whether it would still be allowed, and what that obliges to. `gateway.watch` asks, records and acts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from gateway.migrations import Migration, State
from gateway.standing import Standing
from policy.cedar_policy import OBLIGATIONS
from policy.engine import Decision
from policy.facts import Context, HostFacts, Person, Protection, Provenance, Question, VmFacts

DEFAULT_OBLIGATION: Final = "cancel"  # where no policy says anything: the guest is safe at its source


class Effect(StrEnum):
    """What was done about it, as the record says."""

    CANCEL_REQUESTED = "cancel_requested"
    TOO_LATE = "too_late"
    LEFT_TO_FINISH = "left_to_finish"
    RECORDED = "recorded"


@dataclass(frozen=True, slots=True)
class Revoked:
    """Why a migration would not be allowed any more. `decision`: the policy's, if it was the policy that changed."""

    because: str
    decision: Decision | None = None


def question_again(
    standing: Standing,
    person: Person,
    vm: VmFacts | None,
    source: HostFacts | None,
    destination: HostFacts | None,
    *,
    protection: Protection,
) -> Question:
    """The question of then, with the facts of now."""
    context = Context(
        time=standing.time,
        reason_given=standing.reason_given,
        protection=protection,
        ports=frozenset(standing.ports),
        placement=Provenance(standing.placed_by, 0),  # it was located then, and is there until it is handed over
        post_copy=standing.post_copy,
    )
    if vm is not None and source is not None:
        # The guest is at its source until it has been handed over, whatever an inventory may place by now.
        told = replace(vm.provenance, devices=Provenance("report", 0))
        vm = replace(vm, host=source.name, devices=standing.devices, provenance=told)
    return Question(standing.action, person, vm, source, destination, context)


def obligation_of(permitted_by: Iterable[str], decision: Decision | None) -> str:
    """The strongest of what the policies say that permitted it then, and of those that forbid it now."""
    said = set(permitted_by)
    if decision is not None:
        said |= {reason.on_revocation for reason in decision.reasons if reason.on_revocation}
    return max(said, key=strength, default=DEFAULT_OBLIGATION)


def strength(obligation: str | None) -> int:
    """0 for none; `cancel` is the strongest."""
    return OBLIGATIONS.index(obligation) + 1 if obligation in OBLIGATIONS else 0


def effect_of(obligation: str, migration: Migration) -> Effect:
    """What can still be done. Once the guest is being handed over nobody asks for an end any more.

    The relay at the source has the last word: it heeds a request only while the guest is whole and running there.
    """
    match obligation:
        case "cancel" if migration.state in {State.ASSIGNED, State.RUNNING}:
            return Effect.CANCEL_REQUESTED
        case "cancel":
            return Effect.TOO_LATE
        case "finish":
            return Effect.LEFT_TO_FINISH
        case _:
            return Effect.RECORDED
