from __future__ import annotations

import os
from pathlib import Path

import pytest

from audit.siem.secrets import MAX_SECRET_BYTES, read_secret, read_secret_line
from audit.siem.sink import SinkAway


def secret_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.touch(mode=0o600)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_private_file_is_read_without_its_white_space(tmp_path: Path) -> None:
    assert read_secret(secret_file(tmp_path, b"  s3cret\n")) == "s3cret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_a_file_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(SinkAway, match="chmod 600"):
        read_secret(secret_file(tmp_path, b"s3cret", mode))


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = secret_file(tmp_path, b"s3cret")
    if os.geteuid():
        monkeypatch.setattr("audit.siem.secrets.os.geteuid", lambda: os.getuid() + 1)
    else:
        os.chown(path, 12_345, -1)
    with pytest.raises(SinkAway, match="belongs to another user"):
        read_secret(path)


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"\xffs3cret", b"s3\x00cret", b"s3\tcret", b"x" * (MAX_SECRET_BYTES + 1)]
)
def test_what_is_no_secret_is_refused_and_not_shown(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SinkAway) as refused:
        read_secret(secret_file(tmp_path, content))
    assert "cret" not in str(refused.value).replace("secret", "")


def test_a_pipe_in_its_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SinkAway, match="is not a file"):
        read_secret(tmp_path / "pipe")


def test_a_secret_of_one_line_has_no_second_one(tmp_path: Path) -> None:
    assert read_secret_line(secret_file(tmp_path, b"s3cret\n")) == "s3cret"
    with pytest.raises(SinkAway, match="more than one line"):
        read_secret_line(secret_file(tmp_path, b"s3cret\nx-evil: 1"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SinkAway, match="none: cannot be opened"):
        read_secret(tmp_path / "none")
