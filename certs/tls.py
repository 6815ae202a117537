"""The control connection's TLS: how both ends are set up, and whether the peer is accepted (docs/wire-protocol.md, 2).

Sans-IO: pyOpenSSL over memory BIOs, driven by the caller:

    step_handshake until True → accept_peer → export_secret → application bytes

The handshake verifies the peer with the same flags as `accept_peer`, which judges again with the caller's clock
and credentials, and checks what pyOpenSSL cannot be told to require: group, ALPN, identity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from weakref import WeakKeyDictionary, WeakSet

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from certs.credentials import HostCredentials
from certs.errors import UNREADABLE, Check, IdentityError, NotAccepted, PeerRefused
from certs.identity import SpiffeId, spiffe_id_of
from certs.verification import MAX_INTERMEDIATES, Trust, refusal_by_openssl, verify_chain

__all__ = [
    "ALPN",
    "CIPHER",
    "GROUP",
    "ControlPeer",
    "HostCredentials",
    "accept_peer",
    "client_context",
    "export_secret",
    "local_leaf_sha256",
    "presented_chain",
    "server_context",
    "step_handshake",
]

ALPN = b"sealane/1"
GROUP = "X25519MLKEM768"
CIPHER = "TLS_AES_256_GCM_SHA384"  # the exporter is as strong as this suite's hash: 48-byte secrets need SHA-384
EXPORTER_LABEL = b"EXPERIMENTAL-sealane-1"
SECRET_BYTES = 48
_FINISHED = b"SSL negotiation finished successfully"
_MAX_ALERT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class ControlPeer:
    """An accepted peer. `chain_der` runs from the leaf to the trust anchor; `crl_number`: CRL of the leaf's CA."""

    spiffe_id: SpiffeId
    leaf: x509.Certificate
    leaf_sha256: bytes
    chain_der: tuple[bytes, ...]
    tls_version: str
    group: str
    cipher: str
    crl_number: int = 0


class _Ledger:
    """What the handshakes of one context have shown; pyOpenSSL keeps none of it.

    `verdicts`: 0 after OpenSSL verified the leaf in this very handshake, else the first X509_V_ERR code. A resumed
    session verifies nothing and so has no verdict.
    """

    def __init__(self) -> None:
        self.verdicts: WeakKeyDictionary[SSL.Connection, int] = WeakKeyDictionary()
        self.accepted: WeakSet[SSL.Connection] = WeakSet()

    def judge(self, connection: SSL.Connection, _: crypto.X509, code: int, depth: int, ok: int) -> bool:
        """OpenSSL's verify callback: called from the root down to the leaf, and at each fault."""
        if not ok:
            self.verdicts.setdefault(connection, code)
        elif depth == 0:
            self.verdicts.setdefault(connection, 0)
        return bool(ok)


def client_context(credentials: HostCredentials) -> SSL.Context:
    """For S. No server name is sent: it would tell an observer which host is called."""
    context = _context(credentials)
    context.set_alpn_protos([ALPN])
    return context


def server_context(credentials: HostCredentials) -> SSL.Context:
    """For D. A client without our ALPN finishes its handshake and is refused by `accept_peer`."""
    context = _context(credentials)
    context.set_alpn_select_callback(_select_alpn)
    return context


def step_handshake(connection: SSL.Connection) -> bool:
    """One step of the handshake: True when finished; False when more bytes of the peer are needed.

    In both cases send what `bio_read` gives. Raises `PeerRefused`; the alert is then thrown away, because it would
    tell the peer why ("revoked", "unknown CA"): close without an answer.
    """
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        return False
    except SSL.Error as error:
        _discard_alert(connection)
        raise _handshake_refusal(connection, error) from None
    return True


def accept_peer(connection: SSL.Connection, credentials: HostCredentials, now: datetime) -> ControlPeer:
    """Who the peer is, by a handshake that has finished; before any export or application byte, on both ends.

    Raises `PeerRefused` with the first failed check. `connection` must be of one of this module's contexts.
    """
    ledger = _ledger_of(connection)
    if connection.get_state_string() != _FINISHED:
        raise PeerRefused(Check.HANDSHAKE, "the handshake is not finished")
    version, group, alpn = (
        connection.get_protocol_version_name(),
        connection.get_group_name(),
        connection.get_alpn_proto_negotiated(),
    )
    if version != "TLSv1.3":
        raise PeerRefused(Check.TLS_VERSION, f"{version}, not TLSv1.3")
    if group != GROUP:
        raise PeerRefused(Check.KEY_EXCHANGE, f"{group}, not {GROUP}: recorded traffic could be opened later")
    if alpn != ALPN:
        raise PeerRefused(Check.ALPN, f"{alpn!r:.80}, not {ALPN!r}")
    presented = presented_chain(connection)
    verdict = ledger.verdicts.get(connection)
    if verdict is None:
        raise PeerRefused(Check.RESUMPTION, "no certificate was verified in this handshake")
    if verdict:
        raise refusal_by_openssl(verdict, f"OpenSSL error {verdict} in the handshake")
    trust, trust_domain = _judged_by(presented[0], credentials)
    chain = verify_chain(presented, trust, trust_domain, now)
    ledger.accepted.add(connection)
    leaf_der, *_ = chain_der = tuple(certificate.public_bytes(Encoding.DER) for certificate in chain.path)
    return ControlPeer(
        spiffe_id=chain.spiffe_id,
        leaf=chain.path[0],
        leaf_sha256=hashlib.sha256(leaf_der).digest(),
        chain_der=chain_der,
        tls_version=version,
        group=group,
        cipher=connection.get_cipher_name() or "",
        crl_number=chain.crl_number,
    )


