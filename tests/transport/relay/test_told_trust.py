"""What a gateway tells of trust: newer CRLs and letting go on its word, a new root only by introduction."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certs.authority import INTRODUCTIONS, Authority
from certs.crl_folder import FORMER, MAX_CRLS, MAX_FOREIGN_BYTES, MAX_KNOWN, keep_crls, put_away
from certs.errors import CredentialError
from certs.files import (
    crl_files,
    read_certificates,
    read_crl,
    read_private_key,
    write_atomically,
    write_private_key,
)
from certs.introduction import authority_key_id, crl_id, root_id
from transport.relay.config_sections import IdentitySection, SiteSection
from transport.relay.identity import Identity
from transport.relay.told_trust import ToldTrust, TrustNews

NOW = datetime.now(UTC)


@dataclass
class Place:
    """A host that an issuing CA below `root` certified, and the gateway's words to it."""

    folder: Path
    root: Authority
    issuing: Authority
    identity: Identity

    @property
    def gateway_bundle(self) -> Path:
        return self.folder / "gateway-root.pem"

    def hears(self, **told: Any) -> Any:
        words = ToldTrust(version="v", **{"roots": pem(self.root), "crls": [], **told})
        return TrustNews(self.identity, self.gateway_bundle, words, NOW).take()

    def roots(self) -> list[str]:
        return [root_id(root) for root in read_certificates(Path(self.identity.section.trust_bundle))]


def pem(*authorities: Authority) -> str:
    return "".join(each.certificate.public_bytes(Encoding.PEM).decode() for each in authorities)


def crl(authority: Authority) -> str:
    return authority.crl_file.read_text()


def crl_name(authority: Authority) -> str:
    return crl_id(authority_key_id(read_crl(authority.crl_file)))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Place:
    root = Authority.create(made(tmp_path / "root"), "bank.example", NOW)
    issuing = root.create_issuing(made(tmp_path / "issuing"), NOW)
    host, key = made(tmp_path / "host"), ec.generate_private_key(ec.SECP256R1())
    made(host / "crls")
    write_private_key(host / "host.key", key)
    chain = issuing.issue_host("a", key.public_key(), NOW, timedelta(hours=24))
    write_atomically(host / "host.pem", b"".join(each.public_bytes(Encoding.PEM) for each in chain))
    for name in ("roots.pem", "gateway-root.pem"):
        write_atomically(host / name, pem(root).encode())
    keep_crls(host / "crls", [crl(root), crl(issuing)], [root.certificate, issuing.certificate])
    names = {"certificate": "host.pem", "private_key": "host.key", "trust_bundle": "roots.pem"}
    paths: dict[str, Any] = {key: str(host / name) for key, name in names.items()}
    section = IdentitySection(**paths, crls=[str(host / "crls")])
    return Place(host, root, issuing, Identity.open(section, NOW))


def test_a_root_comes_by_introduction_to_hosts_and_for_the_gateway(place: Place, tmp_path: Path) -> None:
    new = place.root.create_successor(made(tmp_path / "new"), NOW)
    introductions = [(tmp_path / "new" / INTRODUCTIONS).read_text()]
    taken = place.hears(roots=pem(place.root, new), introductions=introductions, crls=[crl(new)])
    assert (taken.any, taken.gateway_roots, taken.refused) == (True, True, None)
    assert place.roots() == [root_id(place.root.certificate), root_id(new.certificate)]
    assert [root_id(each) for each in read_certificates(place.gateway_bundle)] == place.roots()


def test_a_stolen_tls_key_alone_adds_no_root_and_the_crls_are_taken_all_the_same(place: Place, tmp_path: Path) -> None:
    thief = Authority.create(made(tmp_path / "thief"), "bank.example", NOW)
    thief.create_successor(made(tmp_path / "pupil"), NOW)
    own = [(tmp_path / "pupil" / INTRODUCTIONS).read_text()]
    place.issuing.revoke(7, NOW)
    before = place.roots()
    taken = place.hears(roots=pem(place.root, thief), introductions=own, crls=[crl(place.issuing)])
    assert "introduces" in str(taken.refused)
    assert taken.any  # the newer CRL
    assert place.roots() == before
    place.identity.reload(NOW)
    assert place.identity.credentials.crl_number == 2


def test_nothing_is_let_go_that_this_host_itself_needs(place: Place) -> None:
    root, held = place.root, sorted((place.folder / "crls").glob("*.pem"))
    for retired in ([root_id(root.certificate)], [crl_name(place.issuing)], [crl_name(root)]):
        assert place.hears(retired=retired).refused is not None
        assert place.roots() == [root_id(root.certificate)]
        assert sorted((place.folder / "crls").glob("*.pem")) == held


