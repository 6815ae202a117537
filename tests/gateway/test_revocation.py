"""What revocation obliges to: the strongest word counts, and nothing is cancelled once the guest is handed over."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.migrations import Migration, State
from gateway.revocation import Effect, effect_of, obligation_of, question_again, strength
from gateway.standing import Standing
from policy.cedar_policy import OBLIGATIONS
from policy.engine import decide
from policy.facts import Protection
from tests.policy.cedar_world import LAB1, LAB2, OLGA, PAVEL, SANDBOX, bundle, move

MIGRATION = Migration("m", "u", "web", "spiffe://x/host/a", "spiffe://x/host/b", "p", State.RUNNING, 0)


def forbid(name: str, obligation: str | None) -> str:
    said = f'@on_revocation("{obligation}")' if obligation else ""
    return f'@id("{name}") @reason("R.") {said} forbid (principal, action, resource);'


@given(st.lists(st.sampled_from(OBLIGATIONS), max_size=3), st.lists(st.sampled_from([*OBLIGATIONS, None]), max_size=3))
def test_the_strongest_of_what_permitted_it_and_what_forbids_it_counts(then: list[str], now: list[str | None]) -> None:
    decision = decide(bundle(*(forbid(f"f{n}", each) for n, each in enumerate(now))), move())
    said = [*then, *(each for each in now if each)]
    expected = next((each for each in reversed(OBLIGATIONS) if each in said), "cancel")
    assert obligation_of(then, decision) == expected


def test_without_a_word_of_the_policies_it_is_cancelled() -> None:
    assert obligation_of((), None) == "cancel"
    assert strength(None) < strength("record") < strength("finish") < strength("cancel")


@pytest.mark.parametrize(
    ("obligation", "state", "effect"),
    [
        ("cancel", State.ASSIGNED, Effect.CANCEL_REQUESTED),
        ("cancel", State.RUNNING, Effect.CANCEL_REQUESTED),
        ("cancel", State.HANDING_OVER, Effect.TOO_LATE),
        ("finish", State.RUNNING, Effect.LEFT_TO_FINISH),
        ("finish", State.HANDING_OVER, Effect.LEFT_TO_FINISH),
        ("record", State.RUNNING, Effect.RECORDED),
    ],
)
def test_what_can_still_be_done(obligation: str, state: State, effect: Effect) -> None:
    assert effect_of(obligation, dataclasses.replace(MIGRATION, state=state)) is effect


def test_the_question_is_that_of_then_with_the_facts_of_now() -> None:
    then = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
    standing = Standing(OLGA, "MigrateVm", ("memory",), True, then, (), observed=False, placed_by="report")
    moved = dataclasses.replace(SANDBOX, zone="dmz", host="lab2")
    asked = question_again(standing, PAVEL, moved, LAB1, LAB2, protection=Protection())
    assert (asked.person, asked.context.time, asked.context.reason_given) == (PAVEL, then, True)
    assert (asked.context.placement.source, asked.context.placement.age_seconds) == ("report", 0)
    assert asked.vm is not None
    assert (asked.vm.zone, asked.vm.host) == ("dmz", "lab1")


def test_a_restart_gives_a_migration_that_waits_to_be_heard_of_a_moment_and_no_more() -> None:
    waiting = dataclasses.replace(MIGRATION, state=State.ASSIGNED, begin_until=100, end_until=10_000)
    assert waiting.at(500).state is State.FAILED
    restored = waiting.restored(500)
    assert restored.at(500).state is State.ASSIGNED
    assert restored.at(561).state is State.FAILED
    told: dict[str, Any] = {"outcome": "cancel_requested", "details": {"obligation": "cancel", "because": "why"}}
    revoked = restored.with_revocation(told)
    assert (revoked.cancel_requested, revoked.obligation, revoked.revoked_because) == (True, "cancel", "why")
