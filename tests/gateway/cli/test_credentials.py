"""Files of passwords and tokens."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from gateway.cli.credentials import StoredToken, newer_token, read_secret, read_token, store_token, token_of
from gateway.cli.errors import BadConfiguration, Refused
from gateway.cli.settings import ClientSettings, client_directory, resolve

GATEWAY = "https://gw:8443"


def secret(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o601])
def test_a_secret_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(BadConfiguration, match="by others") as caught:
        read_secret(secret(tmp_path / "p", "hunter2", mode), "password file")
    assert "hunter2" not in caught.value.line()
    assert "chmod 600" in caught.value.next_step


def test_a_secret_is_read_without_its_last_line_end(tmp_path: Path) -> None:
    assert read_secret(secret(tmp_path / "p", " pass word \n"), "password file") == " pass word "


def test_a_fifo_a_folder_and_a_missing_file_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for name in ("fifo", ".", "missing"):
        with pytest.raises(BadConfiguration):
            read_secret(tmp_path / name, "password file")


def test_an_oversized_or_binary_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match="larger"):
        read_secret(secret(tmp_path / "big", "x" * 40_000), "token file")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "binary").chmod(0o600)
    with pytest.raises(BadConfiguration, match="UTF-8"):
        read_secret(tmp_path / "binary", "token file")


def test_a_stored_token_comes_back_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "token.json"
    store_token(path, StoredToken("aa.bb.cc", 200, GATEWAY))
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert read_token(path, GATEWAY, 199) == "aa.bb.cc"


def test_a_token_is_replaced_whole_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = secret(tmp_path / "token.json", "old " * 100, 0o644)
    store_token(path, StoredToken("aa.bb.cc", 200, GATEWAY))
    assert read_token(path, GATEWAY, 0) == "aa.bb.cc"
    assert [one.name for one in tmp_path.iterdir()] == ["token.json"]


@pytest.mark.parametrize("name", ["t/below-a-file", "n" * 300, "loop"])
@pytest.mark.parametrize("certificate", [None, Path("/c.pem")])
def test_a_token_file_that_cannot_be_looked_at_is_told_and_ends_no_command_under_way(
    tmp_path: Path, name: str, certificate: Path | None
) -> None:
    secret(tmp_path / "t", "aa.bb.cc")
    (tmp_path / "loop").symlink_to("loop")
    settings = ClientSettings(GATEWAY, None, tmp_path / name, 5, certificate=certificate)
    with pytest.raises(BadConfiguration, match="cannot be read: "):
        token_of(settings, 0)
    assert newer_token(settings, 0, "aa.bb.cc") is None


def test_an_expired_token_is_told_before_it_is_sent(tmp_path: Path) -> None:
    store_token(tmp_path / "t", StoredToken("aa.bb.cc", 200, GATEWAY))
    with pytest.raises(Refused, match="expired"):
        read_token(tmp_path / "t", GATEWAY, 200)


def test_a_token_is_never_sent_to_another_gateway(tmp_path: Path) -> None:
    store_token(tmp_path / "t", StoredToken("aa.bb.cc", 200, GATEWAY))
    with pytest.raises(BadConfiguration, match="not for https://evil"):
        read_token(tmp_path / "t", "https://evil", 0)


def test_a_login_at_one_gateway_of_client_toml_is_good_at_its_others_and_nowhere_else(tmp_path: Path) -> None:
    folder = client_directory(tmp_path)
    store_token(folder / "token.json", StoredToken("aa.bb.cc", 200, GATEWAY))
    (folder / "client.toml").write_text(f'gateway = "{GATEWAY}"\nothers = ["https://gw2:8443"]\n')
    for url in (None, GATEWAY, "https://gw2:8443"):
        assert token_of(resolve(url, None, None, tmp_path), 0) == "aa.bb.cc"
    with pytest.raises(BadConfiguration, match="not for https://evil"):
        token_of(resolve("https://evil", None, None, tmp_path), 0)
    store_token(folder / "token.json", StoredToken("aa.bb.cc", 200, "https://evil"))
    for url in (None, "https://gw2:8443"):
        with pytest.raises(BadConfiguration, match="is for https://evil"):
            token_of(resolve(url, None, None, tmp_path), 0)


def test_a_bare_token_of_another_issuer_is_taken(tmp_path: Path) -> None:
    assert read_token(secret(tmp_path / "t", "aa.bb.cc\n"), GATEWAY, 0) == "aa.bb.cc"


@pytest.mark.parametrize("text", ["", "a b", "a\r\nx-admin: yes", "é", "{}", '{"access_token": 7}', "[" * 9000])
def test_a_file_that_holds_no_token_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    if text.startswith("["):
        text = '{"a":' + text
    with pytest.raises(BadConfiguration):
        read_token(secret(tmp_path / "t", text), GATEWAY, 0)


def test_a_token_with_a_line_break_in_the_cache_is_refused(tmp_path: Path) -> None:
    stored = msgspec.json.encode({"access_token": "a\nb", "expires_at": 9, "gateway": GATEWAY}).decode()
    with pytest.raises(BadConfiguration):
        read_token(secret(tmp_path / "t", stored), GATEWAY, 0)


def test_without_a_token_the_next_step_is_login(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration) as caught:
        read_token(tmp_path / "none", GATEWAY, 0)
    assert "sealane login" in caught.value.next_step
