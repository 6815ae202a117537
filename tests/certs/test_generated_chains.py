"""Chains of any sound shape are accepted, and any one defect at any place of them is refused, with its reason.

Keys are few and shared, because making them is what costs; names, depths, lifetimes and CRLs are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import Check, PeerRefused
from certs.verification import Trust, verify_chain
from tests.certs.chains import CLIENT, NOW, SERVER, key_usage

DAY = timedelta(days=1)
DOMAIN = "td.example"


@cache
def key(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@dataclass(frozen=True)
class Certificate:
    """What one certificate of a chain says. Level 0 is the root; the last is the host."""

    level: int
    is_ca: bool
    not_before: datetime = NOW - DAY
    not_after: datetime = NOW + DAY
    signer: int | None = None  # key of another, for a forgery
    issuer: str | None = None
    ca: bool | None = None
    path_length: int | None = None
    usage: x509.KeyUsage | None = None
    usages: tuple[x509.ObjectIdentifier, ...] | None = (CLIENT, SERVER)
    uris: tuple[str, ...] = (f"spiffe://{DOMAIN}/host/host-a",)
    common_name: str | None = None
    key_ids: bool = True
    extra: x509.ExtensionType | None = None
    constraint: x509.NameConstraints | None = None

    @property
    def name(self) -> x509.Name:
        text = f"level {self.level}" if self.is_ca else self.common_name
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)] if text else [])


@dataclass(frozen=True)
class Crl:
    """`missing`: there is none of this CA."""

    number: int | None = 1
    last_update: datetime = NOW - DAY
    next_update: datetime = NOW + DAY
    signer: int | None = None
    revokes: int | None = None  # level of the certificate that it revokes
    missing: bool = False
    extra: x509.ExtensionType | None = None


@dataclass(frozen=True)
class Chain:
    certificates: tuple[Certificate, ...]
    crls: tuple[Crl, ...]

    def with_certificate(self, level: int, **changes: Any) -> Chain:
        found = list(self.certificates)
        found[level] = replace(found[level], **changes)
        return replace(self, certificates=tuple(found))

    def with_crl(self, level: int, **changes: Any) -> Chain:
        found = list(self.crls)
        found[level] = replace(found[level], **changes)
        return replace(self, crls=tuple(found))


@st.composite
def chains(draw: st.DrawFn, least: int = 0) -> Chain:
    """A sound one, with up to two intermediates."""
    depth = draw(st.integers(least, 2))
    hours = st.integers(1, 24 * 300)
    certificates = [
        Certificate(
            level,
            is_ca=level <= depth,
            not_before=NOW - timedelta(hours=draw(hours)),
            not_after=NOW + timedelta(hours=draw(hours)),
            path_length=draw(st.sampled_from([None, depth - level, 5])) if level <= depth else None,
        )
        for level in range(depth + 2)
    ]
    crls = [
        Crl(number=draw(st.integers(1, 2**63)), next_update=NOW + timedelta(hours=draw(hours)))
        for _ in range(depth + 1)
    ]
    return Chain(tuple(certificates), tuple(crls))


def built(each: Certificate, above: Certificate | None) -> x509.Certificate:
    own, signer = key(each.level), key(each.signer if each.signer is not None else max(each.level - 1, 0))
    issuer = above.name if above is not None else each.name
    if each.issuer is not None:
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each.issuer)])
    is_ca = each.is_ca if each.ca is None else each.ca
    builder = (
        x509.CertificateBuilder()
        .subject_name(each.name)
        .issuer_name(issuer)
        .public_key(own.public_key())
        .serial_number(1000 + each.level)
        .not_valid_before(each.not_before)
        .not_valid_after(each.not_after)
        .add_extension(x509.BasicConstraints(is_ca, each.path_length if is_ca else None), critical=True)
        .add_extension(each.usage or key_usage(signs=each.is_ca, proves=not each.is_ca), critical=True)
    )
    if not each.is_ca and each.uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in each.uris])
        builder = builder.add_extension(names, critical=each.common_name is None)
    if not each.is_ca and each.usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(each.usages), critical=False)
    if each.key_ids:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
        parent = key(max(each.level - 1, 0)).public_key()
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(parent), critical=False)
    for extension in (each.extra, each.constraint):
        if extension is not None:
            builder = builder.add_extension(extension, critical=True)
    return builder.sign(signer, hashes.SHA256())


def built_crl(crl: Crl, authority: Certificate) -> x509.CertificateRevocationList:
    own = key(authority.level)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.name)
        .last_update(crl.last_update)
        .next_update(crl.next_update)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key()), critical=False)
    )
    if crl.number is not None:
        builder = builder.add_extension(x509.CRLNumber(crl.number), critical=False)
    if crl.extra is not None:
        builder = builder.add_extension(crl.extra, critical=True)
    if crl.revokes is not None:
        entry = x509.RevokedCertificateBuilder().serial_number(1000 + crl.revokes).revocation_date(NOW - DAY)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key(crl.signer) if crl.signer is not None else own, hashes.SHA256())


def verify(chain: Chain) -> str:
    certificates = [
        built(each, chain.certificates[each.level - 1] if each.level else None) for each in chain.certificates
    ]
    pairs = zip(chain.crls, chain.certificates, strict=False)
    crls = tuple(built_crl(crl, authority) for crl, authority in pairs if not crl.missing)
    trust = Trust((certificates[0],), crls)
    return str(verify_chain(certificates[:0:-1], trust, DOMAIN, NOW).spiffe_id)


STRANGER = 90  # a key that no certificate has
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
ANY_NAME = x509.NameConstraints([x509.UniformResourceIdentifier(DOMAIN)], None)
PARTIAL = x509.DeltaCRLIndicator(1)
URIS = (
    "spiffe://td.example:1/host/host-a",
    "spiffe://root@td.example/host/host-a",
    "spiffe://td.example/host/host%2Da",
    "spiffe://td.example/host/h%C3%B6st",
    "spiffe://xn--td-fka.example/host/host-a",
    "SPIFFE://td.example/host/host-a",
    "spiffe://td.example/host/host-a/",
    "spiffe://td.example//host/host-a",
    "spiffe://td.example/host/host-a?x",
    "spiffe://other.example/host/host-a",
    "spiffe://td.example/host/",
    "https://td.example/host/host-a",
)

# Of the host, at its own level.
HOST_DEFECTS: dict[str, dict[str, Any]] = {
    "expired": {"not_before": NOW - 3 * DAY, "not_after": NOW - DAY},
    "not yet valid": {"not_before": NOW + DAY, "not_after": NOW + 3 * DAY},
    "signed by a stranger": {"signer": STRANGER},
    "of another issuer": {"issuer": "somebody else"},
    "for servers only": {"usages": (SERVER,)},
    "for clients only": {"usages": (CLIENT,)},
    "for no usage": {"usages": None},
    "a CA": {"ca": True, "usage": key_usage(signs=True, proves=True), "common_name": "host-a"},
    "with an unknown critical extension": {"extra": UNKNOWN},
    "without key identifiers": {"key_ids": False},
    "of two ids": {"uris": ("spiffe://td.example/host/host-a", "spiffe://td.example/host/host-b")},
    "with its id in the common name": {"uris": (), "common_name": "spiffe://td.example/host/host-a"},
    **{f"called {uri}": {"uris": (uri,)} for uri in URIS},
}
# Of an intermediate.
AUTHORITY_DEFECTS: dict[str, dict[str, Any]] = {
    "expired": {"not_before": NOW - 3 * DAY, "not_after": NOW - DAY},
    "not yet valid": {"not_before": NOW + DAY, "not_after": NOW + 3 * DAY},
    "signed by a stranger": {"signer": STRANGER},
    "no CA": {"ca": False},
    "a CA that may not sign certificates": {"usage": key_usage(signs=False, proves=True)},
    "with a name constraint": {"constraint": ANY_NAME},
    "with an unknown critical extension": {"extra": UNKNOWN},
    "without key identifiers": {"key_ids": False},
}
# Of the CRL of any CA.
CRL_DEFECTS: dict[str, dict[str, Any]] = {
    "missing": {"missing": True},
    "stale": {"last_update": NOW - 3 * DAY, "next_update": NOW - DAY},
    "from the future": {"last_update": NOW + DAY, "next_update": NOW + 3 * DAY},
    "forged": {"signer": STRANGER},
    "without a number": {"number": None},
    "partial": {"extra": PARTIAL},
}


@given(chains())
def test_any_sound_chain_is_accepted(chain: Chain) -> None:
    assert verify(chain) == f"spiffe://{DOMAIN}/host/host-a"


def refused(chain: Chain) -> Check:
    """A named reason, for the log."""
    with pytest.raises(PeerRefused) as caught:
        verify(chain)
    assert caught.value.detail
    return Check(caught.value.check)


@given(chains(), st.sampled_from(sorted(HOST_DEFECTS)))
def test_any_defect_of_a_host_is_refused(chain: Chain, defect: str) -> None:
    refused(chain.with_certificate(len(chain.certificates) - 1, **HOST_DEFECTS[defect]))


@given(chains(least=1), st.sampled_from(sorted(AUTHORITY_DEFECTS)), st.integers(1, 2))
def test_any_defect_of_an_intermediate_is_refused(chain: Chain, defect: str, level: int) -> None:
    refused(chain.with_certificate(min(level, len(chain.crls) - 1), **AUTHORITY_DEFECTS[defect]))


@given(chains(), st.sampled_from(sorted(CRL_DEFECTS)), st.integers(0, 2))
def test_any_defect_of_a_crl_is_refused(chain: Chain, defect: str, level: int) -> None:
    refused(chain.with_crl(min(level, len(chain.crls) - 1), **CRL_DEFECTS[defect]))


@given(chains(), st.integers(0, 2))
def test_whoever_is_revoked_on_the_path_ends_it(chain: Chain, level: int) -> None:
    level = min(level, len(chain.crls) - 1)
    assert refused(chain.with_crl(level, revokes=level + 1)) == Check.REVOKED


@given(chains(least=1))
def test_a_path_beyond_a_cas_length_is_refused(chain: Chain) -> None:
    refused(chain.with_certificate(0, path_length=len(chain.crls) - 2))


def test_every_defect_of_each_kind_is_refused_at_least_once() -> None:
    """The draws above are by chance; this is all of them, on one chain."""
    chain = Chain(tuple(Certificate(level, is_ca=level < 3) for level in range(4)), (Crl(), Crl(), Crl()))
    verify(chain)
    for changes in HOST_DEFECTS.values():
        refused(chain.with_certificate(3, **changes))
    for level in (1, 2):
        for changes in AUTHORITY_DEFECTS.values():
            refused(chain.with_certificate(level, **changes))
    for level in (0, 1, 2):
        for changes in CRL_DEFECTS.values():
            refused(chain.with_crl(level, **changes))
