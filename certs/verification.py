"""Is this chain one of our hosts, now? Two verifiers that share no code must agree, then our own rule decides.

Neither is enough alone: `cryptography`'s verifier knows no CRLs; OpenSSL accepts a CRL that never ends, and both
accept two URI names. See docs/wire-protocol.md, section 2.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from certs.errors import UNREADABLE, Check, IdentityError, PeerRefused
from certs.identity import ServiceId, SpiffeId, service_id_of, spiffe_id_of

# Each flag is needed: CRL_CHECK_ALL alone checks nothing, CRL_CHECK alone misses a revoked intermediate,
# and without X509_STRICT paths pass that RFC 5280 forbids.
VERIFY_FLAGS = crypto.X509StoreFlags.X509_STRICT | crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
GATEWAY_VERIFY_FLAGS = crypto.X509StoreFlags.X509_STRICT
MAX_INTERMEDIATES = 2
MAX_PRESENTED = 8  # certificates that we look at at all: a peer could send any number of them

_BOTH_USAGES = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
# X509_V_ERR_* of openssl/x509_vfy.h; anything else is Check.MALFORMED.
_CHECK_OF_OPENSSL_ERROR = {
    **dict.fromkeys((2, 7, 18, 19, 20, 21, 27), Check.UNTRUSTED),
    **dict.fromkeys((9, 10), Check.VALIDITY),
    **dict.fromkeys((3, 33), Check.CRL_MISSING),
    **dict.fromkeys((11, 12), Check.CRL_STALE),
    **dict.fromkeys((4, 6, 8, 15, 16, 35, 36, 44), Check.CRL_INVALID),
    23: Check.REVOKED,
    26: Check.USAGE,
}


@dataclass(frozen=True, slots=True)
class Trust:
    """What the operator gave us to judge peers by. `intermediates`: CAs that a peer need not send; not trusted."""

    anchors: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...]
    intermediates: tuple[x509.Certificate, ...] = ()

    def fill(self, store: crypto.X509Store) -> None:
        """Lay anchors, CRLs and the flags into a store; the handshake's and ours are filled by this alone."""
        for anchor in self.anchors:
            store.add_cert(crypto.X509.from_cryptography(anchor))
        for crl in newest_crls(self.crls):
            store.add_crl(crl)
        store.set_flags(VERIFY_FLAGS)


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """`path` runs from the leaf to the trust anchor; `crl_number` is that of the CRL of the leaf's own CA."""

    spiffe_id: SpiffeId
    path: tuple[x509.Certificate, ...]
    crl_number: int


def verify_chain(
    presented: Sequence[x509.Certificate], trust: Trust, trust_domain: str, now: datetime
) -> VerifiedChain:
    """The host that a presented chain (leaf first, then any order) stands for. Raises `PeerRefused`."""
    if now.tzinfo is None:
        raise ValueError("now must know its time zone")
    if not 1 <= len(presented) <= MAX_PRESENTED:
        raise PeerRefused(Check.MALFORMED, f"{len(presented)} certificates presented, not 1 to {MAX_PRESENTED}")
    presented = (*presented, *(each for each in trust.intermediates if each not in presented))
    try:
        path = _openssl_path(presented, trust, now)
        _ask_second_verifier(presented, trust.anchors, now)
        crl_number = _require_fresh_crls(path, trust.crls, now)
        spiffe_id = _require_host(path[0], trust_domain)
    except UNREADABLE as error:
        raise PeerRefused(Check.MALFORMED, f"a certificate cannot be read: {error}") from None
    return VerifiedChain(spiffe_id, path, crl_number)


def verify_service(presented: Sequence[x509.Certificate], trust: Trust, now: datetime) -> ServiceId:
    """The service that a presented chain stands for: a client, and no host. Raises `PeerRefused`."""
    if now.tzinfo is None:
        raise ValueError("now must know its time zone")
    if not 1 <= len(presented) <= MAX_PRESENTED:
        raise PeerRefused(Check.MALFORMED, f"{len(presented)} certificates presented, not 1 to {MAX_PRESENTED}")
    presented = (*presented, *(each for each in trust.intermediates if each not in presented))
    try:
        path = _openssl_path(presented, trust, now)
        _ask_second_verifier(presented, trust.anchors, now)
        _require_fresh_crls(path, trust.crls, now)
        return _require_service(path[0])
    except UNREADABLE as error:
        raise PeerRefused(Check.MALFORMED, f"a certificate cannot be read: {error}") from None


