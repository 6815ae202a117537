"""`sealane certs`."""

from __future__ import annotations

from pathlib import Path

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
    again = sealane("certs", "init", ca, "--trust-domain", "corp.example")
    assert again.exit_code == 2
    assert "is not empty" in only_error_line(again)
    assert (ca / "ca.key").read_bytes() == key


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
