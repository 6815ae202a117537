"""Remove any one guard of verification, and a bad peer passes that nothing else refuses: no guard is for show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from certs import verification
from certs.errors import PeerRefused
from certs.identity import ServiceId, SpiffeId
from certs.verification import VerifiedChain, verify_chain, verify_gateway, verify_service
from tests.certs.bad_peers import BAD_PEERS
from tests.certs.chains import (
    CLIENT,
    DAY,
    NOW,
    SERVER,
    TRUST_DOMAIN,
    Ca,
    Host,
    Site,
    make_ca,
    make_crl,
    make_host,
    make_site,
)

Patch = Callable[[pytest.MonkeyPatch], None]
FLAGS = crypto.X509StoreFlags


def without_flag(flag: int) -> Patch:
    return lambda patch: patch.setattr(verification, "VERIFY_FLAGS", verification.VERIFY_FLAGS & ~flag)


def replaced(name: str, value: Any) -> Patch:
    return lambda patch: patch.setattr(verification, name, value)


def both(*patches: Patch) -> Patch:
    def apply(patch: pytest.MonkeyPatch) -> None:
        for each in patches:
            each(patch)

    return apply


def peer(name: str) -> Callable[[], tuple[Host, Site]]:
    return lambda: BAD_PEERS[name].make(make_site())


def with_crl(**changes: Any) -> Callable[[], tuple[Host, Site]]:
    def make() -> tuple[Host, Site]:
        site = make_site()
        return make_host(site.ca), Site(site.ca, site.intermediate, (make_crl(site.ca, **changes),))

    return make


def long_path() -> tuple[Host, Site]:
    site = make_site()
    cas: list[Ca] = [site.intermediate]
    for number in range(2):
        cas.append(make_ca(f"below {number}", parent=cas[-1]))
    crls = (*site.crls, *(make_crl(ca) for ca in cas[1:]))
    return make_host(cas[-1]), Site(site.ca, site.intermediate, crls)


def many_presented() -> tuple[Host, Site]:
    site = make_site()
    host = make_host(site.ca)
    more = tuple(make_ca(f"stranger {number}").certificate for number in range(verification.MAX_PRESENTED))
    return Host((*host.chain, *more), host.key), site


def path_by_hand(presented: Any, trust: Any, _: Any) -> tuple[x509.Certificate, ...]:
    """Leaf to root by names alone, as a verifier that lets everything pass would."""
    path = [presented[0]]
    pool = [*presented[1:], *trust.anchors]
    while path[-1].issuer != path[-1].subject:
        path.append(next(each for each in pool if each.subject == path[-1].issuer))
    return tuple(path)


def any_host(leaf: x509.Certificate, _: str) -> SpiffeId:
    return SpiffeId(TRUST_DOMAIN, "host-a")


def no_identity_check(leaf: x509.Certificate) -> SpiffeId:
    """The first URI, read by a parser that means well."""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uri = names.get_values_for_type(x509.UniformResourceIdentifier)[0]
    return SpiffeId(TRUST_DOMAIN, uri.rpartition("/")[2])


@dataclass(frozen=True)
class Guard:
    """`removed` takes it away, and the peer that `needed_for` makes passes then."""

    removed: Patch
    needed_for: Callable[[], tuple[Host, Site]]


SECOND = replaced("_ask_second_verifier", lambda *_: None)
STRICT = without_flag(FLAGS.X509_STRICT)
GUARDS = {
    "CRL_CHECK": Guard(without_flag(FLAGS.CRL_CHECK), peer("revoked")),
    "CRL_CHECK_ALL": Guard(without_flag(FLAGS.CRL_CHECK_ALL), peer("with a revoked intermediate")),
    # Both verifiers know these: one is enough, and it takes both to let it pass.
    "X509_STRICT and the second verifier": Guard(both(STRICT, SECOND), peer("without key identifiers")),
    "OpenSSL and the second verifier": Guard(
        both(replaced("_openssl_path", path_by_hand), SECOND), peer("whose signature is of another key")
    ),
    "OpenSSL, for validity, and the second verifier": Guard(
        both(replaced("_openssl_path", path_by_hand), SECOND), peer("expired")
    ),
    "the second verifier": Guard(SECOND, peer("that is a CA")),
    "our rule that a CRL ends": Guard(
        both(replaced("require_fresh_crls", lambda *_: 1), without_flag(FLAGS.CRL_CHECK | FLAGS.CRL_CHECK_ALL)),
        with_crl(last_update=NOW - 3 * DAY, next_update=NOW - DAY),
    ),
    "our rule that a CRL has a number": Guard(replaced("require_fresh_crls", lambda *_: 1), with_crl(number=None)),
    "our rule for identities": Guard(replaced("spiffe_id_of", no_identity_check), peer("two SPIFFE ids")),
    "our rule for the trust domain and usages": Guard(
        replaced("_require_host", any_host), peer("of another trust domain")
    ),
    "our rule for usages": Guard(replaced("_BOTH_USAGES", (ExtendedKeyUsageOID.CLIENT_AUTH,)), peer("client only")),
    "the limit of intermediates": Guard(replaced("MAX_INTERMEDIATES", 8), long_path),
    "the limit of certificates": Guard(replaced("MAX_PRESENTED", 64), many_presented),
}


def judged(host: Host, site: Site) -> VerifiedChain:
    trust = verification.Trust((site.ca.certificate,), tuple(site.crls))
    return verify_chain(host.chain, trust, TRUST_DOMAIN, NOW)


@pytest.mark.parametrize("name", GUARDS)
def test_with_all_guards_it_is_refused_and_without_one_it_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = GUARDS[name]
    host, site = guard.needed_for()
    with pytest.raises(PeerRefused):
        judged(host, site)
    guard.removed(monkeypatch)
    assert judged(host, site).spiffe_id.name == "host-a"


# --- A service: a client, and no host


SERVICE = "spiffe://td.example/service/nova"


def service_of(site: Site, **defect: Any) -> Host:
    return make_host(site.ca, **{"uris": [SERVICE], "usages": [CLIENT], **defect})


def service_name(host: Host, site: Site) -> str:
    return str(verify_service(host.chain, verification.Trust((site.ca.certificate,), tuple(site.crls)), NOW))


def numberless() -> Site:
    site = make_site()
    return Site(site.ca, site.intermediate, (make_crl(site.ca, number=None),))


def many(host: Host) -> Host:
    strangers = [make_ca(f"stranger {number}").certificate for number in range(verification.MAX_PRESENTED)]
    return Host((*host.chain, *strangers), host.key)


SERVICE_GUARDS: dict[str, tuple[Patch, Callable[[], Site], Callable[[Site], Host]]] = {
    "the second verifier": (SECOND, make_site, lambda site: service_of(site, is_ca=True, common_name="nova")),
    "our rule for CRLs": (replaced("require_fresh_crls", lambda *_: 1), numberless, service_of),
    "our rule for identities": (
        replaced("service_id_of", lambda _: ServiceId.parse(SERVICE)),
        make_site,
        lambda site: service_of(site, uris=["spiffe://td.example/host/nova"]),
    ),
    "the limit of certificates": (replaced("MAX_PRESENTED", 64), make_site, lambda site: many(service_of(site))),
}


@pytest.mark.parametrize("name", SERVICE_GUARDS)
def test_a_service_is_refused_with_all_guards_and_passes_without_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed, make, presents = SERVICE_GUARDS[name]
    site = make()
    host = presents(site)
    with pytest.raises(PeerRefused):
        service_name(host, site)
    removed(monkeypatch)
    assert service_name(host, site) == SERVICE


@pytest.mark.parametrize("usages", [[SERVER], None], ids=["servers", "nothing"])
def test_our_rule_alone_refuses_a_service_whose_certificate_is_for(
    usages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site()
    SECOND(monkeypatch)
    assert service_name(service_of(site), site) == SERVICE
    with pytest.raises(PeerRefused) as refused:
        service_name(service_of(site, usages=usages), site)
    assert refused.value.check == "usage"


# --- The gateway, before there are CRLs


def gateway_of(**defect: Any) -> tuple[Host, Ca]:
    ca = make_ca()
    sound = {"uris": (), "dns_names": ["gateway.example"], "common_name": "gateway", "usages": [SERVER]}
    return make_host(ca, **{**sound, **defect}), ca


class PassesAll:
    """In the second verifier's place."""

    def build_server_verifier(self, _: Any) -> PassesAll:
        return self

    def verify(self, *_: Any) -> None:
        pass


