"""`sealane audit query` and its kin: the language, the formats, saved queries; through the gateway and offline."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from audit.log import Log
from gateway.cli.audit_query import complete_query
from gateway.cli.record_formats import CSV_COLUMNS, as_csv, cell
from tests.gateway.cli.conftest import CannedGateway, Sealane, last_object, only_error_line
from tests.gateway.cli.test_audit import EVIL, record
from tests.gateway.cli.test_record_folder import SIGNER, record_at


@pytest.fixture
def log(tmp_path: Path) -> Path:
    with Log.open(tmp_path / "log", SIGNER) as log:
        log.append([lambda first: [record_at(index) for index in range(first, first + 60)]])
    return tmp_path / "log"


def test_the_query_goes_to_the_gateway_as_it_was_written(logged_in: CannedGateway, sealane: Sealane) -> None:
    logged_in.answer("GET", "/v1/records", (200, {"records": [record(2)], "next": None, "count": 41}))
    text = 'vm:web* who:"CN=A,OU=B" since:30d'
    result = sealane("audit", "query", text, "--timezone", "Europe/Berlin", "--count", "--actor", "x")
    assert result.exit_code == 0, result.output
    asked = [parse_qs(urlsplit(one.path).query) for one in logged_in.asked]
    assert all((one["query"], one["timezone"], one["actor"]) == ([text], ["Europe/Berlin"], ["x"]) for one in asked)
    assert asked[1]["count"] == ["true"]
    assert "1 record of 41" in result.stdout


def test_offline_the_same_query_is_answered_from_the_folder(log: Path, sealane: Sealane) -> None:
    document = last_object(sealane("audit", "query", "who:bob host:host-c NOT outcome:denied", "--log", log, "--json"))
    assert document["records"]
    for one in document["records"]:
        assert (one["record"]["actor"]["name"], one["record"]["outcome"]) == ("bob", "allowed")


def test_pages_of_the_folder_join_and_the_count_is_of_everything(log: Path, sealane: Sealane) -> None:
    whole = last_object(sealane("audit", "query", "who:alice", "--log", log, "--json", "--count"))
    seen: list[int] = []
    before: list[str] = []
    while True:
        page = last_object(sealane("audit", "query", "who:alice", "--log", log, "--json", "--limit", "7", *before))
        seen = [one["index"] for one in page["records"]] + seen
        if page["next"] is None:
            break
        before = ["--before", str(page["next"])]
    assert seen == [one["index"] for one in whole["records"]]
    assert whole["count"] == len(seen)


@pytest.mark.parametrize("text", ["hots:a", "a OR b c", "vm:(", "x" * 5000, "\x1b[31m:a", "time:never"])
def test_a_malformed_query_is_one_line_with_its_position(log: Path, sealane: Sealane, text: str) -> None:
    result = sealane("audit", "query", text, "--log", log)
    assert result.exit_code == 2
    line = only_error_line(result)
    assert "at character" in line
    assert "\x1b" not in line


def test_ten_thousand_clauses_are_refused_before_they_are_sent(logged_in: CannedGateway, sealane: Sealane) -> None:
    result = sealane("audit", "query", " OR ".join("a" * 10_000))
    assert result.exit_code == 2
    assert "longer than 4096 characters (at character 4097)" in only_error_line(result)
    assert not logged_in.asked


def test_a_malformed_query_is_told_before_a_missing_log(sealane: Sealane, tmp_path: Path) -> None:
    assert "at character" in only_error_line(sealane("audit", "query", "vm:(", "--log", tmp_path / "none"))


def test_an_explanation_asks_nothing(canned: CannedGateway, sealane: Sealane) -> None:
    result = sealane("audit", "query", "vm:web* -outcome:allowed", "--explain")
    assert result.exit_code == 0, result.output
    assert 'vm.id or vm.name like "web*"' in result.stdout
    assert canned.asked == []
    assert last_object(sealane("audit", "query", "vm:a", "--explain", "--json"))["explanation"]


def test_json_lines_are_an_object_each(log: Path, sealane: Sealane) -> None:
    result = sealane("audit", "query", "who:*", "--log", log, "--format", "jsonl", "--limit", "5")
    assert [json.loads(line)["record"]["kind"] for line in result.stdout.splitlines()] == ["migration.decision"] * 5


def test_csv_has_a_line_for_each_record(log: Path, sealane: Sealane) -> None:
    result = sealane("audit", "query", "who:*", "--log", log, "--format", "csv", "--limit", "5")
    rows = list(csv.reader(io.StringIO(result.stdout)))
    assert rows[0] == list(CSV_COLUMNS)
    assert len(rows) == 6
    assert {len(row) for row in rows} == {len(CSV_COLUMNS)}


@given(st.text())
def test_no_cell_is_a_formula_or_breaks_out(text: str) -> None:
    shown = cell(text)
    assert not shown.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n"))
    written = as_csv([(1, {"actor": {"name": text}, "vm": {"name": text}, "reason": text})])
    assert not set(written.replace("\r\n", "")) & set("\x00\x07\x1b\x7f\x9b\u202e\r\n")
    assert len(list(csv.reader(io.StringIO(written)))) == 2


@given(st.lists(st.sampled_from([";", "=", "+", "-", "@", "＝", " ", '"', "'", ",", "x"])).map("".join))  # noqa: RUF001
@example("web;=1+1")
@example('web; "=1+1')
def test_no_cell_is_a_formula_where_spreadsheets_take_semicolons_for_separators(text: str) -> None:
    """As they do where the comma is for decimals, whatever the file was meant to be."""
    written = as_csv([(1, {"actor": {"name": text}, "vm": {"name": text}, "reason": text})])
    for line in csv.reader(io.StringIO(written), delimiter=";"):
        for shown in line:
            assert not shown.lstrip(' "').startswith(("=", "+", "-", "@", "＝"))  # noqa: RUF001


@pytest.mark.parametrize("words", ["--format csv", "--format jsonl", "--histogram day", ""])
def test_hostile_names_stay_text_in_every_format(logged_in: CannedGateway, sealane: Sealane, words: str) -> None:
    evil = record(1, actor={"name": EVIL}, vm={"name": "=cmd|'/c calc'!A1"}, reason=EVIL, outcome=EVIL)
    logged_in.answer("GET", "/v1/records", (200, {"records": [evil], "next": None}))
    buckets = [{"start": 10**18, "outcome": EVIL, "count": 1}]
    logged_in.answer("GET", "/v1/records/histogram", (200, {"width_seconds": 86400, "start": 0, "buckets": buckets}))
    result = sealane("audit", "query", *words.split())
    assert result.exit_code == 0, result.output
    assert not set(result.stdout) & set("\x1b\x9b\x07")
    assert ",=cmd" not in result.stdout


def test_a_histogram_counts_everything_by_time(log: Path, sealane: Sealane) -> None:
    document = last_object(sealane("audit", "query", "who:*", "--log", log, "--histogram", "hour", "--json"))
    assert sum(one["count"] for one in document["buckets"]) == 54
    assert {one["outcome"] for one in document["buckets"]} == {"allowed", "denied"}
    assert "2026-11-22" in sealane("audit", "query", "--log", log, "--histogram", "day").stdout
    assert sealane("audit", "query", "--log", log, "--histogram", "fortnight").exit_code == 2


def test_queries_are_saved_used_narrowed_listed_and_removed(log: Path, home: Path, sealane: Sealane) -> None:
    assert sealane("audit", "query", "who:alice OR who:bob", "--save", "both", "--log", log).exit_code == 0
    path = home / ".config" / "sealane" / "queries.json"
    assert path.stat().st_mode & 0o777 == 0o600
    found = last_object(sealane("audit", "query", "outcome:denied", "--saved", "both", "--log", log, "--json"))
    assert {one["record"]["outcome"] for one in found["records"]} == {"denied"}
    assert last_object(sealane("audit", "saved", "--json"))["queries"] == {"both": "who:alice OR who:bob"}
    assert sealane("audit", "saved", "--remove", "both").exit_code == 0
    assert sealane("audit", "query", "--saved", "both", "--log", log).exit_code == 2


def test_a_query_that_makes_no_sense_is_not_saved(home: Path, sealane: Sealane) -> None:
    assert sealane("audit", "query", "hots:a", "--save", "x", "--explain").exit_code == 2
    assert sealane("audit", "query", "a", "--save", "../x", "--explain").exit_code == 2
    assert not (home / ".config" / "sealane" / "queries.json").exists()


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', "\xff", "{" * 5000])
def test_a_file_that_holds_no_queries_is_said(home: Path, sealane: Sealane, content: str) -> None:
    path = home / ".config" / "sealane" / "queries.json"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="latin-1")
    path.chmod(0o600)
    assert "queries.json" in only_error_line(sealane("audit", "saved"))


def test_queries_that_others_can_change_are_refused(home: Path, sealane: Sealane) -> None:
    path = home / ".config" / "sealane" / "queries.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"mine": "NOT who:mallory"}')
    path.chmod(0o666)
    assert "chmod 600" in only_error_line(sealane("audit", "query", "--saved", "mine"))


def test_fields_are_listed_and_completed(sealane: Sealane) -> None:
    assert "destination, to, dest" in sealane("audit", "fields").stdout
    assert {one["name"] for one in last_object(sealane("audit", "fields", "--json"))["fields"]} >= {"vm", "who"}
    assert complete_query("vm:a -outc") == ["vm:a -outcome:"]
    assert "who:" in complete_query("w")


def test_with_an_index_the_answers_are_the_same(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    index = tmp_path / "index.sqlite"
    assert sealane("audit", "index", "rebuild", "--log", log, "--index", index).exit_code == 0
    for words in (["who:bob OR host:host-c", "--limit", "7", "--count"], ["outcome:denied", "--histogram", "hour"]):
        asked = ["audit", "query", *words, "--log", log, "--json"]
        assert last_object(sealane(*asked, "--index", index)) == last_object(sealane(*asked))


def test_an_index_of_another_state_of_the_log_is_refused(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    index = tmp_path / "index.sqlite"
    sealane("audit", "index", "rebuild", "--log", log, "--index", index)
    with Log.open(log, SIGNER) as writer:
        writer.append([lambda first: [record_at(first)]])
    for wrong in (index, tmp_path / "none", log / "checkpoint"):
        result = sealane("audit", "query", "who:bob", "--log", log, "--index", wrong)
        assert result.exit_code == 2
        assert "index rebuild" in only_error_line(result)
    assert sealane("audit", "query", "who:bob", "--index", index).exit_code == 2