def verify_gateway(presented: Sequence[x509.Certificate], root: x509.Certificate, name: str, now: datetime) -> None:
    """The gateway of that name or address, under this root and no other. Raises `PeerRefused`.

    For a host that has nothing yet but the root's hash, so without CRLs: it gets them with its first certificate.
    """
    if not 1 <= len(presented) <= MAX_PRESENTED:
        raise PeerRefused(Check.MALFORMED, f"{len(presented)} certificates presented, not 1 to {MAX_PRESENTED}")
    store = _store_at(now)
    try:
        store.add_cert(crypto.X509.from_cryptography(root))
        store.set_flags(GATEWAY_VERIFY_FLAGS)
        _path_within(store, presented)
        verifier = _second_verifier([root], now).build_server_verifier(_general_name(name))
        verifier.verify(presented[0], [each for each in presented[1:] if each != root])
    except verification.VerificationError as error:
        why = _other_names(presented[0], name) or f"cryptography: {error}"
        raise PeerRefused(Check.SECOND_VERIFIER, why) from None
    except (*UNREADABLE, crypto.Error) as error:
        raise PeerRefused(Check.MALFORMED, f"a certificate or name cannot be read: {error}") from None


def refusal_by_openssl(code: int, detail: str) -> PeerRefused:
    """The refusal that an X509_V_ERR code stands for."""
    check = _CHECK_OF_OPENSSL_ERROR.get(code, Check.MALFORMED)
    if check in {Check.VALIDITY, Check.CRL_STALE}:
        detail += "; if it is so for every peer, look at this machine's clock and CRL files"
    return PeerRefused(check, detail)


def newest_crls(
    crls: Sequence[x509.CertificateRevocationList],
) -> tuple[x509.CertificateRevocationList, ...]:
    """Of each issuer the CRL with the highest number, so that an old file left beside it cannot be preferred."""
    newest: dict[tuple[bytes, bytes], x509.CertificateRevocationList] = {}
    for crl in crls:
        issuer = (crl.issuer.public_bytes(), _authority_key_id(crl))
        held = newest.get(issuer)
        if held is None or (crl_number_of(crl) or 0) > (crl_number_of(held) or 0):
            newest[issuer] = crl
    return tuple(newest.values())


def hosts_crl_number(crls: Sequence[x509.CertificateRevocationList], anchors: Sequence[x509.Certificate]) -> int:
    """The lowest number among the newest CRLs of CAs below the roots; of the roots where none is below; 0 without any.

    The CRL of a root whose key is away stays the same for months: its number says nothing of revoked hosts.
    """
    newest = newest_crls(crls)
    roots = {anchor.subject.public_bytes() for anchor in anchors}
    below = [crl for crl in newest if crl.issuer.public_bytes() not in roots]
    return min((crl_number_of(crl) or 0 for crl in below or newest), default=0)


def crl_number_of(crl: x509.CertificateRevocationList) -> int | None:
    """RFC 5280 section 5.2.3; None if the CRL has none."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def _authority_key_id(crl: x509.CertificateRevocationList) -> bytes:
    try:
        found = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return b""
    return found or b""


def _store_at(now: datetime) -> crypto.X509Store:
    store = crypto.X509Store()
    store.set_time(now.astimezone(UTC))  # before the flags: it replaces the store's parameters
    return store


def _openssl_path(presented: Sequence[x509.Certificate], trust: Trust, now: datetime) -> tuple[x509.Certificate, ...]:
    store = _store_at(now)
    trust.fill(store)
    return _path_within(store, presented)


def _path_within(store: crypto.X509Store, presented: Sequence[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    try:
        leaf, *others = (crypto.X509.from_cryptography(certificate) for certificate in presented)
    except crypto.Error as error:  # it takes no text that is not UTF-8, which `cryptography` looks at later
        raise PeerRefused(Check.MALFORMED, f"OpenSSL cannot read a certificate: {error}") from None
    try:
        path = crypto.X509StoreContext(store, leaf, others).get_verified_chain()
    except crypto.X509StoreContextError as error:
        code, depth, words = error.errors
        raise refusal_by_openssl(code, f"OpenSSL, depth {depth}: {words}") from None
    if len(path) > MAX_INTERMEDIATES + 2:
        raise PeerRefused(Check.MALFORMED, f"a path of {len(path)} certificates")
    return tuple(certificate.to_cryptography() for certificate in path)


def _ask_second_verifier(
    presented: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], now: datetime
) -> None:
    """As a client on both sides: a server's verifier would want a DNS name, and names do not count here."""
    verifier = _second_verifier(anchors, now).build_client_verifier()
    try:
        verifier.verify(presented[0], list(presented[1:]))
    except verification.VerificationError as error:
        raise PeerRefused(Check.SECOND_VERIFIER, f"cryptography: {error}") from None


