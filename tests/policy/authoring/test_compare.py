"""Two bundles asked the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from policy.authoring import compare as module
from policy.authoring.compare import Asked, compare, grid, rules_of
from policy.bundle_files import read_bundle_files
from policy.request import entities_of, request_of
from tests.policy.cedar_world import BANK, files, move

PERMIT = '@id("p") @reason("R.") permit (principal, action == Sealane::Action::"MigrateVm", resource)'


def bank() -> dict[str, str]:
    return read_bundle_files(BANK)


def test_a_bundle_differs_from_itself_in_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GRID", 200)
    asked, notes = grid(bank(), bank())
    found = compare(rules_of(bank()), rules_of(bank()), asked)
    assert found.differing == 0
    assert found.compared > 200
    assert "an even sample of 200" in notes[0]


def test_a_rule_that_was_loosened_is_found_in_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GRID", 400)
    path = "policies/zones-and-data.cedar"
    loose = bank() | {
        path: bank()[path].replace("context.destination.zone == resource.zone", "true || context.reason_given")
    }
    asked, _ = grid(bank(), loose)
    found = compare(rules_of(bank()), rules_of(loose), asked)
    assert found.differing > 0
    assert all("stay-in-zone" in each.before.policies and each.after.allowed for each in found.differences)
    assert " → allow by " in found.differences[0].text()


def test_what_stays_as_it_is_by_another_policy_is_told_and_counts_as_no_difference() -> None:
    asked = [Asked(f"record {n}", request_of(move()), entities_of(move())) for n in range(3)]
    renamed = rules_of(files(PERMIT.replace('"p"', '"q"') + ";"))
    found = compare(rules_of(files(PERMIT + ";")), renamed, asked)
    assert (found.differing, found.shifted, found.differences) == (0, 3, ())
    (shift,) = found.shifts
    assert (shift.allowed, shift.before, shift.after, shift.requests) == (True, ("p",), ("q",), 3)
    assert shift.text().startswith("still allow, by q instead of p: 3 requests, the first: record 0: Olga MigrateVm")


def test_each_policy_is_told_with_the_differences_that_it_makes() -> None:
    asked = [Asked("grid", request_of(move()), entities_of(move()))] * 4
    forbid = PERMIT.replace('"p"', '"never"').replace("permit", "forbid")
    found = compare(rules_of(files(PERMIT + ";")), rules_of(files(PERMIT + ";", forbid + ";")), asked)
    assert [(each.policy, each.before, each.after) for each in found.weights] == [("never", 0, 4), ("p", 4, 0)]
    none = compare(rules_of(files(PERMIT + ";")), rules_of(files(PERMIT.replace("MigrateVm", "Evacuate") + ";")), asked)
    assert ("no policy", 0, 4) in [(each.policy, each.before, each.after) for each in none.weights]


def test_people_of_one_name_in_both_bundles_are_both_asked_about() -> None:
    people = "people:\n  olga: {groups: [%s]}\nvms:\n  v: {zone: test, classification: internal}\nhosts:\n"
    people += "  a: {site: s, zone: test, jurisdiction: DE}\n  b: {site: s, zone: test, jurisdiction: DE}\n"
    one, two = (
        {**files(PERMIT + ";"), f"tests/{name}.yaml": people % group}
        for name, group in (("x", "S-1-5-1"), ("y", "S-1-5-2"))
    )
    asked, _ = grid(one, two)
    assert {each.entities[0]["parents"][0]["id"] for each in asked} == {"S-1-5-1", "S-1-5-2"}
    assert len(grid(one, one)[0]) * 2 == len(asked)


def test_the_sample_visits_no_place_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GRID", 97)
    places = list(module._places(1000))
    assert len(set(places)) == 97
    assert max(places) < 1000


def test_bundles_without_facts_have_an_empty_grid_and_say_so() -> None:
    asked, notes = grid(files(PERMIT + ";"))
    assert asked == []
    assert "no moves are in the grid" in notes[0]


@pytest.mark.parametrize("request_", [{}, {"principal": {"type": "x"}}, {"context": 3}])
def test_a_damaged_record_is_denied_by_both_and_named_without_its_words(request_: dict[str, object]) -> None:
    damaged = Asked("record 3", request_, [{"uid": 4}], module.Side(True, ("p",), ""))
    (difference,) = compare(None, rules_of(files(PERMIT + ";")), [damaged]).differences
    assert difference.what == "a request that cannot be read"


def test_a_name_that_looks_like_cedar_is_a_name(tmp_path: Path) -> None:
    rules = rules_of(files(PERMIT + ' when { resource.name == "x" };'))
    asked = Asked("grid", request_of(move()), entities_of(move()))
    asked.entities[1]["attrs"]["name"] = '"} permit (principal, action, resource); //'
    assert compare(rules, rules_of(files(PERMIT + ";")), [asked]).differing == 1
    assert compare(rules, rules, [asked]).differing == 0
