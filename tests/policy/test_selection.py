"""Sets of policies for an action and a membership: they save time, and never change an answer."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from bench.policy_decisions import made_bundle, made_questions
from policy import selection
from policy.authoring.compare import rules_of
from policy.decision import Decision, evaluate
from policy.facts import ACTIONS, Person
from policy.request import entities_of, request_of
from policy.rules import Rules
from tests.policy.cedar_world import OUR_SCHEMA, files, move

ISSUER = "https://idp.test"
GROUPS = [f"{ISSUER}#{name}" for name in "abcd"]
PRINCIPALS = [
    "principal",
    *(f'principal in Sealane::Group::"{group}"' for group in GROUPS),
    f'principal is Sealane::Person in Sealane::Group::"{GROUPS[0]}"',
    "principal is Sealane::Person",
    f'principal == Sealane::Person::"{ISSUER}#one"',
]
SCOPES = [
    "action",
    'action in Sealane::Action::"AnyMove"',
    'action == Sealane::Action::"MigrateVm"',
    'action in [Sealane::Action::"Evacuate", Sealane::Action::"ReadAudit"]',
]
BODIES = ["", "when { context.reason_given }", f'when {{ principal in Sealane::Group::"{GROUPS[3]}" }}']
OVERFLOWS = "when { context.placement.age_seconds + 9223372036854775807 > 0 }"


def person(*groups: str, name: str = "one") -> Person:
    return Person(f"{ISSUER}#{name}", ISSUER, name, frozenset(groups), "oidc")


def answer(rules: Rules, request: Any, entities: Any) -> tuple[Any, ...]:
    decision: Decision = evaluate(rules, "", request, entities)
    return decision.allowed, decision.reasons, tuple(sorted(decision.errors)), decision.by_policy


def all_of(rules: Rules) -> Rules:
    """The same policies, which are always all asked."""
    everything = selection.Selections(rules.selections.everything, (), ())
    return Rules(everything, rules.schema)


@pytest.mark.parametrize("effect", ["permit", "forbid", "permit, with one that fails"])
def test_an_answer_from_a_selection_is_the_answer_from_all_policies(effect: str) -> None:
    """Every scope with every body: the reasons of an answer name each policy of the bundle that is satisfied."""
    texts = [
        f'@id("p{n}") @reason("R.") {effect.partition(",")[0]} ({principal}, {action}, resource) {body};'
        for n, (principal, action, body) in enumerate(itertools.product(PRINCIPALS, SCOPES, BODIES))
    ]
    if "fails" in effect:
        texts.append(
            f'@id("error") @reason("R.") forbid (principal in Sealane::Group::"{GROUPS[1]}", '
            f'action in Sealane::Action::"AnyMove", resource) {OVERFLOWS};'
        )
    rules = rules_of(files("\n".join(texts)))
    whole = all_of(rules)
    seen = set()
    for groups, action, name in itertools.product(
        (GROUPS[:2], GROUPS[1:], GROUPS[3:], []), ("MigrateVm", "Evacuate", "ReadAudit"), ("one", "two")
    ):
        question = replace(move(person(*groups, name=name)), action=action)
        request, entities = request_of(question), entities_of(question)
        (found,) = {answer(rules, request, entities) for _ in range(3)} | {answer(whole, request, entities)}
        seen.add(found)
    assert len(seen) > 8
    assert sum(each is not None for each in rules.selections._known.values()) >= 12


def test_a_selection_is_made_for_what_is_asked_again_and_is_smaller() -> None:
    rules = rules_of(made_bundle(100))
    (question, *_) = made_questions()
    request, entities = request_of(question), entities_of(question)
    first, again, learnt = (answer(rules, request, entities) for _ in range(3))
    assert first == again == learnt == answer(all_of(rules), request, entities)
    sizes = [len(each.policies) for each in rules.selections._known.values() if each is not None]
    assert len(sizes) == 1
    assert 0 < sizes[0] <= 75


def test_the_questions_of_the_bench_are_answered_alike() -> None:
    rules = rules_of(made_bundle(150))
    whole = all_of(rules)
    for question, action in itertools.product(itertools.islice(made_questions(), 6), sorted(ACTIONS)):
        if action == "ApproveBreakGlass":
            question = replace(question, requester=person(name="two"))  # noqa: PLW2901
        question = replace(question, action=action)  # noqa: PLW2901
        request, entities = request_of(question), entities_of(question)
        assert {answer(rules, request, entities) for _ in range(3)} == {answer(whole, request, entities)}


def test_a_schema_whose_groups_and_actions_have_members_of_their_own_is_asked_and_not_guessed() -> None:
    schema = OUR_SCHEMA.replace("entity Group;", "entity Group in [Group];").replace(
        "action AnyMove;", "action Daily; action AnyMove in [Daily];"
    )
    texts = [f'@id("n{n}") @reason("R.") forbid (principal in Sealane::Group::"x#{n}", action, resource);'
             for n in range(selection.WORTH)]  # fmt: skip
    texts.append(
        f'@id("daily") @reason("R.") permit (principal in Sealane::Group::"{GROUPS[0]}", '
        'action in Sealane::Action::"Daily", resource);'
    )
    rules = rules_of(files(*texts, schema=schema))
    question = move(person(GROUPS[0]))
    request, entities = request_of(question), entities_of(question)
    assert [evaluate(rules, "", request, entities).allowed for _ in range(3)] == [True] * 3
    assert len(rules.selections._known) == 1
    nested = [*entities, {"uid": {"type": "Sealane::Group", "id": GROUPS[1]}, "attrs": {},
                          "parents": [{"type": "Sealane::Group", "id": GROUPS[0]}]}]  # fmt: skip
    nested[0] = {**entities[0], "parents": [{"type": "Sealane::Group", "id": GROUPS[1]}]}
    assert [evaluate(rules, "", request, nested).allowed for _ in range(3)] == [True] * 3
    assert len(rules.selections._known) == 1  # nothing was concluded from a slice that has more than people, VMs, hosts


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MAX_KEYS", 5)
    monkeypatch.setattr(selection, "MAX_KEPT", 60)
    rules = rules_of(made_bundle(70))
    for question in itertools.chain.from_iterable([each] * 3 for each in itertools.islice(made_questions(), 12)):
        evaluate(rules, "", request_of(question), entities_of(question))
        sizes = [len(each.policies) for each in rules.selections._known.values() if each is not None]
        assert len(rules.selections._known) <= 5
        assert sum(sizes) == rules.selections._kept
        assert sum(sizes) <= 60 or len(sizes) == 1
    assert len(rules.selections._known) > 1
