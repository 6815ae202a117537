"""The file CA: what it issues is accepted by the judge, what it revokes is refused, its CRL only grows."""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from certs.authority import CA_LIFETIME, Authority
from certs.crls import FORGOTTEN_AFTER
from certs.errors import Check, CredentialError, IdentityError, KeyFileError, PeerRefused
from certs.files import read_crl, write_private_key
from certs.profiles import CLOCK_SKEW
from certs.verification import Trust, verify_chain
from tests.certs.chains import DAY, NOW, make_ca, make_crl

TRUST_DOMAIN = "corp.example"


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path, TRUST_DOMAIN, NOW)


def trust_of(authority: Authority) -> Trust:
    return Trust((authority.certificate,), (read_crl(authority.directory / "crl.pem"),))


def test_a_host_that_it_issues_is_accepted(authority: Authority) -> None:
    chain = authority.issue_host("host-a", new_key().public_key(), NOW)
    found = verify_chain(chain, trust_of(authority), TRUST_DOMAIN, NOW)
    assert str(found.spiffe_id) == "spiffe://corp.example/host/host-a"
    assert found.crl_number == 1


def test_a_host_certificate_has_one_uri_and_no_other_name(authority: Authority) -> None:
    (leaf,) = authority.issue_host("host-a", new_key().public_key(), NOW)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(names.value) == [x509.UniformResourceIdentifier("spiffe://corp.example/host/host-a")]
    assert list(leaf.subject) == []
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    assert leaf.not_valid_before_utc == NOW - CLOCK_SKEW
    assert leaf.not_valid_after_utc == NOW + timedelta(hours=24)


def test_a_revoked_host_is_refused_and_its_neighbour_is_not(authority: Authority) -> None:
    revoked = authority.issue_host("host-a", new_key().public_key(), NOW)
    other = authority.issue_host("host-b", new_key().public_key(), NOW)
    assert authority.revoke(revoked[0].serial_number, NOW) == 2
    with pytest.raises(PeerRefused) as refused:
        verify_chain(revoked, trust_of(authority), TRUST_DOMAIN, NOW)
    assert refused.value.check == Check.REVOKED
    assert verify_chain(other, trust_of(authority), TRUST_DOMAIN, NOW).crl_number == 2


def test_a_revocation_outlives_later_crls_restarts_and_a_second_revocation(authority: Authority) -> None:
    authority.revoke(11, NOW)
    again = Authority.load(authority.directory)
    assert [again.publish_crl(NOW + DAY), again.revoke(12, NOW + DAY), again.revoke(11, NOW + DAY)] == [3, 4, 5]
    entries = {entry.serial_number: entry.revocation_date_utc for entry in read_crl(authority.directory / "crl.pem")}
    assert entries == {11: NOW, 12: NOW + DAY}


def test_a_crl_forgets_what_ended_long_ago_and_was_on_one_published_after_that(authority: Authority) -> None:
    end = NOW + DAY
    authority.revoke_all([1, 2, 3], NOW)
    ended = {1: end, 2: end + FORGOTTEN_AFTER}
    long_after = end + FORGOTTEN_AFTER + CLOCK_SKEW + DAY

    def on_it(now: datetime) -> frozenset[int]:
        authority.publish_crl(now, ends=ended)
        return authority.revoked()

    assert on_it(end + FORGOTTEN_AFTER) == {1, 2, 3}
    assert on_it(long_after) == {1, 2, 3}, "this one is the first that was published so long after its end"
    assert on_it(end) == {1, 2, 3}, "a clock that was set back knows no better"
    assert on_it(end) == {1, 2, 3}
    assert on_it(long_after) == {1, 2, 3}
    assert on_it(long_after + DAY) == {2, 3}
    assert on_it(long_after + FORGOTTEN_AFTER) == {2, 3}
    assert on_it(long_after + FORGOTTEN_AFTER + DAY) == {3}, "whose end nobody knows stays"