def _judged_by(leaf: x509.Certificate, credentials: HostCredentials) -> tuple[Trust, str]:
    """The roots that may vouch for the trust domain that the leaf names: no site's roots vouch for another's hosts."""
    own = credentials.spiffe_id.trust_domain
    try:
        named = spiffe_id_of(leaf).trust_domain
    except IdentityError:
        named = own  # verify_chain says what is wrong with it
    trust = credentials.trust_of(named)
    return (credentials.trust, own) if trust is None else (trust, named)


def local_leaf_sha256(credentials: HostCredentials) -> bytes:
    """SHA-256 of our own leaf's DER, for the exporter's context."""
    return hashlib.sha256(credentials.chain[0].public_bytes(Encoding.DER)).digest()


def export_secret(connection: SSL.Connection, context: bytes) -> bytes:
    """The 48-byte secret of RFC 8446 section 7.5, equal on both ends. `context` is not empty.

    Raises `NotAccepted` before `accept_peer`: pyOpenSSL lets a server export before the client is authenticated.
    """
    if not context:
        raise ValueError("an empty exporter context is the same as none")
    if connection not in _ledger_of(connection).accepted:
        raise NotAccepted("no secret is exported before accept_peer has accepted the peer")
    return connection.export_keying_material(EXPORTER_LABEL, SECRET_BYTES, context)


def presented_chain(connection: SSL.Connection) -> tuple[x509.Certificate, ...]:
    """Leaf first. On a server OpenSSL keeps the leaf apart from the rest; on a client it is among them."""
    try:
        leaf = connection.get_peer_certificate(as_cryptography=True)
        sent = connection.get_peer_cert_chain(as_cryptography=True) or []
    except UNREADABLE as error:
        raise PeerRefused(Check.MALFORMED, f"a certificate cannot be read: {error}") from None
    if leaf is None:
        raise PeerRefused(Check.NO_CERTIFICATE, "the peer presented no certificate")
    return (leaf, *(certificate for certificate in sent if certificate != leaf))


def _context(credentials: HostCredentials) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(CIPHER.encode())
    # Tickets are still sent (pyOpenSSL cannot stop them), but nothing is kept by which one could be redeemed.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    leaf, *intermediates = credentials.chain
    context.use_certificate(leaf)
    for certificate in intermediates:
        context.add_extra_chain_cert(certificate)
    context.use_privatekey(credentials.private_key)
    context.check_privatekey()
    store = context.get_cert_store()
    if store is None:
        raise AssertionError("a new context has a store")
    # One store for the handshake, in which any of the roots will do; `accept_peer` asks those of the peer's own site.
    for trust in (credentials.trust, *(each.trust for each in credentials.foreign)):
        trust.fill(store)
    ledger = _Ledger()
    context.set_app_data(ledger)
    context.set_verify_depth(MAX_INTERMEDIATES)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, ledger.judge)
    return context


def _select_alpn(_: SSL.Connection, offered: Sequence[bytes]) -> bytes | SSL._NoOverlappingProtocols:
    return ALPN if ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _ledger_of(connection: SSL.Connection) -> _Ledger:
    ledger = connection.get_context().get_app_data()
    if not isinstance(ledger, _Ledger):
        raise NotAccepted("this connection was not made with client_context or server_context")
    return ledger


def _handshake_refusal(connection: SSL.Connection, error: SSL.Error) -> PeerRefused:
    verdict = _ledger_of(connection).verdicts.get(connection)
    if verdict:
        return refusal_by_openssl(verdict, f"OpenSSL error {verdict} in the handshake")
    reasons = [reason for *_, reason in error.args[0]] if error.args and isinstance(error.args[0], list) else []
    words = ", ".join(reasons) or repr(error)
    if "peer did not return a certificate" in reasons:
        return PeerRefused(Check.NO_CERTIFICATE, words)
    if any("protocol" in reason and ("version" in reason or "unsupported" in reason) for reason in reasons):
        return PeerRefused(Check.TLS_VERSION, words)
    return PeerRefused(Check.HANDSHAKE, words)


def _discard_alert(connection: SSL.Connection) -> None:
    try:
        while connection.bio_read(_MAX_ALERT_BYTES):
            pass
    except SSL.Error:
        pass
