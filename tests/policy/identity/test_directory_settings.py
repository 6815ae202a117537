"""The operator's table, and the files that it names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from policy.errors import DirectoryRefused
from policy.identity.directory_settings import DirectorySettings, Endpoint, read_credentials

GOOD: dict[str, Any] = {
    "controllers": ["dc1.corp.example", "dc2.corp.example:1636"],
    "trust_bundle": "ca.pem",
    "base": "DC=corp,DC=example",
    "domain": "CORP",
    "bind_user": "svc@corp.example",
    "bind_password_file": "password",
}
BY_KEYTAB: dict[str, Any] = {
    "bind": "gssapi",
    "bind_user": "svc@CORP.EXAMPLE",
    "bind_keytab": "svc.keytab",
    "bind_password_file": None,
}
PEM = "-----BEGIN CERTIFICATE-----\n"


def settings(**changes: Any) -> DirectorySettings:
    return msgspec.convert({**GOOD, **changes}, DirectorySettings)


def test_where_to_connect() -> None:
    assert settings(addresses={"dc1.corp.example": "192.0.2.1"}).checked_controllers() == (
        Endpoint("dc1.corp.example", 636, "192.0.2.1"),
        Endpoint("dc2.corp.example", 1636, None),
    )


@pytest.mark.parametrize(
    "name",
    [
        "192.0.2.1",
        "[::1]",
        "dc1",
        "DC1.corp.example",
        "ldap://dc1.corp.example",
        "dc1.corp.example:0",
        "a.b:99999",
        "a..b",
    ],
)
def test_a_controller_has_a_full_name_that_a_certificate_can_prove(name: str) -> None:
    with pytest.raises(ValueError, match="controllers"):
        settings(controllers=[name]).checked_controllers()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"controllers": ["a.b", "a.b"]}, "controllers"),
        ({"addresses": {"dc9.corp.example": "192.0.2.1"}}, "addresses"),
        ({"addresses": {"dc1.corp.example": "dc2.corp.example"}}, "addresses"),
        ({"domain": "CORP)(x"}, "domain"),
        ({"base": "corp.example"}, "base"),
        ({"bind_password_file": None}, "bind_password_file"),
        ({"bind_keytab": "svc.keytab"}, "bind_keytab"),
        ({"bind": "gssapi"}, "bind_keytab"),
        ({"bind": "gssapi", "bind_keytab": "svc.keytab"}, "bind_password_file"),
        ({**BY_KEYTAB, "bind_user": "svc"}, "bind_user"),
        ({**BY_KEYTAB, "bind_user": "svc@corp.example"}, "bind_user"),
        ({**BY_KEYTAB, "bind_user": "CN=svc,DC=corp"}, "bind_user"),
        ({**BY_KEYTAB, "bind_user": "svc\\@CORP@EVIL"}, "bind_user"),
    ],
)
def test_what_types_cannot_say(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        settings(**changes).checked_controllers()


@pytest.mark.parametrize(
    "changes", [{"cache_seconds": 61}, {"controllers": []}, {"verify": False}, {"deadline_seconds": 0}]
)
def test_no_cache_above_a_minute_no_endless_wait_and_nothing_that_switches_verification_off(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(msgspec.ValidationError):
        settings(**changes)


def test_the_password_is_the_only_line_of_a_private_file(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(PEM)
    file = tmp_path / "password"
    file.write_text("pass word ü\n", encoding="utf-8")
    file.chmod(0o600)
    credentials = read_credentials(settings(), tmp_path)
    assert credentials.bind_password == "pass word ü"
    assert "pass" not in repr(credentials)
    file.chmod(0o640)
    with pytest.raises(DirectoryRefused, match="chmod 600"):
        read_credentials(settings(), tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n", b"a\nb\n", b"\xff", b"x" * 5000, b"a\x00"])
def test_an_empty_password_would_be_an_anonymous_bind(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ca.pem").write_text(PEM)
    (tmp_path / "password").write_bytes(content)
    (tmp_path / "password").chmod(0o600)
    with pytest.raises(DirectoryRefused):
        read_credentials(settings(), tmp_path)


@pytest.mark.real  # of the extra gssapi, which `make check` does without
def test_a_keytab_is_private_and_one(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(PEM)
    file = tmp_path / "svc.keytab"
    file.write_bytes(b"\x05\x02" + b"key material")
    file.chmod(0o600)
    assert settings(**BY_KEYTAB).checked_controllers()
    credentials = read_credentials(settings(**BY_KEYTAB), tmp_path)
    assert credentials.keytab == file.read_bytes()
    assert "key material" not in repr(credentials)
    file.chmod(0o640)
    with pytest.raises(DirectoryRefused, match="chmod 600"):
        read_credentials(settings(**BY_KEYTAB), tmp_path)
    file.chmod(0o600)
    for content in (b"", b"\x05\x02", b"\x05\x01key", b"the password\n", b"\x05\x02" + bytes(70_000)):
        file.write_bytes(content)
        with pytest.raises(DirectoryRefused, match="no Kerberos keytab"):
            read_credentials(settings(**BY_KEYTAB), tmp_path)
    file.unlink()
    with pytest.raises(DirectoryRefused, match="No such file"):
        read_credentials(settings(**BY_KEYTAB), tmp_path)


def test_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    with pytest.raises(DirectoryRefused, match="No such file"):
        read_credentials(settings(), tmp_path)
    os.mkfifo(tmp_path / "password", 0o600)
    with pytest.raises(DirectoryRefused, match="regular file"):
        read_credentials(settings(), tmp_path)
    (tmp_path / "password").unlink()
    (tmp_path / "password").write_text("x")
    (tmp_path / "password").chmod(0o600)
    for content in ("", "no certificate", "ü"):
        (tmp_path / "ca.pem").write_text(content, encoding="utf-8")
        with pytest.raises(DirectoryRefused, match=r"ca\.pem"):
            read_credentials(settings(), tmp_path)
