"""A new root is believed where an old one signed for it, and nowhere else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from certs.authority import INTRODUCTIONS, Authority
from certs.errors import CredentialError
from certs.files import read_certificates
from certs.introduction import MAX_INTRODUCTIONS, introduced_roots

NOW = datetime.now(UTC)
DOMAIN = "bank.example"


@pytest.fixture
def root(tmp_path: Path) -> Authority:
    return made(tmp_path / "root")


def made(folder: Path, domain: str = DOMAIN) -> Authority:
    folder.mkdir()
    return Authority.create(folder, domain, NOW)


def successor(root: Authority, folder: Path) -> tuple[Authority, tuple[x509.Certificate, ...]]:
    folder.mkdir()
    new = root.create_successor(folder, NOW)
    return new, read_certificates(folder / INTRODUCTIONS)


def test_a_root_that_the_old_one_introduces_is_taken(root: Authority, tmp_path: Path) -> None:
    new, introductions = successor(root, tmp_path / "new")
    told = (root.certificate, new.certificate)
    assert introduced_roots([root.certificate], told, introductions, NOW) == (new.certificate,)


def test_who_was_away_during_two_rollovers_follows_the_chain(root: Authority, tmp_path: Path) -> None:
    second, _ = successor(root, tmp_path / "second")
    third, introductions = successor(second, tmp_path / "third")
    assert len(introductions) == 2
    assert introduced_roots([root.certificate], [third.certificate], introductions, NOW) == (third.certificate,)
    backwards = introductions[::-1]
    assert introduced_roots([root.certificate], [third.certificate], backwards, NOW) == (third.certificate,)
    with pytest.raises(CredentialError, match="introduces"):
        introduced_roots([root.certificate], [third.certificate], introductions[1:], NOW)


def test_a_root_is_not_taken_without_an_introduction_by_one_that_is_trusted(root: Authority, tmp_path: Path) -> None:
    stranger = made(tmp_path / "stranger")
    pupil, by_stranger = successor(stranger, tmp_path / "pupil")
    for told, introductions in (
        ([stranger.certificate], ()),
        ([pupil.certificate], by_stranger),
        ([stranger.certificate], (stranger.certificate,)),  # it introduces itself
    ):
        with pytest.raises(CredentialError, match="introduces"):
            introduced_roots([root.certificate], told, introductions, NOW)


def test_an_introduction_is_of_one_name_and_key_for_its_time_and_its_trust_domain(
    root: Authority, tmp_path: Path
) -> None:
    new, introductions = successor(root, tmp_path / "new")
    other = made(tmp_path / "other")
    with pytest.raises(CredentialError, match="introduces"):
        introduced_roots([root.certificate], [other.certificate], introductions, NOW)
    for moment in (NOW - timedelta(hours=1), NOW + timedelta(days=4000)):
        with pytest.raises(CredentialError, match="introduces"):
            introduced_roots([root.certificate], [new.certificate], introductions, moment)
    foreign = made(tmp_path / "foreign", "elsewhere.example")
    foreign_new, foreign_introductions = successor(foreign, tmp_path / "foreign-new")
    mixed = (root.certificate, foreign_new.certificate)
    with pytest.raises(CredentialError, match="introduces"):
        introduced_roots([root.certificate], mixed, foreign_introductions, NOW)


def test_a_certificate_of_a_host_or_of_an_issuing_ca_introduces_nobody(root: Authority, tmp_path: Path) -> None:
    """Both are signed by the root, and neither is what it says of the next one."""
    (tmp_path / "issuing").mkdir()
    issuing = root.create_issuing(tmp_path / "issuing", NOW)
    with pytest.raises(CredentialError, match="is no root"):
        introduced_roots([root.certificate], [issuing.certificate], [issuing.certificate], NOW)


def test_their_number_is_bounded(root: Authority, tmp_path: Path) -> None:
    _, introductions = successor(root, tmp_path / "new")
    with pytest.raises(CredentialError, match="roots"):
        introduced_roots([root.certificate], [root.certificate], introductions * (MAX_INTRODUCTIONS + 1), NOW)
