"""What will go wrong soon with keys and certificates, each fault made and named with its remedy."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from certs import layout
from certs.authority import Authority
from certs.changes import marks_of
from certs.files import read_private_key, write_private_key
from gateway.cli.certs import check
from gateway.doctor.credentials import OF_A_HOST, certificate_findings, crl_findings
from gateway.doctor.finding import Finding
from gateway.doctor.gateway_host import gateway_host_findings
from gateway.doctor.pairs import name_finding, pair_findings
from gateway.doctor.relay_host import relay_host_findings
from gateway.doctor.service_user import as_service_user
from gateway.errors import StartRefused
from gateway.starter import Site
from tests.gateway.cli.invoking import invoke
from tests.gateway.rolling_site import rolling_site
from tests.gateway.test_watch import edit


def of(found: list[Finding], check: str, status: str) -> list[Finding]:
    return [each for each in found if (each.check, each.status) == (check, status)]


def gateway(site: Site) -> list[Finding]:
    return list(gateway_host_findings(site.gateway_config, Path("/"), datetime.now(UTC)))


def test_a_key_of_another_pair_and_a_weak_one(site: Site, tmp_path: Path) -> None:
    folder = site.host_folder("a")
    (found,) = pair_findings(folder / "host.pem", folder / "host.key")
    assert found.status == "ok"
    (found,) = pair_findings(folder / "host.pem", site.host_folder("b") / "host.key")
    assert (found.status, "not the key" in found.message) == ("wrong", True)
    weak = rsa.generate_private_key(65537, 2048)
    write_private_key(tmp_path / "weak.key", weak)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = (
        builder.not_valid_before(datetime.now(UTC))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .public_key(weak.public_key())
    )
    pem = builder.sign(weak, hashes.SHA256()).public_bytes(Encoding.PEM)
    (tmp_path / "weak.pem").write_bytes(pem)
    (found,) = pair_findings(tmp_path / "weak.pem", tmp_path / "weak.key")
    assert (found.status, "weak" in found.message) == ("wrong", True)


def test_of_a_key_or_certificate_that_is_not_there_it_is_said_who_makes_it(site: Site) -> None:
    """`chmod 600` was the remedy for a key that nobody had made yet."""
    makers = {
        site.host_folder("a") / "host.key": "sealane relay enrol",
        site.host_folder("a") / "host.pem": "sealane relay enrol",
        site.certs / "gateway" / "tls.key": "sealane certs init",
        site.certs / "gateway" / "tls.pem": "sealane certs init",
        site.directory / "token.key": "docs/identity.md",
    }
    for missing in makers:
        missing.unlink()
    found = [*relay_host_findings(site.relay_config("a"), Path("/"), datetime.now(UTC)), *gateway(site)]
    named = {path: next(each for each in found if each.message.startswith(f"{path}: ")) for path in makers}
    assert {path: maker in named[path].remedy for path, maker in makers.items()} == dict.fromkeys(makers, True)
    assert not any("chmod" in each.remedy for each in named.values())


def test_the_name_by_which_the_gateway_is_called(site: Site) -> None:
    tls = site.certs / "gateway" / "tls.pem"
    known, unknown = name_finding(tls, "127.0.0.1"), name_finding(tls, "gateway.elsewhere.example")
    assert known is not None
    assert unknown is not None
    assert (known.status, unknown.status) == ("ok", "attention")
    assert "elsewhere" in unknown.message


def test_root_sees_a_gateways_files_as_the_user_whom_it_runs_as(site: Site) -> None:
    """As root it once advised to give the keys to root: the gateway could not have read them."""
    service = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # a folder of pytest's is root's alone
        shutil.copytree(site.directory, folder / "site")
        (folder / "site" / "state").mkdir(mode=0o700)
        config = folder / "site" / site.gateway_config.name
        keys = sorted((folder / "site").rglob("gateway/*.key"))
        assert len(keys) >= 2
        for each in (folder / "site", *(folder / "site").rglob("*")):
            os.chown(each, service.pw_uid, service.pw_gid)

        def wrong() -> list[Finding]:
            found = gateway_host_findings(config, Path("/"), datetime.now(UTC))
            return [each for each in found if each.status == "wrong"]

        assert wrong() == []
        check(folder / "site" / "certs")  # sealane certs check
        for key in keys:
            os.chown(key, 0, 0)
        with pytest.raises(typer.Exit):
            check(folder / "site" / "certs")
        assert {each.check for each in wrong()} == {"private_key"}
        assert all(f"chown {service.pw_uid} " in each.message for each in wrong())
        assert os.geteuid() == 0


def test_what_the_gateway_may_not_even_look_at_is_named_and_ends_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of root's alone, as a first `certs init-issuing` made it: the doctor and the gateway died of it."""
    service = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(site.directory, folder / "site")
        (folder / "site" / "state").mkdir(mode=0o700)
        for each in (folder / "site", *(folder / "site").rglob("*")):
            os.chown(each, service.pw_uid, service.pw_gid)
        certs = folder / "site" / "certs"
        os.chown(certs, 0, 0)
        certs.chmod(0o700)
        found = gateway_host_findings(folder / "site" / site.gateway_config.name, Path("/"), datetime.now(UTC))
        assert [each.message for each in found if each.check == "crl"] == [
            f"{certs}/crl.pem: cannot be read (Permission denied); check the path and its permissions"
        ]
        monkeypatch.setattr("gateway.cli.doctor.FOLDER", certs)
        with as_service_user(folder / "site" / "state"):
            assert marks_of([certs / "crl.pem"]) == ((str(certs / "crl.pem"), 0, 0, 0, 0),)
            for command in (["doctor"], ["certs", "check", str(certs)]):
                refused = invoke(*command)
                assert refused.exit_code == 2
                assert f"{certs}: Permission denied; the operator must act; run as root" in refused.stderr


