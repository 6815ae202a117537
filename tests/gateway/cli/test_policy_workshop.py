"""`sealane policy new`, `check`, `fmt`, `test`, `explain`, `diff` and `replay` as authors and CI use them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from gateway.starter import EXAMPLE_BUNDLE
from tests.gateway.cli.conftest import Sealane, last_object, only_error_line


@pytest.fixture
def made(sealane: Sealane, tmp_path: Path) -> Path:
    """A new bundle."""
    result = sealane("policy", "new", tmp_path / "mine", "--name", "mine")
    assert result.exit_code == 0, result.output
    return tmp_path / "mine"


def change(bundle: Path, file: str, old: str, new: str) -> None:
    path = bundle / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_new_bundle_passes_everything_an_author_runs(sealane: Sealane, made: Path, tmp_path: Path) -> None:
    for words in (["check", "--strict"], ["fmt", "--check"], ["test", "--complete"]):
        assert sealane("policy", words[0], made, *words[1:]).exit_code == 0
    assert last_object(sealane("policy", "check", made, "--json"))["findings"] == []


def test_a_directory_that_exists_is_not_written_into(sealane: Sealane, made: Path) -> None:
    result = sealane("policy", "new", made)
    assert result.exit_code == 2
    assert "does not exist yet" in only_error_line(result)


def test_a_name_that_no_bundle_may_have_is_a_fault_of_the_option(sealane: Sealane, tmp_path: Path) -> None:
    result = sealane("policy", "new", tmp_path / "mine", "--name", "My bank")
    assert result.exit_code == 2
    assert only_error_line(result).startswith('sealane: --name: is "My bank"; allowed is a text of 1 to 63 ')
    assert not (tmp_path / "mine").exists()


def test_a_finding_has_place_rule_and_hint_for_people_and_programs(sealane: Sealane, made: Path) -> None:
    change(made, "policies/safeguards.cedar", 'resource.classification == "restricted"', 'resource.colour == "red"')
    result = sealane("policy", "check", made)
    assert result.exit_code == 1
    assert "policies/safeguards.cedar:" in result.stdout
    assert "error[schema]: " in result.stdout
    assert "hint: " in result.stdout
    (finding, *_) = last_object(sealane("policy", "check", made, "--json"))["findings"]
    line = (made / finding["file"]).read_text(encoding="utf-8").splitlines()[finding["line"] - 1]
    assert line[finding["column"] - 1 :].startswith("colour")


def test_fmt_tells_then_changes_then_has_nothing_to_do(sealane: Sealane, made: Path) -> None:
    change(made, "policies/safeguards.cedar", "forbid (", "forbid(")
    assert last_object(sealane("policy", "fmt", made, "--check", "--json"))["changed"] == ["policies/safeguards.cedar"]
    assert sealane("policy", "fmt", made).exit_code == 0
    assert sealane("policy", "fmt", made, "--check").exit_code == 0


def test_a_case_that_fails_is_explained_and_told_to_ci(sealane: Sealane, made: Path, tmp_path: Path) -> None:
    change(made, "tests/cases.yaml", "    expect: allow\n    by: [operators-move]", "    expect: deny\n    by: []")
    result = sealane("policy", "test", made, "--junit", tmp_path / "results.xml")
    assert result.exit_code == 1
    assert "FAIL  tests/cases.yaml:" in result.stdout
    assert "satisfied: permit operators-move" in result.stdout
    suite = Xml.fromstring((tmp_path / "results.xml").read_text(encoding="utf-8"))  # noqa: S314 - our own
    assert int(suite.get("failures", "0")) == last_object(sealane("policy", "test", made, "--json"))["failed"] > 0


def test_a_policy_that_no_case_shows_is_a_gap(sealane: Sealane, made: Path) -> None:
    (made / "policies" / "more.cedar").write_text(
        '@id("siem")\n@reason("R.")\npermit (\n  principal in Sealane::Group::"S-1-5-21-1-2-3-4",\n'
        '  action == Sealane::Action::"ManageSiem",\n  resource\n);\n',
        encoding="utf-8",
    )
    assert sealane("policy", "test", made).exit_code == 0
    result = sealane("policy", "test", made, "--complete")
    assert result.exit_code == 1
    assert "gap   policies/more.cedar: siem: never satisfied" in result.stdout


def test_a_case_is_explained(sealane: Sealane, made: Path) -> None:
    result = sealane("policy", "explain", made, "--case", "restricted VMs stay in their country")
    assert result.exit_code == 0
    assert 'context.destination.jurisdiction is "CH"; context.source.jurisdiction is "DE"' in result.stdout
    document = last_object(sealane("policy", "explain", made, "--case", "the freeze ends", "--json"))
    assert document["outcome"] == "allowed"
    assert sealane("policy", "explain", made, "--case", "no such case").exit_code == 2
    assert sealane("policy", "explain", made).exit_code == 2


def test_a_diff_finds_what_a_change_lets_through(sealane: Sealane, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "loose")
    old = "context.destination.jurisdiction !="
    change(tmp_path / "loose", "policies/safeguards.cedar", old, f"false && {old}")
    assert sealane("policy", "diff", made, made).exit_code == 0
    document = last_object(sealane("policy", "diff", made, tmp_path / "loose", "--json"))
    assert document["outcome"] == "differs"
    assert {tuple(each["before"]["policies"]) for each in document["differences"]} == {
        ("restricted-stays-in-jurisdiction",)
    }


@pytest.mark.parametrize("command", ["check", "fmt", "test", "explain", "diff", "replay"])
def test_what_is_no_bundle_is_said_in_one_line(sealane: Sealane, tmp_path: Path, command: str) -> None:
    (tmp_path / "empty").mkdir()
    options: dict[str, list[object]] = {"explain": ["--case", "x"], "diff": [tmp_path], "replay": ["--log", tmp_path]}
    more = options.get(command, [])
    result = sealane("policy", command, tmp_path / "empty", *more)
    assert result.exit_code == 2
    assert "no bundle: bundle.toml: is missing" in only_error_line(result)


@pytest.mark.parametrize(
    "damage",
    [b"\xff\xfe", b"permit (", b"(" * 200_000, b"x" * (11 * 1024 * 1024)],
    ids=["binary", "truncated", "deep", "large"],
)
@pytest.mark.parametrize("command", ["check", "fmt", "test"])
def test_a_file_that_is_no_policy_is_refused_by_each_command(
    sealane: Sealane, made: Path, command: str, damage: bytes
) -> None:
    (made / "policies" / "bad.cedar").write_bytes(damage)
    result = sealane("policy", command, made)
    assert result.exit_code in {1, 2}
    assert result.output


def test_the_example_bundle_is_clean(sealane: Sealane) -> None:
    for words in (["check", "--strict"], ["fmt", "--check"], ["test", "--complete"]):
        assert sealane("policy", words[0], EXAMPLE_BUNDLE, *words[1:]).exit_code == 0


def test_json_of_a_refusal_is_one_object(sealane: Sealane, made: Path) -> None:
    (made / "policies" / "bad.cedar").write_text("permit (", encoding="utf-8")
    document = json.loads(sealane("policy", "test", made, "--json").stdout.splitlines()[-1])
    assert document["error"]["who_must_act"] == "policy author"
