"""A relay's identity follows its files: whole pairs only, newer CRLs always, and never a step back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import Authority
from certs.enrolment import make_request, requested_key
from certs.errors import CertificateError, CredentialError, KeyFileError, PeerRefused
from certs.files import write_atomically, write_private_key
from certs.identity import SpiffeId
from certs.renewal import renewal_due, require_successor, retry_delay
from certs.tls import local_leaf_sha256
from transport.relay.config_sections import IdentitySection
from transport.relay.identity import Identity

NOW = datetime.now(UTC)


def pem_of(chain: object) -> bytes:
    assert isinstance(chain, list)
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


class Files:
    """A CA, and the files of host a below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "ca").mkdir()
        (folder / "crls").mkdir()
        self.ca = Authority.create(folder / "ca", "td.example", NOW)
        self.key = ec.generate_private_key(ec.SECP256R1())
        write_private_key(folder / "host.key", self.key)
        self.certify()
        self.fetch_crl()

    def certify(self, name: str = "a", hours: int = 24, key: ec.EllipticCurvePrivateKey | None = None) -> None:
        chain = self.ca.issue_host(name, (key or self.key).public_key(), NOW, timedelta(hours=hours))
        write_atomically(self.folder / "host.pem", pem_of(chain))

    def fetch_crl(self) -> None:
        write_atomically(self.folder / "crls" / "ca.pem", self.ca.crl_file.read_bytes())

    def section(self, peers: tuple[str, ...] = ()) -> IdentitySection:
        names = {name: str(self.folder / name) for name in ("host.pem", "host.key", "ca/ca.pem", "crls")}
        return IdentitySection(
            names["host.pem"], names["host.key"], names["ca/ca.pem"], [names["crls"]], peers=list(peers)
        )

    def identity(self, peers: tuple[str, ...] = ()) -> Identity:
        return Identity.open(self.section(peers), NOW)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_renewed_certificate_is_taken_and_sessions_keep_the_one_they_began_with(files: Files) -> None:
    identity = files.identity()
    began_with, context = identity.credentials, identity.context
    files.certify(hours=48)
    identity.reload(NOW)
    assert identity.credentials.chain[0] != began_with.chain[0]
    assert identity.context is not context
    assert identity.of_session(local_leaf_sha256(began_with)) is began_with


def test_a_key_and_a_certificate_of_different_pairs_change_nothing(files: Files) -> None:
    """What a rotating tool leaves between its two renames."""
    identity = files.identity()
    before = identity.credentials
    other = ec.generate_private_key(ec.SECP256R1())
    files.certify(key=other)
    with pytest.raises(KeyFileError, match="does not belong"):
        identity.reload(NOW)
    assert identity.credentials is before
    (files.folder / "host.key").unlink()
    write_private_key(files.folder / "host.key", other)
    identity.reload(NOW)
    assert identity.credentials.private_key.public_key() == other.public_key()


@pytest.mark.parametrize("file", ["host.pem", "ca/ca.pem", "crls/ca.pem"])
def test_half_a_file_changes_nothing(file: str, files: Files) -> None:
    identity = files.identity()
    before = identity.credentials
    whole = (files.folder / file).read_bytes()
    (files.folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CertificateError):
        identity.reload(NOW)
    assert identity.credentials is before


def test_a_certificate_that_has_expired_does_not_replace_one_that_works(files: Files) -> None:
    identity = files.identity()
    files.certify(hours=1)
    with pytest.raises(CredentialError, match="would be refused"):
        identity.reload(NOW + timedelta(hours=2))
    assert identity.credentials.chain[0].not_valid_after_utc > NOW + timedelta(hours=2)


def test_a_crl_that_revokes_this_very_host_is_taken_all_the_same(files: Files) -> None:
    identity = files.identity()
    before = identity.credentials.crl_number
    files.ca.revoke(identity.credentials.chain[0].serial_number, NOW)
    files.fetch_crl()
    identity.reload(NOW)
    assert identity.credentials.crl_number > before


def test_a_crl_of_a_lower_number_never_replaces_one_that_is_held(files: Files) -> None:
    identity = files.identity()
    old = files.ca.crl_file.read_text()
    files.ca.publish_crl(NOW)
    new = files.ca.crl_file.read_text()
    assert identity.keep_crls([new]) == 1
    assert identity.keep_crls([old]) == 0
    assert identity.keep_crls([new]) == 0
    identity.reload(NOW)
    assert identity.credentials.crl_number == 2


@pytest.mark.parametrize("texts", [["no CRL"], [""], ["x"] * 17])
def test_what_is_no_crl_is_refused(texts: list[str], files: Files) -> None:
    identity = files.identity()
    with pytest.raises(CredentialError):
        identity.keep_crls(texts)