def test_a_crl_that_was_let_go_does_not_come_back_with_a_lower_number(place: Place, tmp_path: Path) -> None:
    other = place.root.create_issuing(made(tmp_path / "other"), NOW)
    first = crl(other)
    other.revoke(7, NOW)
    place.hears(crls=[crl(other)])
    place.hears(retired=[crl_name(other)])
    assert len(list((place.folder / "crls").glob("*.pem"))) == 2
    assert len(list((place.folder / "crls" / FORMER).glob("*.pem"))) == 1
    assert not place.hears(crls=[first]).any
    other.publish_crl(NOW)
    assert place.hears(crls=[crl(other)]).any


def test_what_cannot_be_read_is_refused(place: Place) -> None:
    assert place.hears(roots="no PEM").refused is not None
    assert place.hears(introductions=["no PEM"]).refused is not None
    with pytest.raises(CredentialError):
        place.hears(crls=["no PEM"])


def test_another_cas_certificate_of_the_gateway_is_left_as_it_is(place: Place, tmp_path: Path) -> None:
    elsewhere = Authority.create(made(tmp_path / "elsewhere"), "other.example", NOW)
    write_atomically(place.gateway_bundle, pem(elsewhere).encode())
    new = place.root.create_successor(made(tmp_path / "new"), NOW)
    introductions = [(tmp_path / "new" / INTRODUCTIONS).read_text()]
    taken = place.hears(roots=pem(place.root, new), introductions=introductions, crls=[crl(new)])
    assert (taken.any, taken.gateway_roots) == (True, False)
    assert place.gateway_bundle.read_text() == pem(elsewhere)


def forged(authority: Authority, number: int) -> str:
    """As `authority` would publish it, key identifier and all, by another key."""
    true = read_crl(authority.crl_file)
    built = x509.CertificateRevocationListBuilder().issuer_name(true.issuer)
    built = built.last_update(NOW).next_update(NOW + timedelta(days=1))
    known = true.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    built = built.add_extension(known, critical=False).add_extension(x509.CRLNumber(number), critical=False)
    return built.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize("of", ["root", "issuing"])
def test_a_crl_that_its_ca_has_not_signed_is_refused_whatever_its_number(of: str, place: Place) -> None:
    authority: Authority = getattr(place, of)
    held = {file: file.read_bytes() for file in (place.folder / "crls").glob("*.pem")}
    with pytest.raises(CredentialError, match="has not signed"):
        place.hears(crls=[forged(authority, 2**40)])
    assert {file: file.read_bytes() for file in (place.folder / "crls").glob("*.pem")} == held


def test_a_forged_crl_that_was_taken_before_its_ca_was_known_gives_way(place: Place, tmp_path: Path) -> None:
    """The issuing CA of a rollover that has begun: no host has a certificate of it yet."""
    coming = place.root.create_issuing(made(tmp_path / "coming"), NOW)
    folder = made(tmp_path / "crls")
    assert keep_crls(folder, [forged(coming, 2**40)], place.identity.credentials.authorities) == 1
    assert keep_crls(folder, [crl(coming)], (*place.identity.credentials.authorities, coming.certificate)) == 1
    assert [file.read_text() for file in folder.glob("*.pem")] == [crl(coming)]


def test_the_crl_of_a_successor_with_the_same_name_is_not_taken_for_forged(place: Place, tmp_path: Path) -> None:
    other = Authority.create(made(tmp_path / "other"), "bank.example", NOW)
    assert keep_crls(made(tmp_path / "crls"), [crl(other)], place.identity.credentials.authorities) == 1


def of_nobody(names: range, number: int = 1, padding_bytes: int = 0) -> list[str]:
    """CRLs of CAs that no host knows."""
    key = ec.generate_private_key(ec.SECP256R1())
    built = x509.CertificateRevocationListBuilder().last_update(NOW).next_update(NOW + timedelta(days=1))
    built = built.add_extension(x509.CRLNumber(number), critical=False)
    if padding_bytes:
        unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.11129.2"), bytes(padding_bytes))
        built = built.add_extension(unknown, critical=False)
    issuers = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"CA {name}")]) for name in names)
    signed = (built.issuer_name(issuer).sign(key, hashes.SHA256()) for issuer in issuers)
    return [each.public_bytes(Encoding.PEM).decode() for each in signed]