def test_a_clock_that_was_ahead_for_one_crl_has_forgotten_nothing(authority: Authority) -> None:
    authority.revoke(1, NOW)
    ended = {1: NOW + DAY}
    authority.publish_crl(NOW + 1_000 * DAY, ends=ended)
    authority.publish_crl(NOW + DAY, ends=ended)
    assert authority.revoked() == {1}


def test_what_a_clock_that_was_ahead_for_two_crls_has_forgotten_is_listed_again_once_it_is_right(
    authority: Authority,
) -> None:
    authority.revoke(1, NOW)
    ended = {1: NOW + DAY}
    for days in (1_000, 1_004):
        authority.publish_crl(NOW + days * DAY, ends=ended)
    assert authority.revoked() == frozenset()
    authority.publish_crl(NOW + DAY, ends=ended)
    assert authority.revoked() == {1}


def test_whoever_takes_the_crl_that_forgot_a_certificate_knows_it_as_ended(authority: Authority) -> None:
    """However far their clock is behind: they take no CRL from the future."""
    chain = authority.issue_host("host-a", new_key().public_key(), NOW)
    authority.revoke(chain[0].serial_number, NOW)
    ended = {chain[0].serial_number: chain[0].not_valid_after_utc}
    for days in (100, 101):
        authority.publish_crl(NOW + days * DAY, ends=ended)
    assert authority.revoked() == frozenset()
    checks = set()
    for hours in range(0, 24 * 102, 6):
        with pytest.raises(PeerRefused) as refused:
            verify_chain(chain, trust_of(authority), TRUST_DOMAIN, NOW + timedelta(hours=hours))
        checks.add(refused.value.check)
    assert checks <= {Check.CRL_STALE, Check.VALIDITY}


def test_ten_thousand_revocations_of_a_year_leave_those_of_the_last_months(authority: Authority) -> None:
    ended: dict[int, datetime] = {}
    sizes = []
    for half_week in range(110):
        now = NOW + half_week * DAY * 3.5
        fresh = range(1 + 100 * half_week, 101 + 100 * half_week)
        authority.revoke_all(fresh, now)
        ended |= dict.fromkeys(fresh, now + DAY)
        authority.publish_crl(now, ends=ended)
        sizes.append(authority.crl_file.stat().st_size)
    left = authority.revoked()
    assert len(ended) == 11_000
    assert left == set(range(11_001 - len(left), 11_001)), "the newest"
    assert 2_600 <= len(left) <= 2_900
    assert sizes[-1] < 1.1 * sizes[40]


def test_revocations_at_the_same_time_are_all_kept(authority: Authority) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda serial: Authority.load(authority.directory).revoke(serial, NOW), range(1, 17)))
    assert sorted(numbers) == list(range(2, 18))
    assert {entry.serial_number for entry in read_crl(authority.directory / "crl.pem")} == set(range(1, 17))


def test_a_lost_or_foreign_crl_stops_the_ca(authority: Authority) -> None:
    """Starting afresh would silently pardon every revoked host."""
    path = authority.directory / "crl.pem"
    path.write_bytes(make_crl(make_ca()).public_bytes(Encoding.PEM))
    with pytest.raises(CredentialError, match="restore"):
        Authority.load(authority.directory)
    path.unlink()
    with pytest.raises(CredentialError, match=r"crl\.pem"):
        authority.revoke(1, NOW)
    assert not path.exists()


def test_a_ca_is_never_made_over_another(authority: Authority) -> None:
    before = (authority.directory / "ca.pem").read_bytes()
    with pytest.raises(KeyFileError, match="exists"):
        Authority.create(authority.directory, "other.example", NOW)
    assert (authority.directory / "ca.pem").read_bytes() == before


def test_a_ca_whose_key_is_anothers_is_refused(authority: Authority) -> None:
    (authority.directory / "ca.key").unlink()
    write_private_key(authority.directory / "ca.key", new_key())
    with pytest.raises(CredentialError, match="does not belong"):
        Authority.load(authority.directory)