GATEWAY_SECOND = replaced("_second_verifier", lambda *_: PassesAll())
GATEWAY_OPENSSL = replaced("_path_within", lambda *_: ())
STRANGER = make_ca("stranger").key
GATEWAY_GUARDS: dict[str, tuple[Patch, dict[str, Any]]] = {
    "the second verifier, for the name": (GATEWAY_SECOND, {"dns_names": ["other.example"]}),
    "the second verifier, for usages": (GATEWAY_SECOND, {"usages": [CLIENT]}),
    "the second verifier, for a leaf that is a CA": (GATEWAY_SECOND, {"is_ca": True}),
    "both verifiers, for the signature": (both(GATEWAY_OPENSSL, GATEWAY_SECOND), {"signer": STRANGER}),
    "both verifiers, for validity": (both(GATEWAY_OPENSSL, GATEWAY_SECOND), {"not_after": NOW - timedelta(minutes=1)}),
    "X509_STRICT and the second verifier": (
        both(replaced("GATEWAY_VERIFY_FLAGS", 0), GATEWAY_SECOND),
        {"with_key_ids": False},
    ),
}


def test_a_sound_gateway_passes_by_its_name_alone() -> None:
    host, ca = gateway_of()
    verify_gateway(host.chain, ca.certificate, "gateway.example", NOW)
    for other in ("localhost", "example", "a.gateway.example", "127.0.0.1", "gateway_1.example", ""):
        with pytest.raises(PeerRefused):
            verify_gateway(host.chain, ca.certificate, other, NOW)