def test_cas_that_are_made_up_fill_no_disk_and_no_place_of_a_known_one(place: Place) -> None:
    crls = place.folder / "crls"
    place.hears(crls=of_nobody(range(MAX_CRLS - 2)))
    with pytest.raises(CredentialError, match="takes none of another"):
        place.hears(crls=of_nobody(range(100, 101)))
    assert len(crl_files(crls)) == MAX_CRLS
    assert place.hears(crls=of_nobody(range(1), number=2)).any
    root = next(file for file in crl_files(crls) if read_crl(file) == read_crl(place.root.crl_file))
    root.unlink()
    place.hears(crls=of_nobody(range(100, 101)))
    assert place.hears(crls=[crl(place.root)]).any


def test_nor_do_they_after_they_were_retired(tmp_path: Path) -> None:
    folder = made(tmp_path / "crls")
    for begin in range(0, MAX_KNOWN, MAX_CRLS):
        put_away(crl_files(folder))
        keep_crls(folder, of_nobody(range(begin, begin + MAX_CRLS)), ())
    put_away(crl_files(folder))
    with pytest.raises(CredentialError, match=f"0 CAs and of {MAX_KNOWN} retired ones"):
        keep_crls(folder, of_nobody(range(MAX_KNOWN, MAX_KNOWN + 1)), ())
    assert keep_crls(folder, of_nobody(range(1), number=2), ()) == 1


def naming_keys(authority: Authority, names: range) -> list[str]:
    """As `authority` signs them, each for another key that it does not have."""
    key = read_private_key(authority.directory / "ca.key")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    built = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    built = built.last_update(NOW).next_update(NOW + timedelta(days=1)).add_extension(x509.CRLNumber(1), critical=False)
    named = (x509.AuthorityKeyIdentifier(name.to_bytes(20), None, None) for name in names)
    signed = (built.add_extension(each, critical=False).sign(key, hashes.SHA256()) for each in named)
    return [each.public_bytes(Encoding.PEM).decode() for each in signed]


def test_nor_does_a_known_ca_that_names_ever_new_keys(tmp_path: Path) -> None:
    root, folder = Authority.create(made(tmp_path / "root"), "east.example", NOW), made(tmp_path / "crls")
    assert keep_crls(folder, naming_keys(root, range(MAX_CRLS)), [root.certificate]) == MAX_CRLS
    with pytest.raises(CredentialError, match="takes none of another"):
        keep_crls(folder, naming_keys(root, range(MAX_CRLS, MAX_CRLS + 1)), [root.certificate])
    assert keep_crls(folder, [crl(root)], [root.certificate]) == 1


def test_another_site_fills_no_memory_with_long_crls(tmp_path: Path) -> None:
    """They are read at every connection of every host, of this site's own, too; and told in one answer with its own."""
    root, folder = Authority.create(made(tmp_path / "root"), "east.example", NOW), made(tmp_path / "crls")
    short, long = of_nobody(range(2)), of_nobody(range(1, 2), number=2, padding_bytes=MAX_FOREIGN_BYTES)
    assert keep_crls(folder, short, [root.certificate], MAX_FOREIGN_BYTES) == 2
    with pytest.raises(CredentialError, match="longer than"):
        keep_crls(folder, long, [root.certificate], MAX_FOREIGN_BYTES)
    assert sorted(file.read_text() for file in crl_files(folder)) == sorted(short)
    assert keep_crls(folder, long, [root.certificate]) == 1  # of the own site


def test_what_another_site_publishes_stops_nothing_of_this_one(place: Place, tmp_path: Path) -> None:
    east = Authority.create(made(tmp_path / "east"), "east.example", NOW)
    folder = made(place.folder / "east-crls")
    write_atomically(folder / "root.pem", crl(east).encode())
    site = SiteSection("east.example", str(tmp_path / "east" / "ca.pem"), [str(folder)], ["permit.pub"], ["log.vkey"])
    place.identity = Identity.open(place.identity.section, NOW, (site,))
    place.issuing.revoke(7, NOW)
    new = place.root.create_successor(made(tmp_path / "new"), NOW)
    introductions = [(tmp_path / "new" / INTRODUCTIONS).read_text()]
    hostile = {"east.example": of_nobody(range(MAX_CRLS + 1))}
    own = [crl(place.issuing), crl(new)]
    taken = place.hears(roots=pem(place.root, new), introductions=introductions, crls=own, foreign_crls=hostile)
    assert (taken.gateway_roots, taken.refused) == (True, None)
    place.identity.reload(NOW)
    assert place.identity.credentials.crl_number == 2
