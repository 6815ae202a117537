"""`sealane certs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.cli.conftest import Sealane, last_object, only_error_line


def test_a_ca_its_hosts_and_what_is_there(sealane: Sealane, tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    made = sealane("certs", "init", ca, "--trust-domain", "corp.example", "--json")
    assert made.exit_code == 0, made.output
    assert last_object(made)["log_origin"] == "corp.example/audit"
    assert (ca / "gateway" / "log.vkey").read_text().startswith("corp.example/audit+")
    issued = sealane("certs", "issue", ca, "host-a", "--hours", "48")
    assert issued.exit_code == 0, issued.output
    assert (ca / "hosts/host-a/host.key").stat().st_mode & 0o077 == 0
    shown = sealane("certs", "show", ca)
    assert "spiffe://corp.example/host/host-a" in shown.stdout
    files = last_object(sealane("certs", "show", ca, "--json"))["files"]
    assert {one["kind"] for one in files} == {"ca", "crl", "gateway", "host"}
    assert {one["state"] for one in files} == {"valid"}


def test_a_ca_is_never_made_over_another(sealane: Sealane, tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    sealane("certs", "init", ca, "--trust-domain", "corp.example")
    key = (ca / "ca.key").read_bytes()
    again = sealane("certs", "init", ca, "--trust-domain", "corp.example", "--json")
    assert again.exit_code == 0
    assert last_object(again)["outcome"] == "exists"
    other = sealane("certs", "init", ca, "--trust-domain", "other.example")
    assert other.exit_code == 2
    assert "is not empty" in only_error_line(other)
    assert (ca / "ca.key").read_bytes() == key


def test_an_issuing_ca_with_passphrases_and_the_root_offline(sealane: Sealane, tmp_path: Path) -> None:
    root, issuing, secret = tmp_path / "root", tmp_path / "issuing", tmp_path / "passphrase"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    assert sealane(
        "certs", "init", root, "--trust-domain", "corp.example", "--passphrase-file", secret
    ).exit_code == 0  # fmt: skip
    refused = sealane("certs", "init-issuing", root, issuing)
    assert refused.exit_code == 2
    assert "passphrase" in only_error_line(refused)
    words = ("certs", "init-issuing", root, issuing, "--root-passphrase-file", secret, "--passphrase-file", secret)
    assert sealane(*words).exit_code == 0
    (root / "ca.key").rename(tmp_path / "in-the-safe")
    issued = sealane("certs", "issue", issuing, "host-a", "--passphrase-file", secret)
    assert issued.exit_code == 0, issued.output
    assert "passphrase" in only_error_line(sealane("certs", "issue-service", issuing, "nova"))
    issued = sealane("certs", "issue-service", issuing, "nova", "--passphrase-file", secret)
    assert issued.exit_code == 0, issued.output
    assert (issuing / "services/nova/service.key").exists()
    assert (issuing / "hosts/host-a/host.pem").read_text().count("BEGIN CERTIFICATE") == 2
    assert sealane("certs", "check", issuing).exit_code == 0
    secret.chmod(0o644)
    assert sealane("certs", "publish-crl", issuing, "--passphrase-file", secret).exit_code == 2


def test_what_is_wrong_in_a_folder_is_said_with_its_remedy(sealane: Sealane, tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    sealane("certs", "init", ca, "--trust-domain", "corp.example")
    (ca / "ca.key").chmod(0o644)
    found = sealane("certs", "check", ca, "--json")
    assert found.exit_code == 1
    (wrong,) = [each for each in last_object(found)["findings"] if each["status"] == "wrong"]
    assert "ca.key" in wrong["message"]
    assert wrong["remedy"]


def test_a_crl_by_hand_revokes_what_was_issued_by_hand(sealane: Sealane, tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    sealane("certs", "init", ca, "--trust-domain", "corp.example")
    sealane("certs", "issue", ca, "host-a")
    files = last_object(sealane("certs", "show", ca, "--json"))["files"]
    (serial,) = [one["serial"] for one in files if one["kind"] == "host"]
    assert sealane("certs", "publish-crl", ca, "--revoke-serial", serial, "--days", "30").exit_code == 0
    files = last_object(sealane("certs", "show", ca, "--json"))["files"]
    assert [one["state"] for one in files if one["kind"] == "host"] == ["revoked"]


def test_a_serial_is_shown_whole_and_what_it_revoked_is_said(sealane: Sealane, tmp_path: Path) -> None:
    root, issuing = tmp_path / "root", tmp_path / "issuing"
    sealane("certs", "init", root, "--trust-domain", "corp.example")
    sealane("certs", "init-issuing", root, issuing)
    sealane("certs", "issue", issuing, "host-a")
    (host,) = [one for one in shown(sealane, issuing) if one["kind"] == "host"]
    assert host["serial"] in sealane("certs", "show", issuing).stdout
    part = sealane("certs", "publish-crl", issuing, "--revoke-serial", host["serial"][:16])
    assert f"serial {host['serial'][:16]}, which no certificate in {issuing} has" in part.stdout
    whole = sealane("certs", "publish-crl", issuing, "--revoke-serial", host["serial"])
    assert "Revoked spiffe://corp.example/host/host-a" in whole.stdout
    assert "compare" not in whole.stdout
    (host,) = [one for one in shown(sealane, issuing) if one["kind"] == "host"]
    assert host["state"] == "revoked"


@pytest.mark.parametrize("serial", ["zz", "-1", "0", "0x12", "1_2", "f" * 56])
def test_a_serial_that_is_none_revokes_nothing(sealane: Sealane, tmp_path: Path, serial: str) -> None:
    ca = tmp_path / "ca"
    sealane("certs", "init", ca, "--trust-domain", "corp.example")
    result = sealane("certs", "publish-crl", ca, f"--revoke-serial={serial}")
    assert result.exit_code == 2
    assert "is no serial" in only_error_line(result)
    assert [one["name"] for one in shown(sealane, ca) if one["kind"] == "crl"] == ["0 revoked"]


def shown(sealane: Sealane, ca: Path) -> list[dict[str, str]]:
    return last_object(sealane("certs", "show", ca, "--json"))["files"]  # type: ignore[no-any-return]


def test_names_that_are_none_are_refused_in_one_line(sealane: Sealane, tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    for arguments in (
        ["init", ca, "--trust-domain", "Corp Example"],
        ["init", ca, "--trust-domain", "corp.example", "--log-origin", "a+b"],
        ["init", ca, "--trust-domain", "corp.example", "--ip", "localhost"],
        ["issue", ca, "host-a"],
        ["show", ca],
    ):
        result = sealane("certs", *arguments)
        assert result.exit_code == 2, arguments
        assert only_error_line(result)
        assert not ca.exists()
    sealane("certs", "init", ca, "--trust-domain", "corp.example")
    for name in ("../../etc", "Host_A", "", "a" * 64, "a\x1b[2J"):
        result = sealane("certs", "issue", ca, name)
        assert result.exit_code == 2
        assert only_error_line(result).rstrip("\n").isprintable()
    assert list((ca / "hosts").iterdir()) == []
