"""Every bad certificate that the tests know, by name, with the check that must refuse it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from certs.errors import Check
from tests.certs.chains import CLIENT, DAY, NOW, SERVER, Host, Site, key_usage, make_ca, make_crl, make_host, uri_of


@dataclass(frozen=True)
class BadPeer:
    """`make` also returns the site as the judge knows it by then: a CA may have revoked something."""

    check: Check
    make: Callable[[Site], tuple[Host, Site]]
    as_server: Check | None = None  # where a server is refused by another check than a client


def _host(check: Check, make: Callable[[Site], Host]) -> BadPeer:
    return BadPeer(check, lambda site: (make(site), site))


def _uri(text: str) -> BadPeer:
    return _host(Check.IDENTITY, lambda site: make_host(site.ca, uris=[text]))


def _revoked(site: Site) -> tuple[Host, Site]:
    host = make_host(site.ca)
    return host, site.revoking(host.certificate)


def _revoked_intermediate(site: Site) -> tuple[Host, Site]:
    return make_host(site.intermediate), site.revoking(site.intermediate.certificate)


def _too_long_a_path(site: Site) -> tuple[Host, Site]:
    second = make_ca("second", parent=site.intermediate)
    third = make_ca("third", parent=second)
    crls = (*site.crls, make_crl(second), make_crl(third))
    return make_host(third), Site(site.ca, site.intermediate, crls)


def _below(site: Site, name: str, **defect: Any) -> tuple[Host, Site]:
    """A host of an intermediate that has a defect, with its CRL at hand."""
    second = make_ca(name, parent=site.ca, **defect)
    return make_host(second), Site(site.ca, second, (*site.crls, make_crl(second)))


def _beyond_path_length(site: Site) -> tuple[Host, Site]:
    short = make_ca("last", parent=site.ca, path_length=0)
    beyond = make_ca("beyond", parent=short)
    return make_host(beyond), Site(site.ca, short, (*site.crls, make_crl(short), make_crl(beyond)))


_UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")

BAD_PEERS: dict[str, BadPeer] = {
    "whose signature is of another key": _host(
        Check.UNTRUSTED, lambda site: make_host(site.ca, signer=ec.generate_private_key(ec.SECP256R1()))
    ),
    "with a critical extension that nobody knows": _host(
        Check.MALFORMED, lambda site: make_host(site.ca, extra=_UNKNOWN)
    ),
    "of an intermediate that may not sign certificates": BadPeer(
        Check.MALFORMED, lambda site: _below(site, "mute", usage=key_usage(signs=False, proves=True))
    ),
    "of an intermediate that has expired": BadPeer(
        Check.VALIDITY, lambda site: _below(site, "old", not_before=NOW - 3 * DAY, not_after=NOW - DAY)
    ),
    "beyond an intermediate's path length": BadPeer(Check.MALFORMED, _beyond_path_length),
    "a letter of another alphabet in the URI": _uri("spiffe://td.example/host/xn--hst-a-jua%C3%B6"),
    "an empty segment in the URI": _uri("spiffe://td.example//host/host-a"),
    "a name before the path of the URI": _uri("spiffe://td.example.evil.example/host/host-a/../../host-a"),
    "of another CA": _host(Check.UNTRUSTED, lambda _: make_host(make_ca("Other root"))),
    "of another CA of the same name": _host(Check.UNTRUSTED, lambda _: make_host(make_ca("Test root"))),
    "self-signed": _host(Check.UNTRUSTED, lambda _: make_host(None, common_name="host-a")),
    "issued by a host": _host(
        Check.MALFORMED, lambda site: make_host(make_ca("Test host", parent=site.ca, is_ca=False))
    ),
    "revoked": BadPeer(Check.REVOKED, _revoked),
    "with a revoked intermediate": BadPeer(Check.REVOKED, _revoked_intermediate),
    "of an intermediate without a CRL": _host(
        Check.CRL_MISSING, lambda site: make_host(make_ca("No CRL", parent=site.ca))
    ),
    "with too long a path": BadPeer(Check.MALFORMED, _too_long_a_path),
    "expired": _host(Check.VALIDITY, lambda site: make_host(site.ca, not_before=NOW - 2 * DAY, not_after=NOW - DAY)),
    "not yet valid": _host(
        Check.VALIDITY, lambda site: make_host(site.ca, not_before=NOW + DAY, not_after=NOW + 2 * DAY)
    ),
    "without key identifiers": _host(Check.MALFORMED, lambda site: make_host(site.ca, with_key_ids=False)),
    "that is a CA": _host(Check.SECOND_VERIFIER, lambda site: make_host(site.ca, is_ca=True, common_name="host-a")),
    "client only": _host(Check.USAGE, lambda site: make_host(site.ca, usages=[CLIENT])),
    "server only": BadPeer(
        Check.USAGE, lambda site: (make_host(site.ca, usages=[SERVER]), site), as_server=Check.SECOND_VERIFIER
    ),
    "without extended key usage": _host(Check.USAGE, lambda site: make_host(site.ca, usages=None)),
    "two SPIFFE ids": _host(Check.IDENTITY, lambda site: make_host(site.ca, uris=[uri_of("host-a"), uri_of("host-b")])),
    "the same SPIFFE id twice": _host(Check.IDENTITY, lambda site: make_host(site.ca, uris=[uri_of("host-a")] * 2)),
    "a SPIFFE id and another URI": _host(
        Check.IDENTITY, lambda site: make_host(site.ca, uris=[uri_of("host-a"), "https://td.example/host-a"])
    ),
    "only a DNS name": _host(Check.IDENTITY, lambda site: make_host(site.ca, uris=[], dns_names=["host-a.td.example"])),
    "the SPIFFE id only in the common name": _host(
        Check.SECOND_VERIFIER, lambda site: make_host(site.ca, uris=[], common_name=uri_of("host-a"))
    ),
    "the SPIFFE id in the common name beside a DNS name": _host(
        Check.IDENTITY,
        lambda site: make_host(site.ca, uris=[], common_name=uri_of("host-a"), dns_names=["td.example"]),
    ),
    "of another trust domain": _host(
        Check.TRUST_DOMAIN, lambda site: make_host(site.ca, uris=[uri_of("host-a", "other.example")])
    ),
    "of a trust domain below ours": _host(
        Check.TRUST_DOMAIN, lambda site: make_host(site.ca, uris=[uri_of("host-a", "sub.td.example")])
    ),
    "a user in the URI": _uri("spiffe://root@td.example/host/host-a"),
    "a port in the URI": _uri("spiffe://td.example:1/host/host-a"),
    "an escape in the URI": _uri("spiffe://td.example/host/host%2Da"),
    "a query in the URI": _uri("spiffe://td.example/host/host-a?x"),
    "a fragment in the URI": _uri("spiffe://td.example/host/host-a#x"),
    "capitals in the URI": _uri("spiffe://td.example/host/HOST-A"),
    "a trailing slash in the URI": _uri("spiffe://td.example/host/host-a/"),
    "dots in the path of the URI": _uri("spiffe://td.example/x/../host/host-a"),
    "a workload, not a host": _uri("spiffe://td.example/gateway/host-a"),
    "another scheme": _uri("https://td.example/host/host-a"),
}
