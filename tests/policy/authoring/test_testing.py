"""`sealane policy test`: every case is run, each failure explained, and what no case shows is told."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from policy.authoring.beginning import STARTER, begin
from policy.authoring.check import check_bundle
from policy.authoring.format import format_bundle
from policy.authoring.testing import run_tests
from policy.bundle import Bundle
from policy.bundle_files import read_bundle_files
from policy.errors import BundleRefused
from tests.policy.cedar_world import BANK, OUR_SCHEMA, files
from tests.policy.test_bundle import CASE

POLICY = '@id("all") @reason("All.") permit (principal, action == Sealane::Action::"MigrateVm", resource) when { %s };'


def test_a_failure_is_explained_and_hides_no_other() -> None:
    two = CASE + CASE[CASE.index("  - name") :].replace("a moves v", "again")
    report = run_tests(files(POLICY % 'resource.zone == "production"', tests=two))
    assert [case.name for case in report.cases if case.failure] == ["a moves v", "again"]
    assert [case.line for case in report.cases] == [9, 17]
    assert any('resource.zone is "test"' in line for line in report.cases[0].why)
    assert report.failed == 2


def test_what_no_case_shows_is_told_for_each_policy_and_condition() -> None:
    condition = 'resource.zone == "test" && (resource.classification == "internal" || context.reason_given)'
    report = run_tests(files(POLICY % condition, tests=CASE))
    assert (report.covered, report.coverable) == (3, 5)
    assert {(gap.condition, gap.never) for gap in report.gaps} == {
        ('when resource.zone == "test"', "false"),
        ('when (resource.classification == "internal") || context.reason_given', "false"),
    }


def test_a_condition_behind_one_that_fails_is_not_shown() -> None:
    report = run_tests(files(POLICY % 'resource.zone == "x" && context.reason_given', tests=CASE))
    assert ("when context.reason_given", "true") in {(gap.condition, gap.never) for gap in report.gaps}


def test_junit_holds_names_that_look_like_xml_as_text() -> None:
    text = CASE.replace("a moves v", '"</testcase> & x"').replace(": allow", ": deny")
    junit = Xml.fromstring(run_tests(files(POLICY % "true", tests=text)).junit())  # noqa: S314 - our own
    assert (junit.get("tests"), junit.get("failures")) == ("1", "1")
    assert junit[0].get("name") == "</testcase> & x"


@pytest.mark.parametrize("folder", [BANK, STARTER])
def test_the_example_bundles_show_everything_they_say(folder: Path) -> None:
    report = run_tests(read_bundle_files(folder))
    assert (report.failed, report.gaps) == (0, ())


def test_a_new_bundle_has_nothing_to_correct() -> None:
    made = begin("my-bank")
    assert check_bundle(made) == []
    assert format_bundle(made) == {}
    assert Bundle.from_files(made).name == "my-bank"
    assert made["schema.cedarschema"] == OUR_SCHEMA


@pytest.mark.parametrize("name", ['x"\nversion = 9\n#', "a b", "", 'x" y = "'])
def test_a_new_bundles_name_cannot_bring_lines_of_its_own(name: str) -> None:
    with pytest.raises(BundleRefused):
        begin(name)
