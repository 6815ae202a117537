"""What `sealane certs init` lays down: whole or not at all, keys private, every part usable for its purpose."""

from __future__ import annotations

import base64
import hashlib
import shutil
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from certs import layout
from certs.authority import Authority
from certs.credentials import HostCredentials
from certs.errors import CertificateError, CredentialError
from certs.files import read_certificates, read_private_key
from tests.certs.chains import DAY, NOW, client_connection, meet, server_connection

ORIGIN = "corp.example/audit"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    directory = tmp_path / "ca"
    layout.init(directory, "corp.example", ORIGIN, ["gw.corp.example"], ["127.0.0.1"], NOW)
    return directory


def load(site: Path, name: str) -> HostCredentials:
    folder = site / "hosts" / name
    return HostCredentials.load(folder / "host.pem", folder / "host.key", site / "ca.pem", [site / "crl.pem"])


def test_everything_is_where_it_is_documented_and_keys_are_private(site: Path) -> None:
    layout.issue_host(site, "host-a", NOW)
    found = {
        str(file.relative_to(site)): stat.S_IMODE(file.stat().st_mode) for file in site.rglob("*") if file.is_file()
    }
    public = ["ca.pem", "crl.pem", "gateway/tls.pem", "gateway/permit.pub", "gateway/log.vkey", "hosts/host-a/host.pem"]
    private = ["ca.key", "gateway/tls.key", "gateway/permit.key", "gateway/log.key", "hosts/host-a/host.key"]
    assert found == dict.fromkeys(public, 0o644) | dict.fromkeys(private, 0o600)
    assert [file.name for file in site.parent.iterdir()] == ["ca"]


def test_two_hosts_of_a_site_accept_each_other(site: Path) -> None:
    for name in ("host-a", "host-b"):
        layout.issue_host(site, name, NOW)
    source, destination = load(site, "host-a"), load(site, "host-b")
    meeting = meet(client_connection(source), server_connection(destination))
    assert meeting.peer_of_client(source).spiffe_id.name == "host-b"
    assert meeting.peer_of_server(destination).spiffe_id.name == "host-a"


def test_each_key_fits_its_public_half(site: Path) -> None:
    gateway = site / "gateway"
    permit, log, tls = (read_private_key(gateway / f"{name}.key") for name in ("permit", "log", "tls"))
    assert isinstance(permit, ec.EllipticCurvePrivateKey)
    assert permit.curve.name == "secp256r1"
    assert load_pem_public_key((gateway / "permit.pub").read_bytes()) == permit.public_key()
    assert read_certificates(gateway / "tls.pem")[0].public_key() == tls.public_key()
    assert isinstance(log, ed25519.Ed25519PrivateKey)


def test_the_log_key_line_is_a_c2sp_verifier_key(site: Path) -> None:
    line = (site / "gateway" / "log.vkey").read_text()
    name, key_id, encoded = line.removesuffix("\n").split("+", 2)
    key = base64.b64decode(encoded, validate=True)
    log = read_private_key(site / "gateway" / "log.key")
    assert isinstance(log, ed25519.Ed25519PrivateKey)
    assert name == ORIGIN
    assert key == b"\x01" + log.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert key_id == hashlib.sha256(ORIGIN.encode() + b"\n" + key).hexdigest()[:8]


def test_the_verifier_key_of_the_specifications_example() -> None:
    """golang.org/x/mod/sumdb/note documents PeterNeumann's key; its id is computed here as there."""
    text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    key = base64.b64decode(text.split("+", 2)[2])
    public = ed25519.Ed25519PublicKey.from_public_bytes(key[1:])
    assert layout.verifier_key("PeterNeumann", public) == text


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "a\u00a0b", "a\u2028b", "a\x00b"])
def test_a_bad_log_origin_is_refused(origin: str, tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="log origin"):
        layout.init(tmp_path / "ca", "corp.example", origin, ["gw"], [], NOW)
    assert list(tmp_path.iterdir()) == []


def test_an_init_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="gateway"):
        layout.init(tmp_path / "ca", "corp.example", ORIGIN, [], ["not an address"], NOW)
    assert list(tmp_path.iterdir()) == []


def test_an_issuing_ca_that_was_made_half_is_not_taken_for_one(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuing = tmp_path / "issuing"
    with monkeypatch.context() as patch:
        patch.setattr(
            Authority, "publish_crl", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(OSError, match="No space"):
            layout.init_issuing(site, issuing, NOW)
    with pytest.raises(CredentialError, match="half of an issuing CA"):
        layout.init_issuing(site, issuing, NOW)
    shutil.rmtree(issuing)
    assert layout.init_issuing(site, issuing, NOW)
    assert not layout.init_issuing(site, issuing, NOW)


def test_a_second_init_touches_nothing(site: Path) -> None:
    before = (site / "ca.pem").read_bytes()
    with pytest.raises(CredentialError, match="not empty"):
        layout.init(site, "other.example", ORIGIN, ["gw"], [], NOW)
    assert (site / "ca.pem").read_bytes() == before


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    layout.init(tmp_path / "ca", "corp.example", ORIGIN, ["gw"], [], NOW)
    assert Authority.load(tmp_path / "ca").trust_domain == "corp.example"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/b", "..", "", "UPPER"])
def test_a_host_name_that_would_leave_the_folder_makes_no_file(name: str, site: Path) -> None:
    before = sorted(site.parent.rglob("*"))
    for issue in (layout.issue_host, layout.issue_service):
        with pytest.raises(CertificateError):
            issue(site, name, NOW)
    assert sorted(site.parent.rglob("*")) == before


def test_a_renewal_keeps_the_key_and_renews_the_crl(site: Path) -> None:
    first = layout.issue_host(site, "host-a", NOW)
    later = layout.issue_host(site, "host-a", NOW + 3 * DAY, timedelta(hours=2))
    assert first.public_key() == later.public_key()
    assert first.serial_number != later.serial_number
    load(site, "host-a").require_usable(NOW + 3 * DAY + timedelta(hours=1))


def test_the_facts_say_what_is_valid_expired_revoked_and_stale(site: Path) -> None:
    leaf = layout.issue_host(site, "host-a", NOW)
    layout.issue_host(site, "host-b", NOW)

    def states(now_in_days: int) -> list[tuple[str, str]]:
        return [(fact.file, fact.state) for fact in layout.describe(site, NOW + now_in_days * DAY)]

    files = ["ca.pem", "crl.pem", "gateway/tls.pem", "hosts/host-a/host.pem", "hosts/host-b/host.pem"]
    assert states(0) == [(file, "valid") for file in files]
    assert [state for _, state in states(-1)] == [
        "not yet valid",
        "stale",
        "not yet valid",
        "not yet valid",
        "not yet valid",
    ]
    assert [state for _, state in states(8)] == ["valid", "stale", "valid", "expired", "expired"]
    Authority.load(site).revoke(leaf.serial_number, NOW)
    assert [state for _, state in states(0)] == ["valid", "valid", "valid", "revoked", "valid"]
    host = layout.describe(site, NOW)[3]
    assert (host.kind, host.name, host.serial) == (
        "host",
        "spiffe://corp.example/host/host-a",
        f"{leaf.serial_number:x}",
    )


def test_a_folder_that_is_no_ca_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=r"ca\.pem"):
        layout.describe(tmp_path, NOW)
    with pytest.raises(CredentialError, match=r"ca\.pem"):
        layout.issue_host(tmp_path, "host-a", NOW)
