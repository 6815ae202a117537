"""`sealane login`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.cli.conftest import CannedGateway, Sealane, last_object, only_error_line

TOKEN = (200, {"access_token": "aa.bb.cc", "expires_in": 3600})


@pytest.fixture
def gateway(canned: CannedGateway) -> CannedGateway:
    canned.answer("POST", "/v1/token", TOKEN)
    return canned


def where(gateway: CannedGateway) -> list[object]:
    return ["--gateway", gateway.url, "--ca", gateway.ca]


def test_a_password_at_the_prompt_gives_a_token_for_the_other_commands(
    gateway: CannedGateway, sealane: Sealane, home: Path
) -> None:
    result = sealane("login", "--user", "alice", *where(gateway), stdin="correct horse\n")
    assert result.exit_code == 0, result.output
    assert "60 minutes" in result.stdout
    assert "correct horse" not in result.output
    assert "aa.bb.cc" not in result.output
    assert gateway.asked[0].body == {"username": "alice", "password": "correct horse"}
    token = home / ".config/sealane/token.json"
    assert token.stat().st_mode & 0o777 == 0o600
    assert json.loads(token.read_text())["gateway"] == gateway.url


def test_a_password_file_needs_no_prompt(gateway: CannedGateway, sealane: Sealane, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("correct horse\n")
    file.chmod(0o600)
    token = tmp_path / "t"
    result = sealane(
        "login", "--user", "bob", "--password-file", file, *where(gateway), "--token-file", token, "--json"
    )
    assert result.exit_code == 0, result.output
    assert last_object(result)["user"] == "bob"
    assert gateway.asked[0].body["password"] == "correct horse"
    assert token.exists()


@pytest.mark.parametrize("option", [(), ("--password-file", "-")])
def test_a_password_in_a_pipe_is_read_from_it_without_a_word(
    gateway: CannedGateway, home: Path, option: tuple[str, ...]
) -> None:
    command = [sys.executable, "-c", "from gateway.cli.main import run; run()", "login", "--user", "bob", *option]
    ended = subprocess.run(
        [*command, *map(str, where(gateway))], input="correct horse\n", capture_output=True, text=True, check=False,
        start_new_session=True, env={**os.environ, "HOME": str(home)},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    assert gateway.asked[0].body["password"] == "correct horse"


def test_a_password_file_that_others_can_read_is_not_used(
    gateway: CannedGateway, sealane: Sealane, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("correct horse\n")
    file.chmod(0o644)
    result = sealane("login", "--user", "bob", "--password-file", file, *where(gateway))
    assert result.exit_code == 2
    assert "chmod 600" in only_error_line(result)
    assert gateway.asked == []


def test_no_option_takes_a_password(sealane: Sealane) -> None:
    assert sealane("login", "--password", "secret").exit_code == 2


def test_a_wrong_password_is_denied_in_one_line_and_an_old_token_stays(
    gateway: CannedGateway, sealane: Sealane, home: Path
) -> None:
    sealane("login", "--user", "alice", *where(gateway), stdin="right\n")
    error = {"code": "unauthenticated", "message": "wrong name or password", "who_must_act": "requester"}
    gateway.answer("POST", "/v1/token", (401, {"error": error}))
    result = sealane("login", "--user", "alice", *where(gateway), "--json", stdin="wrong\n")
    assert result.exit_code == 1
    assert last_object(result)["error"]["code"] == "unauthenticated"
    assert "wrong name or password" in result.stderr
    assert (home / ".config/sealane/token.json").exists()


def test_a_hostile_token_is_not_kept_as_a_header_to_inject(gateway: CannedGateway, sealane: Sealane) -> None:
    gateway.answer("POST", "/v1/token", (200, {"access_token": "a\r\nx-admin: 1", "expires_in": 60}))
    sealane("login", "--user", "alice", *where(gateway), stdin="p\n")
    result = sealane("migrate", "vm", "--to", "h", *where(gateway))
    assert result.exit_code == 2
    assert len(gateway.asked) == 1
