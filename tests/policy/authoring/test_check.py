"""`sealane policy check`: each fault with its place, and none in what is right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.authoring.check import check_bundle
from policy.authoring.findings import Finding
from policy.bundle import Bundle
from policy.bundle_files import read_bundle_files
from policy.errors import BundleRefused
from tests.policy.cedar_world import BANK, OUR_SCHEMA, files
from tests.policy.test_bundle import CASE

HEAD = '@id("p") @reason("Why.")\n'
GROUP = 'principal in Sealane::Group::"S-1-5-21-1-2-3-1104"'
MOVE = f'{HEAD}permit ({GROUP}, action == Sealane::Action::"MigrateVm", resource)'


def found(*texts: str, schema: str = OUR_SCHEMA) -> list[Finding]:
    return check_bundle(files(*texts, schema=schema))


def test_the_example_bundle_has_nothing_to_correct() -> None:
    assert check_bundle(read_bundle_files(BANK)) == []


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("expect: allow", "expcet: allow", (15, 13), 'cases[0].expcet: is no key; did you mean "expect"?'),
        ("person: a", "person: b", (9, 1), "'b' is not defined in any test file"),
        ("a: {}", "a: {", (5, 4), "is not YAML"),
    ],
)
def test_cases_that_cannot_be_read_are_faults_of_the_bundle(
    old: str, new: str, place: tuple[int, int], said: str
) -> None:
    (finding,) = check_bundle(files(f"{MOVE};", tests=CASE.replace(old, new)))
    assert (finding.file, finding.severity) == ("tests/cases.yaml", "error")
    assert (finding.line, finding.column) == place
    assert said in finding.message


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("permit (principal, action, resource when { true };", 2, 37),
        ("permit (principal, action, resource) when { 1 =", 2, 48),
        ("permit (principal, action, resource) when { 1 === 2 };", 2, 49),
        ("permit (principal action, resource);", 2, 19),
        ("permit (principal, action, resource) when { resource.foo() };", 2, 54),
    ],
)
def test_a_syntax_error_has_the_place_of_the_token_that_does_not_fit(text: str, line: int, column: int) -> None:
    (finding,) = found(HEAD + text)
    assert (finding.rule, finding.line, finding.column) == ("syntax", line, column)


def test_one_broken_policy_hides_nothing_behind_it() -> None:
    broken = HEAD + "permit (principal, action, resource when { true };\n"
    rules = [each.rule for each in found(broken + MOVE + ' when { resource.colour == "red" };')]
    assert rules == ["syntax", "schema"]


@pytest.mark.parametrize(
    ("text", "rule", "severity"),
    [
        (f'{MOVE} when {{ resource.zone == "a" && resource.zone == "b" }};', "never-applies", "error"),
        (f"{MOVE} when {{ resource.zone != resource.zone }};", "never-applies", "error"),
        (f'{MOVE} when {{ resource.zone == "a" }} unless {{ resource.zone == "a" }};', "never-applies", "error"),
        (f'{MOVE} when {{ resource.zone != "a" || resource.zone != "b" }};', "constant-condition", "warning"),
        (f"{MOVE} when {{ true }};", "constant-condition", "warning"),
        (MOVE.replace("S-1-5-21-1-2-3-1104", "Operators") + ";", "name-for-sid", "error"),
        (f'{MOVE} when {{ principal == Sealane::Person::"olga" }};', "name-for-id", "error"),
        (f'{MOVE} when {{ resource == Sealane::Vm::"ledger" }};', "name-for-id", "error"),
        (f'{MOVE} when {{ context.source == Sealane::Host::"fra1" }};', "name-for-id", "error"),
        (f'{MOVE} when {{ principal.name == "Olga" }};', "name-decides", "warning"),
        (f'{MOVE} when {{ principal.actor == "x#y" }};', "unguarded", "error"),
        (f'{MOVE} when {{ resource.zone == "pr\u043eduction" }};', "look-alike", "error"),
        (MOVE.replace(GROUP, "principal") + ";", "permit-for-everyone", "warning"),
        (MOVE.replace("@reason", "@because") + ";", "annotations", "error"),
        (MOVE.replace('@id("p")', "") + ";", "annotations", "error"),
        (MOVE.replace("MigrateVm", "Fly") + ";", "schema", "error"),
        ("(" * 500, "bundle", "error"),
    ],
)
def test_what_an_author_hardly_meant_is_found(text: str, rule: str, severity: str) -> None:
    assert (rule, severity) in {(each.rule, each.severity) for each in found(text)}
    assert all(each.line >= 1 and each.hint for each in found(text))


@pytest.mark.parametrize(
    "condition",
    [
        'when { resource.zone == "a" || resource.zone == "b" }',
        'when { resource.zone == "a" && context.destination.zone == "b" }',
        'when { resource.zone != "a" && resource.zone != "b" }',
        'when { principal has actor && principal.actor == "x#y" }',
        'unless { resource.zone == "a" && resource.classification == "b" }',
    ],
)
def test_what_may_well_be_meant_is_not_found(condition: str) -> None:
    assert found(f"{MOVE} {condition};") == []


def test_a_permit_that_a_forbid_swallows_is_found() -> None:
    forbid = (
        HEAD.replace('"p"', '"f"') + 'forbid (principal, action in Sealane::Action::"AnyMove", resource) when {%s};'
    )
    permit = MOVE + ' when { resource.zone == "a" && context.reason_given };'
    (finding,) = found(forbid % 'resource.zone == "a"', permit)
    assert (finding.rule, finding.policy) == ("shadowed", "p")
    assert found(forbid % 'resource.zone == "c"', permit) == []
    assert found((forbid % 'resource.zone == "a"').replace("AnyMove", "Evacuate"), permit) == []


def test_an_id_that_is_used_twice_is_found_at_its_second_place() -> None:
    (finding,) = found(MOVE + ";", "\n" + MOVE + ";")
    assert (finding.rule, finding.file, finding.line) == ("duplicate-id", "policies/001.cedar", 2)


def test_a_schema_that_is_broken_or_of_another_sealane_is_found() -> None:
    for schema in ("namespace Sealane { entity", OUR_SCHEMA.replace("classification: String,", "")):
        assert {each.file for each in found(MOVE + ";", schema=schema)} == {"schema.cedarschema"}


def test_a_thousand_faults_are_told_in_part() -> None:
    assert len(found("\n".join(MOVE.replace("Migrate", "M") + ";" for _ in range(1000)))) == 200


TOKENS = st.sampled_from(
    ["permit", "forbid", "(", ")", "{", "}", "[", "]", "principal", "action", "resource", "context", ",", ";", "when",
     "unless", "true", "false", "&&", "||", "!", "==", "!=", ".", "has", "in", "zone", '"a"', "1", "@id", '("p")', "\n",
     '@id("p") @reason("R.") permit (principal, action, resource)', "//", "?principal", '"', "\\", "Sealane::Group::"]
)  # fmt: skip


@given(st.lists(TOKENS, max_size=25))
def test_whatever_has_no_error_is_loaded_and_whatever_is_loaded_has_none_of_cedars(tokens: list[str]) -> None:
    text = " ".join(tokens)
    errors = {each.rule for each in found(text) if each.severity == "error"}
    try:
        Bundle.from_files(files(text))
    except BundleRefused:
        assert errors
    else:
        assert errors <= {"name-for-sid", "name-for-id", "never-applies"}  # ours alone
