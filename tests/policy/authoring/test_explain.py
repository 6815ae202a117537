"""Each policy of a decision: satisfied, not or in error, with the facts; never otherwise than Cedar itself says."""

from __future__ import annotations

import pytest

from policy.authoring.compare import Asked, decide_under, rules_of
from policy.authoring.explain import Explanation, explain
from policy.authoring.pieces import Pieces
from policy.bundle_files import read_bundle_files
from policy.cases import read_cases
from policy.facts import Question
from policy.request import entities_of, request_of
from tests.policy.cedar_world import BANK, files, move

PERMIT = '@id("p") @reason("R.") permit (principal, action, resource)'


def explained(contents: dict[str, str], question: Question) -> Explanation:
    rules = rules_of(contents)
    asked = Asked("test", request_of(question), entities_of(question))
    return explain(Pieces(rules, contents), decide_under(rules, asked))


def test_the_conjunct_that_fails_is_told_with_its_facts() -> None:
    text = PERMIT.replace("action,", 'action == Sealane::Action::"MigrateVm",')
    text += ' when { context.reason_given && resource.zone == "production" && resource.name == "x" };'
    (policy,) = explained(files(text), move()).policies
    assert policy.verdict == "not satisfied"
    assert policy.because == ('when: resource.zone == "production" does not hold; resource.zone is "test"',)


def test_a_scope_that_does_not_fit_is_told() -> None:
    text = PERMIT.replace("principal,", 'principal in Sealane::Group::"sealane-local#auditors",') + ";"
    (policy,) = explained(files(text), move()).policies
    assert policy.because == (
        'scope: principal in Sealane::Group::"sealane-local#auditors"; it is Sealane::Person::"sealane-local#olga"',
    )


def test_an_unless_that_holds_is_told_and_facts_of_hosts_are_followed() -> None:
    text = PERMIT.replace("action,", 'action == Sealane::Action::"MigrateVm",')
    text += " unless { context.destination.zone == resource.zone };"
    (policy,) = explained(files(text), move()).policies
    assert policy.because == (
        'unless: context.destination.zone == resource.zone holds; context.destination.zone is "test"; '
        'resource.zone is "test"',
    )


def test_a_policy_that_fails_is_an_error_with_cedars_words() -> None:
    text = (
        PERMIT.replace("permit", "forbid")
        + " when { 9223372036854775807 + context.time.toTime().toMilliseconds() > 0 };"
    )
    (policy,) = explained(files(text), move()).policies
    assert policy.verdict == "error"
    assert "overflow" in policy.because[0]


def test_names_that_look_like_cedar_stay_names() -> None:
    text = PERMIT.replace("action,", 'action == Sealane::Action::"MigrateVm",')
    text += ' when { resource.name == "\\"} permit(principal, action, resource); //" };'
    (policy,) = explained(files(text), move()).policies
    assert policy.verdict == "not satisfied"
    assert policy.because[0].endswith('resource.name is "sandbox"')


def test_the_example_bundles_cases_are_explained_as_they_are_decided() -> None:
    contents = read_bundle_files(BANK)
    rules = rules_of(contents)
    pieces = Pieces(rules, contents)
    for posed in read_cases({path: text for path, text in contents.items() if path.startswith("tests/")}):
        decision = decide_under(rules, Asked("", request_of(posed.question), entities_of(posed.question)))
        found = explain(pieces, decision)
        assert not found.unasked
        satisfied = {policy.id for policy in found.policies if policy.verdict == "satisfied"}
        assert {reason.id for reason in decision.reasons} <= satisfied
        forbids = {p.id for p in found.policies if p.effect == "forbid" and p.id in satisfied}
        if decision.by_policy:
            assert decision.allowed == (bool(satisfied) and not forbids)
        for taken, answers in zip(pieces.policies, pieces.answers(decision) or [], strict=True):
            parts = all(truth == part.wanted for part, truth in zip(taken.parts, answers.parts, strict=True))
            assert (answers.whole == "true") == parts


@pytest.mark.parametrize("entities", [[], [{}], [{"uid": 1}], [{"groups": []}]])
def test_a_damaged_record_is_said_to_be_unasked(entities: list[dict[str, object]]) -> None:
    contents = files(PERMIT + ";")
    rules = rules_of(contents)
    decision = decide_under(rules, Asked("", {"principal": "x"}, entities))
    assert explain(Pieces(rules, contents), decision).unasked
