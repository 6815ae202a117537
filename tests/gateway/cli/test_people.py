"""`sealane people`."""

from __future__ import annotations

import tomllib
from pathlib import Path

from policy.identity.local import PasswordHash
from tests.gateway.cli.conftest import Sealane, last_object


def test_the_line_is_toml_and_holds_the_hash_of_what_was_typed(sealane: Sealane) -> None:
    result = sealane("people", "hash-password", stdin="correct horse\ncorrect horse\n")
    assert result.exit_code == 0, result.output
    hashed = tomllib.loads(result.stdout)["password"]
    assert PasswordHash.parse(hashed).matches("correct horse")
    assert "correct horse" not in result.output


def test_a_password_can_come_from_a_file_of_ones_own(sealane: Sealane, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("correct horse\n")
    file.chmod(0o600)
    document = last_object(sealane("people", "hash-password", "--password-file", file, "--json"))
    assert PasswordHash.parse(document["password"]).matches("correct horse")
    file.chmod(0o644)
    assert sealane("people", "hash-password", "--password-file", file).exit_code == 2


def test_a_short_or_overlong_password_is_refused(sealane: Sealane) -> None:
    assert sealane("people", "hash-password", stdin="short\nshort\n").exit_code == 2
    long = "x" * 1025
    assert sealane("people", "hash-password", stdin=f"{long}\n{long}\n").exit_code == 2


def test_a_question_that_no_input_answers_is_a_line_about_options(sealane: Sealane) -> None:
    result = sealane("people", "hash-password", stdin="")
    assert result.exit_code == 2
    assert "give the answer by an option: --password-file, --yes" in result.stderr
    assert "Aborted" not in result.stderr