def test_a_relay_speaks_only_with_the_peers_of_its_list(files: Files) -> None:
    identity = files.identity(("spiffe://td.example/host/b",))
    identity.require_listed(SpiffeId("td.example", "b"))
    with pytest.raises(PeerRefused, match="not-listed"):
        identity.require_listed(SpiffeId("td.example", "c"))
    files.identity().require_listed(SpiffeId("td.example", "c"))


def test_renewals_are_due_at_two_thirds_of_the_lifetime_or_a_tenth_earlier(files: Files) -> None:
    leaf = files.identity().credentials.chain[0]
    begin, life = leaf.not_valid_before_utc, leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert renewal_due(leaf, 0.0) == begin + life * (2 / 3)
    assert begin + life * 0.56 < renewal_due(leaf, 0.999) < renewal_due(leaf, 0.5) < renewal_due(leaf, 0.0)


def test_failed_renewals_are_tried_again_more_and_more_rarely_but_within_ten_minutes() -> None:
    delays = [retry_delay(failures, 1.0) for failures in range(12)]
    assert delays == sorted(delays)
    assert delays[0] == timedelta(seconds=15)
    assert delays[-1] == timedelta(minutes=10)


def test_a_successor_is_of_the_same_host_and_key_and_lasts_longer(files: Files) -> None:
    held = files.identity().credentials
    day, other = timedelta(hours=30), ec.generate_private_key(ec.SECP256R1())
    require_successor(held, tuple(files.ca.issue_host("a", files.key.public_key(), NOW, day)), NOW)
    for chain in (
        files.ca.issue_host("b", files.key.public_key(), NOW, day),
        files.ca.issue_host("a", other.public_key(), NOW, day),
        files.ca.issue_host("a", files.key.public_key(), NOW, timedelta(hours=1)),
        [],
    ):
        with pytest.raises(CredentialError):
            require_successor(held, tuple(chain), NOW)
    (files.folder / "foreign").mkdir()
    foreign = Authority.create(files.folder / "foreign", "td.example", NOW)
    with pytest.raises(CredentialError, match="would be refused"):
        require_successor(held, tuple(foreign.issue_host("a", files.key.public_key(), NOW, day)), NOW)


def test_an_issuing_ca_below_the_root_issues_what_peers_with_the_root_alone_accept(tmp_path: Path) -> None:
    for name in ("root", "issuing", "crls"):
        (tmp_path / name).mkdir()
    passphrase = b"correct horse battery"
    root = Authority.create(tmp_path / "root", "td.example", NOW, passphrase)
    root.create_issuing(tmp_path / "issuing", NOW, passphrase=passphrase)
    issuing = Authority.load(tmp_path / "issuing", passphrase)
    for name in ("crl.pem", "root-crl.pem"):
        write_atomically(tmp_path / "crls" / name, (tmp_path / "issuing" / name).read_bytes())
    key = ec.generate_private_key(ec.SECP256R1())
    write_private_key(tmp_path / "host.key", key)
    write_atomically(tmp_path / "host.pem", pem_of(issuing.issue_host("a", requested_key(make_request(key)), NOW)))
    host, key_file, bundle = (str(tmp_path / name) for name in ("host.pem", "host.key", "issuing/root.pem"))
    section = IdentitySection(host, key_file, bundle, [str(tmp_path / "crls")])
    identity = Identity.open(section, NOW)
    assert len(identity.credentials.chain) == 2
    issuing.publish_crl(NOW)
    write_atomically(tmp_path / "crls" / "crl.pem", issuing.crl_file.read_bytes())
    identity.reload(NOW)
    assert identity.credentials.crl_number == 2  # of the CA that issues hosts, not of the root, whose key is away
    (tmp_path / "next").mkdir()
    root.create_issuing(tmp_path / "next", NOW, passphrase=passphrase)
    following = Authority.load(tmp_path / "next", passphrase)
    write_atomically(tmp_path / "crls" / "next-crl.pem", following.crl_file.read_bytes())
    identity.reload(NOW)
    require_successor(identity.credentials, tuple(following.issue_host("a", key.public_key(), NOW)), NOW)
    for authority, lifetime in ((issuing, timedelta(hours=24)), (following, timedelta(hours=23))):
        with pytest.raises(CredentialError, match="does not last longer"):
            require_successor(
                identity.credentials, tuple(authority.issue_host("a", key.public_key(), NOW, lifetime)), NOW
            )
    root.revoke_all([issuing.certificate.serial_number], NOW)
    write_atomically(tmp_path / "crls" / "root-crl.pem", root.crl_file.read_bytes())
    with pytest.raises(CredentialError, match="revoked"):
        Identity.open(section, NOW)
    with pytest.raises(KeyFileError, match="passphrase"):
        Authority.load(tmp_path / "issuing", b"wrong horse battery")
    with pytest.raises(KeyFileError, match="passphrase"):
        Authority.load(tmp_path / "issuing")
    assert (tmp_path / "issuing" / "ca.key").stat().st_mode & 0o077 == 0
