"""The judgement of a presented chain by itself: each verifier and each flag is needed, every CRL fault refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import crypto

from certs import verification
from certs.crls import newest_crls
from certs.errors import UNREADABLE, Check, CredentialError, PeerRefused
from certs.tls import server_context
from certs.verification import MAX_PRESENTED, Trust, VerifiedChain, verify_chain
from tests.certs.bad_peers import BAD_PEERS
from tests.certs.chains import (
    DAY,
    NOW,
    TRUST_DOMAIN,
    Ca,
    Host,
    Site,
    make_ca,
    make_crl,
    make_host,
    make_site,
    without_end,
)

FLAGS = crypto.X509StoreFlags


@pytest.fixture(scope="module")
def site() -> Site:
    return make_site()


def judged(
    presented: Sequence[x509.Certificate],
    site: Site,
    crls: Sequence[x509.CertificateRevocationList] | None = None,
    now: datetime = NOW,
) -> VerifiedChain:
    trust = Trust((site.ca.certificate,), tuple(site.crls if crls is None else crls))
    return verify_chain(presented, trust, TRUST_DOMAIN, now)


def check_of(
    presented: Sequence[x509.Certificate],
    site: Site,
    crls: Sequence[x509.CertificateRevocationList] | None = None,
    now: datetime = NOW,
) -> str:
    with pytest.raises(PeerRefused) as refused:
        judged(presented, site, crls, now)
    return refused.value.check


def test_a_sound_chain_is_a_host_with_its_path_and_crl_number(site: Site) -> None:
    crls = [make_crl(site.ca, number=7), make_crl(site.intermediate, number=9)]
    found = judged(make_host(site.intermediate, "host-x").chain, site, crls)
    assert str(found.spiffe_id) == "spiffe://td.example/host/host-x"
    assert found.path[1:] == (site.intermediate.certificate, site.ca.certificate)
    assert found.crl_number == 9


@pytest.mark.parametrize("name", BAD_PEERS)
def test_it_refuses_without_the_help_of_a_handshake_a_peer_that_is(name: str, site: Site) -> None:
    """The handshake's verdict is not needed: what it missed, for any reason, is caught here."""
    host, judge = BAD_PEERS[name].make(site)
    check = check_of(host.chain, judge)
    assert check == BAD_PEERS[name].check or {check, BAD_PEERS[name].check} <= {Check.USAGE, Check.SECOND_VERIFIER}