def _second_verifier(anchors: Sequence[x509.Certificate], now: datetime) -> verification.PolicyBuilder:
    builder = verification.PolicyBuilder().store(verification.Store(list(anchors))).time(now.astimezone(UTC))
    return builder.max_chain_depth(MAX_INTERMEDIATES)


def _other_names(leaf: x509.Certificate, name: str) -> str:
    """In words, for whom a certificate is that is not for `name`; "" if that is not what is wrong with it."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):
        return ""
    known = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    if name.lower() in known or any(each.startswith("*.") for each in known):
        return ""
    return f"its certificate is for {', '.join(sorted(known)) or 'no name'}, not for {name}"[:500]


def _general_name(name: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _require_fresh_crls(
    path: Sequence[x509.Certificate], crls: Sequence[x509.CertificateRevocationList], now: datetime
) -> int:
    """Every CA of the path, the root too, has a complete CRL that is current. The number of the leaf's CA's CRL."""
    numbers = [_require_fresh_crl(authority, crls, now) for authority in path[1:]]
    if not numbers:
        raise PeerRefused(Check.UNTRUSTED, "the leaf itself is a trust anchor")
    return numbers[0]


def _require_fresh_crl(
    authority: x509.Certificate, crls: Sequence[x509.CertificateRevocationList], now: datetime
) -> int:
    name = authority.subject.rfc4514_string()
    crl = next((crl for crl in newest_crls(crls) if _is_issued_by(crl, authority)), None)
    if crl is None:
        raise PeerRefused(Check.CRL_MISSING, f"no CRL of {name}: fetch it from that CA")
    if crl.last_update_utc > now:
        raise PeerRefused(Check.CRL_STALE, f"the CRL of {name} is from the future: is this clock right?")
    if crl.next_update_utc is None or crl.next_update_utc <= now:  # OpenSSL lets a CRL without an end pass
        raise PeerRefused(Check.CRL_STALE, f"the CRL of {name} has ended or never ends: fetch a new one")
    for partial in (x509.DeltaCRLIndicator, x509.IssuingDistributionPoint):
        if any(isinstance(extension.value, partial) for extension in crl.extensions):
            raise PeerRefused(Check.CRL_INVALID, f"the CRL of {name} does not cover all of its certificates")
    number = crl_number_of(crl)
    if number is None:
        raise PeerRefused(Check.CRL_INVALID, f"the CRL of {name} has no number")
    return number


def _is_issued_by(crl: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    key = authority.public_key()
    try:
        return crl.issuer == authority.subject and crl.is_signature_valid(key)  # type: ignore[arg-type]
    except TypeError:  # a key that signs no CRLs (X25519): the same as not signed by it
        return False


def _require_service(leaf: x509.Certificate) -> ServiceId:
    try:
        service = service_id_of(leaf)
    except IdentityError as error:
        raise PeerRefused(Check.IDENTITY, str(error)) from None
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        raise PeerRefused(Check.USAGE, "no extended key usage: client is needed") from None
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        raise PeerRefused(Check.USAGE, "extended key usage is not client")
    return service


def _require_host(leaf: x509.Certificate, trust_domain: str) -> SpiffeId:
    try:
        spiffe_id = spiffe_id_of(leaf)
    except IdentityError as error:
        raise PeerRefused(Check.IDENTITY, str(error)) from None
    if spiffe_id.trust_domain != trust_domain:
        raise PeerRefused(Check.TRUST_DOMAIN, f"{spiffe_id} is not of {trust_domain}")
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        raise PeerRefused(Check.USAGE, "no extended key usage: client and server are needed") from None
    if any(usage not in usages for usage in _BOTH_USAGES):
        raise PeerRefused(Check.USAGE, "extended key usage is not client and server")
    return spiffe_id