@pytest.mark.parametrize("name", GATEWAY_GUARDS)
def test_a_gateway_is_refused_with_all_guards_and_passes_without_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed, defect = GATEWAY_GUARDS[name]
    host, ca = gateway_of(**defect)
    with pytest.raises(PeerRefused):
        verify_gateway(host.chain, ca.certificate, "gateway.example", NOW)
    removed(monkeypatch)
    verify_gateway(host.chain, ca.certificate, "gateway.example", NOW)


@pytest.mark.parametrize(("left", "defect"), [
    ("OpenSSL", {"signer": STRANGER}),
    ("OpenSSL", {"not_after": NOW - timedelta(minutes=1)}),
    ("OpenSSL", {"with_key_ids": False}),
    ("the second verifier", {"signer": STRANGER}),
    ("the second verifier", {"not_after": NOW - timedelta(minutes=1)}),
    ("the second verifier", {"with_key_ids": False}),
])  # fmt: skip
def test_of_two_verifiers_either_alone_refuses_a_gateway(
    left: str, defect: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (GATEWAY_SECOND if left == "OpenSSL" else GATEWAY_OPENSSL)(monkeypatch)
    host, ca = gateway_of(**defect)
    with pytest.raises(PeerRefused):
        verify_gateway(host.chain, ca.certificate, "gateway.example", NOW)


def test_every_flag_that_is_set_is_among_them() -> None:
    assert verification.GATEWAY_VERIFY_FLAGS == FLAGS.X509_STRICT
    assert FLAGS.X509_STRICT | FLAGS.CRL_CHECK | FLAGS.CRL_CHECK_ALL == verification.VERIFY_FLAGS


@pytest.mark.parametrize("usages", [[SERVER], [CLIENT], None], ids=["servers", "clients", "nothing"])
def test_our_rule_alone_refuses_a_host_whose_certificate_is_for(usages: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site()
    SECOND(monkeypatch)
    with pytest.raises(PeerRefused) as refused:
        judged(make_host(site.ca, usages=usages), site)
    assert refused.value.check == "usage"