@pytest.mark.parametrize(
    ("flag", "needed_for"),
    [
        (FLAGS.CRL_CHECK, "revoked"),
        (FLAGS.CRL_CHECK_ALL, "with a revoked intermediate"),
    ],
)
def test_nothing_else_catches_what_a_revocation_flag_catches(
    flag: int, needed_for: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, judge = BAD_PEERS[needed_for].make(site)
    monkeypatch.setattr(verification, "VERIFY_FLAGS", verification.VERIFY_FLAGS & ~flag)
    assert judged(host.chain, judge).spiffe_id.name == "host-a"


def test_without_strictness_openssl_lets_a_certificate_without_key_identifiers_pass(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, judge = BAD_PEERS["without key identifiers"].make(site)
    assert check_of(host.chain, judge) == Check.MALFORMED
    monkeypatch.setattr(verification, "VERIFY_FLAGS", verification.VERIFY_FLAGS & ~FLAGS.X509_STRICT)
    assert check_of(host.chain, judge) == Check.SECOND_VERIFIER


def test_openssl_alone_accepts_a_ca_as_a_host(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    host, judge = BAD_PEERS["that is a CA"].make(site)
    monkeypatch.setattr(verification, "_ask_second_verifier", lambda *_: None)
    assert judged(host.chain, judge).spiffe_id.name == "host-a"


@pytest.mark.parametrize("allowed", ["other.example", "td.example"])
def test_any_chain_with_a_name_constraint_is_refused_even_one_that_allows_the_name(allowed: str, site: Site) -> None:
    """OpenSSL judges a constraint on URI names, `cryptography` refuses to: the trust domain is our own rule."""
    constraints = x509.NameConstraints([x509.UniformResourceIdentifier(allowed)], None)
    constrained = make_ca("constrained", parent=site.ca, constraints=constraints)
    check = check_of(make_host(constrained).chain, site, [*site.crls, make_crl(constrained)])
    assert check == (Check.SECOND_VERIFIER if allowed == "td.example" else Check.MALFORMED)


# --- CRLs


@pytest.mark.parametrize(
    ("check", "crls_of"),
    [
        (Check.CRL_MISSING, lambda _: []),
        (Check.CRL_MISSING, lambda _: [make_crl(make_ca("Other root"))]),
        (Check.CRL_MISSING, lambda ca: [make_crl(make_ca(_name(ca)))]),
        (Check.CRL_INVALID, lambda ca: [make_crl(ca, signer=ec.generate_private_key(ec.SECP256R1()))]),
        (Check.CRL_STALE, lambda ca: [make_crl(ca, last_update=NOW - 3 * DAY, next_update=NOW - DAY)]),
        (Check.CRL_STALE, lambda ca: [make_crl(ca, last_update=NOW - DAY, next_update=NOW)]),
        (Check.CRL_STALE, lambda ca: [make_crl(ca, last_update=NOW + DAY, next_update=NOW + 2 * DAY)]),
        (Check.CRL_STALE, lambda ca: [without_end(ca)]),
        (Check.CRL_INVALID, lambda ca: [make_crl(ca, number=None)]),
        (Check.CRL_MISSING, lambda ca: [make_crl(ca, extra=x509.DeltaCRLIndicator(1))]),
        (Check.CRL_INVALID, lambda ca: [make_crl(ca, extra=_partial(only_authorities=True))]),
        (Check.CRL_INVALID, lambda ca: [make_crl(ca, extra=_partial(only_authorities=False))]),
        (Check.CRL_INVALID, lambda ca: [make_crl(ca), _named_in(b"\x03", make_crl(ca))]),
        (Check.CRL_INVALID, lambda ca: [make_crl(ca), _named_in(b"\x04", make_crl(ca))]),
    ],
    ids=[
        "none",
        "of another CA",
        "of another CA of the same name",
        "signed by another key",
        "ended",
        "ending now",
        "from the future",
        "without an end",
        "without a number",
        "a delta",
        "of CA certificates only",
        "of one distribution point",
        "there, beside one that cryptography cannot read",
        "there, beside one that OpenSSL cannot read",
    ],
)
def test_a_sound_peer_is_refused_where_the_crl_is(check: Check, crls_of: object, site: Site) -> None:
    assert callable(crls_of)
    assert check_of(make_host(site.ca).chain, site, crls_of(site.ca)) == check


@pytest.mark.parametrize("tag", [b"\x03", b"\x04"])
def test_no_context_is_made_with_a_crl_that_openssl_cannot_read(tag: bytes, site: Site) -> None:
    odd = Site(site.ca, site.intermediate, (*site.crls, _named_in(tag, site.crls[0])))
    with pytest.raises(CredentialError, match="a root or CRL that cannot be read"):
        server_context(odd.credentials())


def _named_in(tag: bytes, crl: x509.CertificateRevocationList) -> x509.CertificateRevocationList:
    """Its issuer's name in another ASN.1 type, as whoever speaks for a gateway may tell it: nobody looks at signatures
    of CRLs until they are used."""
    name = bytes.fromhex("550403")  # commonName
    return x509.load_der_x509_crl(crl.public_bytes(Encoding.DER).replace(name + b"\x0c", name + tag))


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        (Check.CRL_STALE, {"last_update": NOW + timedelta(seconds=1)}),
        (Check.CRL_STALE, {"next_update": NOW}),
        (Check.CRL_INVALID, {"extra": x509.DeltaCRLIndicator(1)}),
        (Check.CRL_MISSING, {"signer": ec.generate_private_key(ec.SECP256R1())}),
    ],
)
def test_our_own_rule_for_crls_does_not_lean_on_openssl(
    check: Check, changes: dict[str, Any], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host(site.ca)
    path = (host.certificate, site.ca.certificate)
    monkeypatch.setattr(verification, "_openssl_path", lambda *_: path)
    assert judged(host.chain, site).path == path
    assert check_of(host.chain, site, [make_crl(site.ca, **changes)]) == check


def test_our_own_rule_takes_no_crl_of_a_part_either(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    host = make_host(site.ca)
    monkeypatch.setattr(verification, "_openssl_path", lambda *_: (host.certificate, site.ca.certificate))
    for only_authorities in (True, False):
        part = make_crl(site.ca, extra=_partial(only_authorities=only_authorities))
        assert check_of(host.chain, site, [part]) == Check.CRL_INVALID


def test_a_crl_of_another_name_is_not_the_cas_though_its_key_signed_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host(site.ca)
    monkeypatch.setattr(verification, "_openssl_path", lambda *_: (host.certificate, site.ca.certificate))
    namesake = Ca(make_ca("Other name").certificate, site.ca.key)
    assert check_of(host.chain, site, [make_crl(namesake)]) == Check.CRL_MISSING


def test_of_two_crls_of_a_ca_our_rule_takes_the_newest_wherever_it_lies(site: Site) -> None:
    older, newest = make_crl(site.ca, number=3), make_crl(site.ca, number=7)
    ended = make_crl(site.ca, number=2, last_update=NOW - 3 * DAY, next_update=NOW - DAY)
    for crls in ([older, newest, ended], [ended, newest, older], [newest, older, ended]):
        assert judged(make_host(site.ca).chain, site, crls).crl_number == 7


def test_the_second_verifier_alone_judges_by_the_time_that_it_is_given(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host(site.ca, not_after=NOW + DAY)
    monkeypatch.setattr(verification, "_openssl_path", lambda *_: (host.certificate, site.ca.certificate))
    crls = [make_crl(site.ca, next_update=NOW + 9 * DAY)]
    assert judged(host.chain, site, crls)
    assert check_of(host.chain, site, crls, NOW + 2 * DAY) == Check.SECOND_VERIFIER


def test_the_second_verifier_alone_refuses_too_long_a_path(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cas = [site.ca]
    for number in range(3):
        cas.append(make_ca(f"below {number}", parent=cas[-1]))
        host, crls = make_host(cas[-1]), [make_crl(ca) for ca in cas]
        path = (*host.chain, site.ca.certificate)
        monkeypatch.setattr(verification, "_openssl_path", lambda *_, path=path: path)
        if number < 2:
            assert judged(host.chain, site, crls)
    assert check_of(host.chain, site, crls) == Check.SECOND_VERIFIER


def test_a_leaf_that_is_an_anchor_itself_has_no_ca_that_could_revoke_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = make_host(site.ca)
    monkeypatch.setattr(verification, "_openssl_path", lambda *_: (host.certificate,))
    assert check_of(host.chain, site) == Check.UNTRUSTED


def test_a_crl_without_an_end_is_what_openssl_lets_pass(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "require_fresh_crls", lambda *_: 1)
    assert judged(make_host(site.ca).chain, site, [without_end(site.ca)])


def test_the_crl_of_the_root_is_needed_beside_that_of_the_intermediate(site: Site) -> None:
    assert check_of(make_host(site.intermediate).chain, site, [make_crl(site.intermediate)]) == Check.CRL_MISSING


def test_an_older_crl_left_beside_the_newest_does_not_hide_a_revocation(site: Site) -> None:
    host = make_host(site.ca)
    old = make_crl(site.ca, number=1, last_update=NOW - timedelta(minutes=1))  # younger by its date alone
    new = make_crl(site.ca, number=2, revoked=[host.certificate], last_update=NOW - DAY)
    for crls in ([old, new], [new, old]):
        assert check_of(host.chain, site, crls) == Check.REVOKED
        assert newest_crls(crls) == (new,)


def test_a_root_that_is_not_the_issuer_does_not_matter(site: Site) -> None:
    """During a rollover two CAs are trusted; each host needs fresh CRLs of its own path only."""
    second = make_ca("Next root")
    trust = Trust((site.ca.certificate, second.certificate), (make_crl(site.ca), make_crl(second)))
    for ca in (site.ca, second):
        assert verify_chain(make_host(ca).chain, trust, TRUST_DOMAIN, NOW).path[-1] == ca.certificate


# --- bounds and times


def test_crls_are_read_once_in_a_while_and_what_ends_in_it_has_ended(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    fill = Trust.fill
    monkeypatch.setattr(Trust, "fill", lambda trust, store: read.append(store) or fill(trust, store))  # type: ignore[func-returns-value]
    ends = NOW + timedelta(seconds=100)
    trust = Trust((site.ca.certificate,), tuple(site.crls))
    host, short = make_host(site.ca, "host-x").chain, make_host(site.ca, "host-y", not_after=ends).chain
    for chain in (host, short, host):
        verify_chain(chain, trust, TRUST_DOMAIN, NOW)
    assert len(read) == 1
    with pytest.raises(PeerRefused):
        verify_chain(short, trust, TRUST_DOMAIN, ends + timedelta(seconds=1))
    renewed = make_host(site.ca, "host-x", not_before=ends).chain
    verify_chain(host, trust, TRUST_DOMAIN, ends)
    assert len(read) == 1
    verify_chain(renewed, trust, TRUST_DOMAIN, ends)  # what is newer than the store has another one made
    assert len(read) == 2
    with pytest.raises(PeerRefused):
        verify_chain(renewed, trust, TRUST_DOMAIN, ends - timedelta(seconds=1))
    verify_chain(host, trust, TRUST_DOMAIN, NOW)  # as after a clock that went back
    with pytest.raises(PeerRefused) as without:
        verify_chain(host, replace(trust, crls=()), TRUST_DOMAIN, NOW)
    assert without.value.check == Check.CRL_MISSING, "another trust knows nothing of what this one read"


def test_a_crl_that_ends_while_it_is_remembered_has_ended(site: Site) -> None:
    ends = NOW + timedelta(seconds=100)
    trust = Trust((site.ca.certificate,), (make_crl(site.ca, next_update=ends),))
    chain = make_host(site.ca, "host-x").chain
    verify_chain(chain, trust, TRUST_DOMAIN, NOW)
    with pytest.raises(PeerRefused) as late:
        verify_chain(chain, trust, TRUST_DOMAIN, ends + timedelta(seconds=1))
    assert late.value.check == Check.CRL_STALE


def test_a_crl_of_a_ca_whose_clock_is_ahead_counts_once_it_has_begun(site: Site) -> None:
    begins = NOW + timedelta(seconds=3)
    trust = Trust((site.ca.certificate,), (make_crl(site.ca, last_update=begins),))
    chain = make_host(site.ca, "host-x").chain
    with pytest.raises(PeerRefused):
        verify_chain(chain, trust, TRUST_DOMAIN, NOW)
    verify_chain(chain, trust, TRUST_DOMAIN, begins)


def test_a_chain_of_many_certificates_is_refused_unread(site: Site) -> None:
    host = make_host(site.ca)
    assert check_of(host.chain * (MAX_PRESENTED + 1), site) == Check.MALFORMED
    assert check_of((), site) == Check.MALFORMED


def test_an_anchor_presented_as_a_host_is_refused(site: Site) -> None:
    assert check_of([site.ca.certificate], site) != ""


def test_the_clock_is_compared_in_whatever_zone_it_is(site: Site) -> None:
    host = make_host(site.ca, not_after=NOW + timedelta(minutes=30))
    in_tokyo = NOW.astimezone(timezone(timedelta(hours=9)))
    assert judged(host.chain, site, now=in_tokyo)
    assert check_of(host.chain, site, now=in_tokyo + timedelta(minutes=31)) == Check.VALIDITY


def test_a_time_without_a_zone_is_our_mistake(site: Site) -> None:
    with pytest.raises(ValueError, match="time zone"):
        judged(make_host(site.ca).chain, site, now=NOW.astimezone(UTC).replace(tzinfo=None))


@cache
def _for_flips() -> tuple[Site, Host, bytes]:
    site = make_site()
    host = make_host(site.ca)
    return site, host, host.certificate.public_bytes(Encoding.DER)


@given(st.data())
def test_a_certificate_with_one_bit_flipped_is_refused(data: st.DataObject) -> None:
    site, _, der = _for_flips()
    position = data.draw(st.integers(0, len(der) * 8 - 1))
    altered = bytearray(der)
    altered[position // 8] ^= 1 << (position % 8)
    try:
        certificate = x509.load_der_x509_certificate(bytes(altered))
    except UNREADABLE:
        return
    with pytest.raises(PeerRefused):
        judged([certificate], site)


# --- CRLs that cryptography's builder will not make


def _name(ca: Ca) -> str:
    return str(ca.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


def _partial(*, only_authorities: bool) -> x509.IssuingDistributionPoint:
    """A CRL that does not cover all: of CA certificates only, or of one distribution point."""
    return x509.IssuingDistributionPoint(
        full_name=None if only_authorities else [x509.UniformResourceIdentifier("http://td.example/1.crl")],
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=only_authorities,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )
