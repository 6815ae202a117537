"""Other sites: their roots vouch for their own trust domain and for nothing else, whatever their CAs are called."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from certs.authority import Authority
from certs.errors import Check, CredentialError, PeerRefused
from certs.federation import ForeignTrust, bundle_document, load_foreign, parse_bundle, read_bundle
from certs.files import read_certificates
from certs.tls import HostCredentials
from certs.verification import Trust
from tests.certs.chains import (
    NOW,
    Host,
    Site,
    client_connection,
    loose_connection,
    loose_context,
    make_host,
    make_site,
    meet,
    server_connection,
)

OURS, THEIRS = "td.example", "other.example"


@pytest.fixture(scope="module")
def ours() -> Site:
    return make_site()


@pytest.fixture(scope="module")
def theirs() -> Site:
    """Another PKI whose CAs have the very names of ours."""
    return make_site()


def named(site: Site, domain: str, name: str) -> Host:
    return make_host(site.ca, uris=[f"spiffe://{domain}/host/{name}"])


def knowing(site: Site, domain: str, name: str, other: Site, other_domain: str) -> HostCredentials:
    """A host of `site` that has the bundle of the other."""
    foreign = ForeignTrust(other_domain, Trust((other.ca.certificate,), other.crls))
    return replace(site.of(named(site, domain, name)), foreign=(foreign,))


def test_a_root_whose_name_is_no_text_is_refused_in_words(ours: Site) -> None:
    der = ours.ca.certificate.public_bytes(Encoding.DER)
    for name in (b"Test root", b"\xff\xfe\xfdt root"):
        text = base64.b64encode(der.replace(b"Test root", name)).decode()
        bundle = json.dumps({"keys": [{"use": "x509-svid", "x5c": [text]}]}).encode()
        if name.isascii():
            assert parse_bundle(bundle, OURS) == (ours.ca.certificate,)
        else:
            with pytest.raises(CredentialError, match="no root CA"):
                parse_bundle(bundle, OURS)


def test_hosts_of_two_sites_accept_each_other(ours: Site, theirs: Site) -> None:
    source = knowing(ours, OURS, "a", theirs, THEIRS)
    destination = knowing(theirs, THEIRS, "b", ours, OURS)
    meeting = meet(client_connection(source), server_connection(destination))
    assert str(meeting.peer_of_client(source).spiffe_id) == f"spiffe://{THEIRS}/host/b"
    assert str(meeting.peer_of_server(destination).spiffe_id) == f"spiffe://{OURS}/host/a"


@pytest.mark.parametrize(
    ("issuer", "domain", "check"),
    [
        ("theirs", OURS, Check.UNTRUSTED),  # their CA gives out our names
        ("ours", THEIRS, Check.UNTRUSTED),  # our CA gives out theirs
        ("theirs", "third.example", Check.UNTRUSTED),
        ("ours", "third.example", Check.TRUST_DOMAIN),
    ],
)
def test_no_root_speaks_for_another_trust_domain(
    ours: Site, theirs: Site, issuer: str, domain: str, check: Check
) -> None:
    judge = knowing(ours, OURS, "b", theirs, THEIRS)
    liar = named(ours if issuer == "ours" else theirs, domain, "a")
    meeting = meet(loose_connection(loose_context(liar), is_client=True), server_connection(judge))
    with pytest.raises(PeerRefused) as refused:
        meeting.peer_of_server(judge)
    assert refused.value.check == check


def test_a_site_without_the_bundle_accepts_none_of_its_hosts(ours: Site, theirs: Site) -> None:
    judge = ours.of(named(ours, OURS, "b"))
    meeting = meet(
        loose_connection(loose_context(named(theirs, THEIRS, "a")), is_client=True), server_connection(judge)
    )
    with pytest.raises(PeerRefused) as refused:
        meeting.peer_of_server(judge)
    assert refused.value.check == Check.UNTRUSTED


def test_a_host_that_its_own_site_revoked_is_refused_at_the_other(ours: Site, theirs: Site) -> None:
    gone = named(theirs, THEIRS, "a")
    judge = knowing(ours, OURS, "b", theirs.revoking(gone.certificate), THEIRS)
    meeting = meet(loose_connection(loose_context(gone), is_client=True), server_connection(judge))
    with pytest.raises(PeerRefused) as refused:
        meeting.peer_of_server(judge)
    assert refused.value.check == Check.REVOKED


def test_without_a_crl_of_the_other_site_nobody_of_it_passes(ours: Site, theirs: Site) -> None:
    judge = knowing(ours, OURS, "b", Site(theirs.ca, theirs.intermediate, ()), THEIRS)
    meeting = meet(
        loose_connection(loose_context(named(theirs, THEIRS, "a")), is_client=True), server_connection(judge)
    )
    with pytest.raises(PeerRefused) as refused:
        meeting.peer_of_server(judge)
    assert refused.value.check == Check.CRL_MISSING


# --- bundles


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ca")
    Authority.create(folder, THEIRS, NOW)
    return folder / "ca.pem"


def test_a_bundle_comes_back_as_it_went(root: Path, tmp_path: Path) -> None:
    roots = read_certificates(root)
    document = bundle_document(roots, 7)
    file = tmp_path / "bundle.json"
    file.write_text(json.dumps(document))
    assert read_bundle(file, THEIRS) == roots == read_bundle(root, THEIRS)
    assert document["spiffe_sequence"] == 7
    assert document["keys"][0]["use"] == "x509-svid"


def test_a_document_that_names_its_keys_twice_is_no_bundle(root: Path) -> None:
    """Whoever compared it by another reader's eyes would have pinned other roots than this one finds."""
    good = json.dumps(bundle_document(read_certificates(root), 1))
    for twice in ('{"keys": [], ' + good[1:], good.replace('"x5c"', '"x5c": [], "x5c"')):
        with pytest.raises(CredentialError, match="twice"):
            parse_bundle(twice.encode(), THEIRS)


def test_keys_for_other_uses_are_passed_over(root: Path) -> None:
    document = bundle_document(read_certificates(root), 1)
    document["keys"].append({"use": "jwt-svid", "kty": "EC", "kid": "1"})
    assert parse_bundle(json.dumps(document).encode(), THEIRS) == read_certificates(root)


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"{}", b'{"keys": 7}', b'{"keys": []}', b'{"keys": [7]}', b'{"keys": [{"use": "x509-svid"}]}',
        b'{"keys": [{"use": "x509-svid", "x5c": []}]}', b'{"keys": [{"use": "x509-svid", "x5c": ["!"]}]}',
        b'{"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}', b'{"keys": [{"use": "x509-svid", "x5c": "AAAA"}]}',
        b'{"keys":' + b"[" * 20_000,
    ],
)  # fmt: skip
def test_what_is_no_bundle_is_refused(text: bytes) -> None:
    with pytest.raises(CredentialError):
        parse_bundle(text, THEIRS)


def test_a_bundle_of_another_site_is_refused(root: Path) -> None:
    with pytest.raises(CredentialError, match=r"not of td\.example"):
        read_bundle(root, OURS)


def test_a_host_certificate_is_no_root(theirs: Site, tmp_path: Path) -> None:
    file = tmp_path / "bundle.pem"
    file.write_bytes(named(theirs, THEIRS, "a").certificate.public_bytes(Encoding.PEM))
    with pytest.raises(CredentialError, match="no root"):
        read_bundle(file, THEIRS)


def test_another_site_with_our_own_trust_domain_is_refused(root: Path) -> None:
    crl = root.parent / "crl.pem"
    assert load_foreign(THEIRS, root, [crl], OURS).crl_number >= 1
    with pytest.raises(CredentialError, match="own trust domain"):
        load_foreign(THEIRS, root, [crl], THEIRS)
