"""`sealane audit index`: made anew from a log's folder, and held against it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from audit.index import Index
from audit.log import Log
from tests.gateway.cli.conftest import Sealane, last_object, only_error_line
from tests.gateway.cli.test_record_folder import SIGNER, record_at


@pytest.fixture
def log(tmp_path: Path) -> Path:
    with Log.open(tmp_path / "log", SIGNER) as log:
        log.append([lambda first: [record_at(index) for index in range(first, first + 300)]])
    return tmp_path / "log"


def test_an_index_is_rebuilt_and_checked(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    index = tmp_path / "index.sqlite"
    index.write_bytes(b"this is no database" * 100)
    document = last_object(sealane("audit", "index", "rebuild", "--log", log, "--index", index, "--json"))
    assert (document["outcome"], document["size"]) == ("rebuilt", 300)
    assert sealane("audit", "index", "check", "--log", log, "--index", index).exit_code == 0
    with sqlite3.connect(index) as database:
        database.execute("UPDATE records SET outcome = NULL WHERE position = 7")
    database.close()
    result = sealane("audit", "index", "check", "--log", log, "--index", index, "--json")
    assert result.exit_code == 1
    assert last_object(result)["differences"] == [
        "entry 7: outcome is not the record's",
        "its tallies of outcome are wrong",
    ]


def test_an_index_in_use_is_left_alone(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    index = tmp_path / "index.sqlite"
    with Index(index, SIGNER.origin):
        result = sealane("audit", "index", "rebuild", "--log", log, "--index", index)
    assert result.exit_code == 1
    assert "stop the gateway" in only_error_line(result)


@pytest.mark.parametrize("words", ["", "--log LOG", "--index X", "--log nowhere --index X", "--config nowhere"])
@pytest.mark.parametrize("command", ["rebuild", "check"])
def test_what_is_no_log_or_index_is_said_in_a_line(log: Path, sealane: Sealane, words: str, command: str) -> None:
    result = sealane("audit", "index", command, *words.replace("LOG", str(log)).split())
    assert result.exit_code == 2, result.output
    assert only_error_line(result)


def test_a_check_of_an_index_that_is_not_there_makes_none(log: Path, sealane: Sealane, tmp_path: Path) -> None:
    assert sealane("audit", "index", "check", "--log", log, "--index", tmp_path / "none").exit_code == 2
    assert not (tmp_path / "none").exists()
