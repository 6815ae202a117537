"""`sealane audit`, through the gateway and offline."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit.checkpoint import LogSigner
from audit.log import Log
from gateway.cli.credentials import StoredToken, store_token
from tests.gateway.cli.conftest import CannedGateway, Sealane, last_object, only_error_line, token_of
from tests.gateway.cli.test_record_folder import SIGNER, record_at

EVIL = "\x1b]0;x\x07[red]\x9b2Jevil\nrecord"


def record(index: int, **members: Any) -> dict[str, Any]:
    return {"index": index, "record": {"kind": "migration.decision", "time": f"2026-11-22T00:00:0{index}Z", **members}}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    with Log.open(tmp_path / "log", SIGNER) as log:
        log.append([lambda first: [record_at(index) for index in range(first, first + 30)]])
    (tmp_path / "log.vkey").write_text(SIGNER.vkey + "\n")
    return tmp_path / "log"


def test_a_query_passes_its_filters_on_and_tells_the_newest_oldest_first(
    logged_in: CannedGateway, sealane: Sealane
) -> None:
    logged_in.answer("GET", "/v1/records", (200, {"records": [record(5, reason="later"), record(2)], "next": 2}))
    result = sealane(
        "audit", "query", "--vm", "web 1&x", "--outcome", "denied", "--since", "2026-11-22", "--limit", "2"
    )
    assert result.exit_code == 0, result.output
    assert logged_in.asked[0].path == (
        "/v1/records?vm=web+1%26x&outcome=denied&since=2026-11-22T00%3A00%3A00.000000Z&limit=2"
    )
    assert result.stdout.index("2026-11-22 00:00:02") < result.stdout.index("2026-11-22 00:00:05")
    assert "older ones with --before 2" in result.stdout


def test_a_query_goes_over_as_many_pages_as_it_takes(logged_in: CannedGateway, sealane: Sealane) -> None:
    pages = [(200, {"records": [record(5), record(4)], "next": 4}), (200, {"records": [record(1)], "next": None})]
    logged_in.answer("GET", "/v1/records", *pages)
    document = last_object(sealane("audit", "query", "--json"))
    assert [one["index"] for one in document["records"]] == [1, 4, 5]
    assert document["next"] is None
    assert logged_in.asked[1].path.endswith("after=4")


def test_a_cursor_that_does_not_move_ends_the_query(logged_in: CannedGateway, sealane: Sealane) -> None:
    logged_in.answer("GET", "/v1/records", (200, {"records": [record(5)], "next": 5}))
    assert sealane("audit", "query").exit_code == 0
    assert len(logged_in.asked) == 2


def test_who_may_not_read_is_told_so_in_one_line(logged_in: CannedGateway, sealane: Sealane) -> None:
    error = {"code": "not_allowed", "message": "reading the audit log is denied", "who_must_act": "requester"}
    logged_in.answer("GET", "/v1/records", (403, {"error": error}))
    result = sealane("audit", "query")
    assert result.exit_code == 1
    assert "reading the audit log is denied" in only_error_line(result)


@pytest.mark.parametrize("words", ["query", "query --json", "tail", "show 1", "show 1 --json"])
def test_hostile_records_stay_text(logged_in: CannedGateway, sealane: Sealane, words: str) -> None:
    evil = record(1, actor={"name": EVIL}, vm={"name": EVIL}, source=EVIL, destination=EVIL, reason=EVIL, outcome=EVIL)
    evil["record"] |= {"kind": EVIL, "time": EVIL, "details": {EVIL: [EVIL]}}
    odd = record(2, actor=7, vm=[EVIL], source={"x": 1}, reason=["y"])
    logged_in.answer("GET", "/v1/records", (200, {"records": [odd, evil], "next": None}))
    logged_in.answer("GET", "/v1/records/1", (200, evil))
    logged_in.answer("GET", "/v1/checkpoint", (200, {"checkpoint": "o\n3\nr\n"}))
    result = sealane("audit", *words.split())
    assert result.exit_code == 0, result.output
    assert not set(result.stdout) & set("\x1b\x9b\x07\r")
    assert not any(line.startswith("record") for line in result.stdout.splitlines())
    assert "evil" in result.stdout


def test_tail_shows_the_newest_and_follow_goes_on_without_doubles(
    logged_in: CannedGateway, sealane: Sealane, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(200, {"checkpoint": f"o\n{size}\nr\n"}) for size in (5, 6, 6, 7, 8)]
    logged_in.answer("GET", "/v1/checkpoint", *sizes)
    newest = [(200, {"records": [record(4), record(3)], "next": 3}), (200, {"records": [record(6), record(4)]})]
    logged_in.answer("GET", "/v1/records", *newest)
    waits = 0

    def wait(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("gateway.cli.audit.time.sleep", wait)
    result = sealane("audit", "tail", "-n", "2", "-f")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["3", "4", "6"]
    # Its own reading made the log grow from 5 to 6: that alone sets off no further one.
    assert sum(one.path.startswith("/v1/records") for one in logged_in.asked) == 2


def test_follow_goes_on_after_a_gateway_that_was_away_and_a_new_login(
    logged_in: CannedGateway, sealane: Sealane, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sign_in(number: int) -> None:
        token = StoredToken(token_of("carol", number), 2**31, logged_in.url)
        store_token(home / ".config" / "sealane" / "token.json", token)

    sign_in(1)
    size = [(200, {"checkpoint": f"o\n{number}\nr\n"}) for number in (5, 6, 7)]
    away = [(503, b"")] * 3
    logged_in.answer("GET", "/v1/checkpoint", size[0], size[0], *away, size[1], (401, b""), size[2])
    newest = [(200, {"records": [record(4)]}), (200, {"records": [record(5)]}), (200, {"records": []})]
    logged_in.answer("GET", "/v1/records", *newest)
    waits = 0

    def wait(seconds: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 10:
            sign_in(2)
        if waits == 12:
            raise KeyboardInterrupt

    monkeypatch.setattr("gateway.cli.audit.time.sleep", wait)
    result = sealane("audit", "tail", "-n", "1", "-f")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["4", "5"]
    assert result.stderr.count("sealane login") == 1
    assert logged_in.asked[-1].authorization == f"Bearer {token_of('carol', 2)}"


def test_offline_query_tail_and_show_need_no_gateway(log: Path, sealane: Sealane) -> None:
    found = last_object(sealane("audit", "query", "--log", log, "--actor", "bob", "--host", "host-c", "--json"))
    assert {one["record"]["actor"]["name"] for one in found["records"]} == {"bob"}
    tail = last_object(sealane("audit", "tail", "--log", log, "-n", "3", "--json"))
    assert [one["index"] for one in tail["records"]] == [27, 28, 29]
    shown = last_object(sealane("audit", "show", "7", "--log", log, "--json"))
    assert (shown["index"], shown["record"]["sequence"]) == (7, 7)
    assert "migration.decision" in sealane("audit", "show", "7", "--log", log).stdout
    assert "web-1" in sealane("audit", "query", "--log", log, "--vm", "web-1").stdout


def test_a_folder_and_a_gateway_exclude_each_other(log: Path, sealane: Sealane) -> None:
    assert sealane("audit", "query", "--log", log, "--gateway", "https://gw").exit_code == 2


@pytest.mark.parametrize("as_file", [True, False])
def test_a_whole_log_is_verified_with_a_key_or_its_file(log: Path, sealane: Sealane, as_file: bool) -> None:
    key = log.with_name("log.vkey") if as_file else SIGNER.vkey
    result = sealane("audit", "verify", log, "--key", key)
    assert result.exit_code == 0, result.output
    assert "VERIFIED" in result.stdout
    document = last_object(sealane("audit", "verify", log, "--key", key, "--json"))
    assert document.items() >= {"outcome": "verified", "size": 30, "problems": []}.items()


def test_one_flipped_bit_is_found_and_told(log: Path, sealane: Sealane) -> None:
    path = log / "tail" / "0"
    data = bytearray(path.read_bytes())
    data[data.index(b"alice")] ^= 1
    path.write_bytes(data)
    result = sealane("audit", "verify", log, "--key", log.with_name("log.vkey"))
    assert result.exit_code == 1
    assert "NOT VERIFIED" in result.stdout
    document = last_object(sealane("audit", "verify", log, "--key", log.with_name("log.vkey"), "--json"))
    assert document["outcome"] == "not_verified"
    assert document["problems"]


def test_a_log_that_was_put_back_is_found_by_a_checkpoint_that_was_kept(log: Path, sealane: Sealane) -> None:
    old = log.with_name("old")
    shutil.copytree(log, old)
    with Log.open(log, SIGNER) as writer:
        writer.append([lambda first: [record_at(first)]])
    key, seen = log.with_name("log.vkey"), log / "checkpoint"
    assert sealane("audit", "verify", old, "--key", key).exit_code == 0
    result = sealane("audit", "verify", old, "--key", key, "--seen", seen)
    assert result.exit_code == 1
    assert "put back" in result.stdout


def test_another_logs_key_proves_nothing(log: Path, sealane: Sealane) -> None:
    other = LogSigner("example/audit", Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
    assert sealane("audit", "verify", log, "--key", other.vkey).exit_code == 1


@pytest.mark.parametrize("key", ["missing-file", "a+b+c", "", "/"])
def test_a_key_that_is_none_is_refused_before_anything_is_read(log: Path, sealane: Sealane, key: str) -> None:
    result = sealane("audit", "verify", log, "--key", key)
    assert result.exit_code == 2
    assert "--key" in only_error_line(result)


@pytest.mark.parametrize("content", ["hunter2 is the password", "aa+bb+cc", "MC4CAQ+Awb+QYDK2"])
def test_a_file_that_is_no_key_is_not_repeated(log: Path, sealane: Sealane, tmp_path: Path, content: str) -> None:
    (tmp_path / "private.key").write_text(f"{content}\n")
    result = sealane("audit", "verify", log, "--key", tmp_path / "private.key")
    assert result.exit_code == 2
    assert content not in result.output + result.stderr


def test_verify_needs_a_key_and_a_folder(log: Path, sealane: Sealane) -> None:
    assert sealane("audit", "verify", log).exit_code == 2
    assert sealane("audit", "verify", log / "nowhere", "--key", SIGNER.vkey).exit_code == 2
