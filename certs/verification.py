"""Is this chain one of our hosts, now? Two verifiers that share no code must agree, then our own rule decides.

Neither is enough alone: `cryptography`'s verifier knows no CRLs; OpenSSL accepts a CRL that never ends, and both
accept two URI names. See docs/wire-protocol.md, section 2.
"""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from certs.crls import newest_crls, require_fresh_crls
from certs.errors import UNREADABLE, Check, CredentialError, IdentityError, PeerRefused
from certs.identity import ServiceId, SpiffeId, service_id_of, spiffe_id_of

# Each flag is needed: CRL_CHECK_ALL alone checks nothing, CRL_CHECK alone misses a revoked intermediate,
# and without X509_STRICT paths pass that RFC 5280 forbids.
VERIFY_FLAGS = crypto.X509StoreFlags.X509_STRICT | crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
GATEWAY_VERIFY_FLAGS = crypto.X509StoreFlags.X509_STRICT
STORE_LIFETIME = timedelta(minutes=5)
MAX_INTERMEDIATES = 2
MAX_PRESENTED = 8  # certificates that we look at at all: a peer could send any number of them

_one_at_a_time = threading.Lock()
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
    # With its time, which OpenSSL lets nobody change. Never copied (`init=False`): another trust has other CRLs.
    _stores: dict[datetime, crypto.X509Store] = field(init=False, default_factory=dict, repr=False, compare=False)

    def store_for(self, presented: Sequence[x509.Certificate], now: datetime) -> crypto.X509Store:
        """A filled one, of now or of a while ago: reading a CRL of ten thousand lines takes OpenSSL 100 ms.

        Of what ended in that while OpenSSL knows nothing yet: the second verifier and `require_fresh_crls` judge it.
        What begins in it is younger than the store, which is not used then. Raises `CredentialError`.
        """
        begins = [each.not_valid_before_utc for each in (*presented, *self.anchors)]
        newest = max(begins + [crl.last_update_utc for crl in self.crls])
        for made, store in self._stores.items():
            if newest <= made <= now < made + STORE_LIFETIME:
                return store
        store = _store_at(now)
        self.fill(store)
        self._stores.clear()
        self._stores[now] = store
        return store

    def fill(self, store: crypto.X509Store) -> None:
        """Lay anchors, CRLs and the flags into a store; the handshake's and ours are filled by this alone.

        Raises `CredentialError` for what OpenSSL cannot read: it is stricter than `cryptography`, which loaded them.
        """
        try:
            for anchor in self.anchors:
                store.add_cert(crypto.X509.from_cryptography(anchor))
            for crl in newest_crls(self.crls):
                store.add_crl(crl)
        except (*UNREADABLE, crypto.Error) as error:
            problem = f"a root or CRL that cannot be read: {error}"
            raise CredentialError(None, problem, "fetch it anew from its CA") from None
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
    with _judging(presented, now):
        path, crl_number = _sound_path(presented, trust, now)
        return VerifiedChain(_require_host(path[0], trust_domain), path, crl_number)


def verify_service(presented: Sequence[x509.Certificate], trust: Trust, now: datetime) -> ServiceId:
    """The service that a presented chain stands for: a client, and no host. Raises `PeerRefused`."""
    with _judging(presented, now):
        path, _ = _sound_path(presented, trust, now)
        return _require_service(path[0])


def verify_gateway(presented: Sequence[x509.Certificate], root: x509.Certificate, name: str, now: datetime) -> None:
    """The gateway of that name or address, under this root and no other. Raises `PeerRefused`.

    For a host that has nothing yet but the root's hash, so without CRLs: it gets them with its first certificate.
    """
    _require_few(presented)
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


def _sound_path(
    presented: Sequence[x509.Certificate], trust: Trust, now: datetime
) -> tuple[tuple[x509.Certificate, ...], int]:
    """The path on which both verifiers agree, whoever it is of, and the number of its leaf's CA's CRL."""
    presented = (*presented, *(each for each in trust.intermediates if each not in presented))
    path = _openssl_path(presented, trust, now)
    _ask_second_verifier(presented, trust.anchors, now)
    return path, require_fresh_crls(path, trust.crls, now)


def _require_few(presented: Sequence[x509.Certificate]) -> None:
    if not 1 <= len(presented) <= MAX_PRESENTED:
        raise PeerRefused(Check.MALFORMED, f"{len(presented)} certificates presented, not 1 to {MAX_PRESENTED}")


@contextmanager
def _judging(presented: Sequence[x509.Certificate], now: datetime) -> Iterator[None]:
    if now.tzinfo is None:
        raise ValueError("now must know its time zone")
    _require_few(presented)
    try:
        yield
    except UNREADABLE as error:
        raise PeerRefused(Check.MALFORMED, f"a certificate cannot be read: {error}") from None
    except CredentialError as error:
        raise PeerRefused(Check.CRL_INVALID, str(error)) from None


def _store_at(now: datetime) -> crypto.X509Store:
    store = crypto.X509Store()
    store.set_time(now.astimezone(UTC))  # before the flags: it replaces the store's parameters
    return store


def _openssl_path(presented: Sequence[x509.Certificate], trust: Trust, now: datetime) -> tuple[x509.Certificate, ...]:
    with _one_at_a_time:
        return _path_within(trust.store_for(presented, now), presented)


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


def _require_service(leaf: x509.Certificate) -> ServiceId:
    with _identity_refused():
        service = service_id_of(leaf)
    _require_usages(leaf, (ExtendedKeyUsageOID.CLIENT_AUTH,), "client")
    return service


def _require_host(leaf: x509.Certificate, trust_domain: str) -> SpiffeId:
    with _identity_refused():
        spiffe_id = spiffe_id_of(leaf)
    if spiffe_id.trust_domain != trust_domain:
        raise PeerRefused(Check.TRUST_DOMAIN, f"{spiffe_id} is not of {trust_domain}")
    _require_usages(leaf, _BOTH_USAGES, "client and server")
    return spiffe_id


@contextmanager
def _identity_refused() -> Iterator[None]:
    try:
        yield
    except IdentityError as error:
        raise PeerRefused(Check.IDENTITY, str(error)) from None


def _require_usages(leaf: x509.Certificate, needed: Sequence[x509.ObjectIdentifier], in_words: str) -> None:
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        raise PeerRefused(Check.USAGE, f"no extended key usage: {in_words} needed") from None
    if any(usage not in usages for usage in needed):
        raise PeerRefused(Check.USAGE, f"extended key usage is not {in_words}")