def test_it_knows_its_trust_domain_again_after_a_restart(authority: Authority) -> None:
    assert Authority.load(authority.directory).trust_domain == TRUST_DOMAIN


@pytest.mark.parametrize("name", ["", "HOST", "host_a", "../host", "host-", "a" * 64, "host.corp", "host\n"])
def test_a_bad_host_name_is_refused(name: str, authority: Authority) -> None:
    with pytest.raises(IdentityError):
        authority.issue_host(name, new_key().public_key(), NOW)


@pytest.mark.parametrize("trust_domain", ["", "Corp", "corp.example/", "10.0.0.1", "corp example", "x" * 300])
def test_a_bad_trust_domain_leaves_no_file(trust_domain: str, tmp_path: Path) -> None:
    with pytest.raises(IdentityError):
        Authority.create(tmp_path, trust_domain, NOW)
    assert list(tmp_path.iterdir()) == []


def test_keys_that_cannot_sign_receipts_are_refused(authority: Authority) -> None:
    for key in (ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()):
        with pytest.raises(CredentialError, match="P-256"):
            authority.issue_host("host-a", key.public_key(), NOW)
    with pytest.raises(CredentialError, match="EC"):
        authority.issue_gateway("gw", rsa.generate_private_key(65537, 2048).public_key(), ["gw"], [], NOW)


def test_nothing_outlives_the_ca(authority: Authority) -> None:
    (leaf,) = authority.issue_host("host-a", new_key().public_key(), NOW + CA_LIFETIME - DAY, 30 * DAY)
    assert leaf.not_valid_after_utc == authority.certificate.not_valid_after_utc
    for now, lifetime in ((NOW + CA_LIFETIME + DAY, DAY), (NOW, timedelta(0)), (NOW, -DAY)):
        with pytest.raises(CredentialError, match="no lifetime"):
            authority.issue_host("host-a", new_key().public_key(), now, lifetime)


def test_the_gateways_certificate_can_never_pass_for_a_host(authority: Authority) -> None:
    chain = authority.issue_gateway("gateway", new_key().public_key(), ["gw.corp.example"], ["127.0.0.1", "::1"], NOW)
    with pytest.raises(PeerRefused):
        verify_chain(chain, trust_of(authority), TRUST_DOMAIN, NOW)


@pytest.mark.parametrize(("dns_names", "ips"), [([], []), (["gätway"], []), ([], ["127.0.0.300"]), ([], ["gw"])])
def test_bad_names_of_a_gateway_are_refused(dns_names: list[str], ips: list[str], authority: Authority) -> None:
    with pytest.raises(CredentialError):
        authority.issue_gateway("gateway", new_key().public_key(), dns_names, ips, NOW)


@pytest.mark.parametrize(("asked", "fits"), [("gw.corp.example", True), ("127.0.0.1", True), ("other.example", False)])
def test_the_standard_library_accepts_the_gateway_by_its_names(
    asked: str, fits: bool, authority: Authority, tmp_path: Path
) -> None:
    """Another OpenSSL than ours, as the HTTPS client uses it, in its strict mode and with the CRL."""
    key = new_key()
    chain = authority.issue_gateway("gateway", key.public_key(), ["gw.corp.example"], ["127.0.0.1"], NOW)
    write_private_key(tmp_path / "tls.key", key)
    (tmp_path / "tls.pem").write_bytes(chain[0].public_bytes(Encoding.PEM))
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(tmp_path / "tls.pem", tmp_path / "tls.key")
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_CRL_CHECK_CHAIN
    client_side.load_verify_locations(authority.directory / "ca.pem")
    client_side.load_verify_locations(authority.directory / "crl.pem")
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=asked)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)

    def shake() -> None:
        for _ in range(3):
            for end in (client, server):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass

    if fits:
        shake()
        assert client.version() == "TLSv1.3"
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            shake()
