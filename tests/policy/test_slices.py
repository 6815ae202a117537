"""People are parsed once; what is kept of them never outlives a fact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policy import slices
from policy.authoring.compare import rules_of
from policy.decision import evaluate
from policy.request import Json, entities_of, request_of
from tests.policy.cedar_world import OLGA, files, move

GROUP = "sealane-local#operators"
MEMBERS = f'@id("p") @reason("R.") permit (principal in Sealane::Group::"{GROUP}", action, resource);'


def allowed(rules: Any, question: Any, entities: list[Json] | None = None) -> bool:
    return evaluate(rules, "", request_of(question), entities or entities_of(question)).allowed


def test_a_membership_that_ended_or_began_counts_at_once() -> None:
    rules = rules_of(files(MEMBERS))
    out = move(replace(OLGA, groups=frozenset()))
    assert [allowed(rules, each) for each in (move(), out, move(), out)] == [True, False, True, False]
    unknown = move(replace(OLGA, groups=None))
    assert [allowed(rules, each) for each in (unknown, move(), unknown)] == [False, True, False]


def test_other_facts_of_the_same_person_are_asked_anew() -> None:
    rules = rules_of(files('@id("p") @reason("R.") permit (principal, action, resource) '
                           'when { principal.authenticated_by == "oidc" };'))  # fmt: skip
    oidc = move(replace(OLGA, authenticated_by="oidc"))
    assert [allowed(rules, each) for each in (move(), oidc, move())] == [False, True, False]


def test_a_person_who_stands_in_the_slice_twice_is_refused_unless_it_is_the_same() -> None:
    rules = rules_of(files(MEMBERS))
    entities = entities_of(move())
    other = {**entities[0], "parents": []}
    assert not allowed(rules, move(), [entities[0], other, *entities[1:]])
    assert not allowed(rules, move(), [other, entities[0], *entities[1:]])


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "MAX_KEPT", 3_000)
    rules = rules_of(files(MEMBERS))
    for number in range(50):
        assert allowed(rules, move(replace(OLGA, name=f"Olga {number}")))
        kept = rules.slices._people
        assert sum(map(len, kept)) == rules.slices._kept <= 3_000