def test_root_that_may_not_take_the_users_place_says_so(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", 54321, 54321)  # whom no user database knows

    def denied(uid: int) -> None:
        if uid:
            raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "seteuid", denied)
    with pytest.raises(StartRefused, match="as user 54321, who owns"), as_service_user(tmp_path / "state"):
        pytest.fail("judged as root")


def test_what_ends_soon_is_said_before_it_ends(site: Site) -> None:
    certificate = site.host_folder("a") / "host.pem"
    leaf = layout.issue_host(site.certs, "a", datetime.now(UTC), timedelta(hours=24))
    late = leaf.not_valid_after_utc - timedelta(hours=3)
    assert [each.status for each in certificate_findings(certificate, late, OF_A_HOST)] == ["attention"]
    crl = site.certs / "crl.pem"
    Authority.load(site.certs).publish_crl(datetime.now(UTC))
    assert [each.status for each in crl_findings([crl], datetime.now(UTC) + timedelta(days=6))] == ["attention"]


def test_a_host_with_a_clock_of_another_day_is_told_to_look_at_it(site: Site) -> None:
    layout.issue_host(site.certs, "a", datetime.now(UTC), timedelta(hours=24))
    config = site.relay_config("a")
    edit(config, lambda text: text.replace('url = "https://127.0.0.1:0"', 'url = "https://127.0.0.1:1"'))
    found = list(relay_host_findings(config, Path("/"), datetime.now(UTC) + timedelta(days=3)))
    (identity,) = of(found, "identity", "wrong")
    assert "clock" in identity.message
    assert of(found, "gateway", "wrong")  # nobody answers there
    assert all(each.remedy for each in found if each.status == "wrong")


def test_an_authority_that_cannot_issue(tmp_path: Path) -> None:
    site = rolling_site(tmp_path / "site")
    assert of(gateway(site), "authority", "ok")
    (site.directory / "issuing" / "ca.key").chmod(0o644)
    (found,) = of(gateway(site), "authority", "wrong")
    assert "open to other users" in found.message
    assert found.remedy


def test_a_rollover_that_was_left_half_way(tmp_path: Path) -> None:
    site = rolling_site(tmp_path / "site")
    assert not of(gateway(site), "rollover", "attention")
    issuing = site.directory / "issuing"
    layout.init_issuing(site.certs, issuing.with_name("issuing.next"), datetime.now(UTC))
    issuing.with_name("issuing.next.begun").touch()
    (found,) = of(gateway(site), "rollover", "attention")
    assert "begun" in found.message


@pytest.mark.parametrize("name", ["permit.key", "log.key"])
def test_a_signing_key_with_a_passphrase_is_tried_as_the_gateway_does(site: Site, name: str) -> None:
    path, secret = site.certs / "gateway" / name, site.directory / "pass"
    key = read_private_key(path)
    path.unlink()
    write_private_key(path, key, b"a passphrase of some length")
    assert any(name in each.message for each in of(gateway(site), "private_key", "wrong"))
    secret.write_bytes(b"a passphrase of some length\n")
    secret.chmod(0o600)
    line = f'signing_key = "certs/gateway/{name}"'
    edit(site.gateway_config, lambda text: text.replace(line, f'{line}\npassphrase_file = "pass"'))
    assert not of(gateway(site), "private_key", "wrong")
