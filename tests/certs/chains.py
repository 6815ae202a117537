"""Builders of CAs, CRLs, host certificates with any defect, and of real TLS 1.3 meetings over memory BIOs.

Other packages' tests use it too:

    site = make_site()                                   # one CA, fresh CRL, trust domain "td.example"
    bad = make_host(site.ca, "host-a", uris=[A, B])      # any defect by keyword
    meeting = meet(client_connection(site.credentials("host-a")), server_connection(site.credentials("host-b")))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL
from OpenSSL._util import lib

from certs.errors import PeerRefused
from certs.tls import ALPN, ControlPeer, HostCredentials, accept_peer, client_context, server_context, step_handshake

# TLS itself reads the machine's clock, so certificates are made around the real time.
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
TRUST_DOMAIN = "td.example"
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True)
class Ca:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    parent: Ca | None = None

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What a host of this CA sends after its leaf: the intermediates, without the root."""
        return (self.certificate, *self.parent.chain) if self.parent else ()


@dataclass(frozen=True)
class Host:
    chain: tuple[x509.Certificate, ...]
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def certificate(self) -> x509.Certificate:
        return self.chain[0]


def uri_of(name: str, trust_domain: str = TRUST_DOMAIN) -> str:
    return f"spiffe://{trust_domain}/host/{name}"


def make_ca(
    name: str = "Test CA",
    *,
    parent: Ca | None = None,
    path_length: int | None = None,
    is_ca: bool = True,
    with_key_ids: bool = True,
    usage: x509.KeyUsage | None = None,
    constraints: x509.NameConstraints | None = None,
    not_before: datetime = NOW - DAY,
    not_after: datetime = NOW + 3650 * DAY,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Ca:
    """A root, or an intermediate of `parent`."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, issuer_key = (parent.certificate.subject, parent.key) if parent else (subject, key)
    builder = _certificate(subject, issuer, key, not_before, not_after)
    builder = builder.add_extension(x509.BasicConstraints(is_ca, path_length if is_ca else None), critical=True)
    builder = builder.add_extension(usage or key_usage(signs=True, proves=False), critical=True)
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=True)
    if with_key_ids:
        builder = builder.add_extension(_key_id(key), critical=False)
        if parent:
            builder = builder.add_extension(_authority_key_id(issuer_key), critical=False)
    return Ca(builder.sign(issuer_key, hashes.SHA256()), key, parent)


def make_crl(
    ca: Ca,
    *,
    revoked: Sequence[x509.Certificate] = (),
    number: int | None = 1,
    last_update: datetime = NOW - DAY,
    next_update: datetime = NOW + DAY,
    signer: ec.EllipticCurvePrivateKey | None = None,
    extra: x509.ExtensionType | None = None,
) -> x509.CertificateRevocationList:
    """A CRL of `ca`; `signer` forges it, `extra` is a critical extension such as a delta indicator."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.certificate.subject)
        .last_update(last_update)
        .next_update(next_update)
        .add_extension(_authority_key_id(ca.key), critical=False)
    )
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    for certificate in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
        builder = builder.add_revoked_certificate(entry.revocation_date(NOW - DAY).build())
    return builder.sign(signer or ca.key, hashes.SHA256())


def make_host(
    ca: Ca | None,
    name: str = "host-a",
    *,
    uris: Sequence[str] | None = None,
    dns_names: Sequence[str] = (),
    common_name: str | None = None,
    usages: Sequence[x509.ObjectIdentifier] | None = (CLIENT, SERVER),
    is_ca: bool = False,
    with_key_ids: bool = True,
    usage: x509.KeyUsage | None = None,
    extra: x509.ExtensionType | None = None,
    signer: ec.EllipticCurvePrivateKey | None = None,
    not_before: datetime = NOW - timedelta(hours=1),
    not_after: datetime = NOW + timedelta(hours=23),
) -> Host:
    """A host certificate, sound unless told otherwise. No `ca`: self-signed. No `uris` (`()`): no URI name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    issuer = ca.certificate.subject if ca else subject
    issuer_key = ca.key if ca else key
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(uri) for uri in ([uri_of(name)] if uris is None else uris)
    ]
    names += [x509.DNSName(dns) for dns in dns_names]
    builder = _certificate(subject, issuer, key, not_before, not_after)
    builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    builder = builder.add_extension(usage or key_usage(signs=is_ca, proves=True), critical=True)
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=common_name is None)
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if with_key_ids:
        builder = builder.add_extension(_key_id(key), critical=False)
        builder = builder.add_extension(_authority_key_id(issuer_key), critical=False)
    leaf = builder.sign(signer or issuer_key, hashes.SHA256())
    return Host((leaf, *(ca.chain if ca else ())), key)


def make_credentials(
    host: Host, anchors: Sequence[Ca], crls: Sequence[x509.CertificateRevocationList]
) -> HostCredentials:
    return HostCredentials(host.chain, host.key, tuple(ca.certificate for ca in anchors), tuple(crls))


@dataclass(frozen=True)
class Site:
    """One root, one intermediate, and the CRLs of both: what the honest end judges by."""

    ca: Ca
    intermediate: Ca
    crls: tuple[x509.CertificateRevocationList, ...]

    def credentials(self, name: str = "host-b") -> HostCredentials:
        return self.of(make_host(self.ca, name))

    def of(self, host: Host) -> HostCredentials:
        return make_credentials(host, [self.ca], self.crls)

    def revoking(self, *certificates: x509.Certificate) -> Site:
        """The same site after its CAs have revoked certificates."""
        crls = (make_crl(ca, revoked=certificates, number=2) for ca in (self.ca, self.intermediate))
        return Site(self.ca, self.intermediate, tuple(crls))


def make_site(key: ec.EllipticCurvePrivateKey | None = None) -> Site:
    """`key`: of the root."""
    ca = make_ca("Test root", key=key)
    intermediate = make_ca("Test intermediate", parent=ca)
    return Site(ca, intermediate, (make_crl(ca), make_crl(intermediate)))


def der(tag: int, content: bytes) -> bytes:
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    size = len(content).to_bytes(4).lstrip(b"\0")
    return bytes([tag, 0x80 | len(size)]) + size + content


def signed(what: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate, CRL or request in DER, as RFC 5280 and 2986 wrap what is signed, whatever that is."""
    signature = key.sign(what, ec.ECDSA(hashes.SHA256()))
    return der(0x30, what + bytes.fromhex("300a06082a8648ce3d040302") + der(0x03, b"\0" + signature))


def without_end(ca: Ca) -> x509.CertificateRevocationList:
    """A CRL with its nextUpdate cut out: RFC 5280 forbids it, ASN.1 does not."""
    crl = make_crl(ca)
    said = crl.tbs_certlist_bytes
    assert crl.next_update_utc is not None
    end = b"\x17\x0d" + crl.next_update_utc.strftime("%y%m%d%H%M%SZ").encode()
    assert said.count(end) == 1
    content = said[2 + (said[1] & 0x7F if said[1] & 0x80 else 0) :]
    return x509.load_der_x509_crl(signed(der(0x30, content.replace(end, b"")), ca.key))


def client_connection(credentials: HostCredentials) -> SSL.Connection:
    connection = SSL.Connection(client_context(credentials))
    connection.set_connect_state()
    return connection


def server_connection(credentials: HostCredentials) -> SSL.Connection:
    connection = SSL.Connection(server_context(credentials))
    connection.set_accept_state()
    return connection


def loose_context(
    host: Host | None,
    *,
    alpn: bytes | None = ALPN,
    max_version: int = SSL.TLS1_3_VERSION,
    groups: bytes | None = None,
    cipher: bytes | None = None,
) -> SSL.Context:
    """A peer that does as it likes: verifies nothing, any version, any key exchange."""
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_max_proto_version(max_version)
    context.set_verify(SSL.VERIFY_NONE)
    if host is not None:
        context.use_certificate(host.certificate)
        for certificate in host.chain[1:]:
            context.add_extra_chain_cert(certificate)
        context.use_privatekey(host.key)
    if alpn is not None:
        context.set_alpn_protos([alpn])
        context.set_alpn_select_callback(lambda _, offered: alpn if alpn in offered else SSL.NO_OVERLAPPING_PROTOCOLS)
    if cipher is not None:
        context.set_tls13_ciphersuites(cipher)
    if groups is not None:
        # No public setter: this is how a peer of another make would be configured.
        assert lib.SSL_CTX_set1_curves_list(context._context, groups) == 1
    return context


def loose_connection(context: SSL.Context, *, is_client: bool) -> SSL.Connection:
    connection = SSL.Connection(context)
    (connection.set_connect_state if is_client else connection.set_accept_state)()
    return connection


@dataclass
class Meeting:
    """What came of a handshake. `*_refusal` is why that end stopped; `*_sent` all bytes that it let out."""

    client: SSL.Connection
    server: SSL.Connection
    client_refusal: PeerRefused | None = None
    server_refusal: PeerRefused | None = None
    client_sent: bytes = b""
    server_sent: bytes = b""

    def peer_of_client(self, credentials: HostCredentials, now: datetime = NOW) -> ControlPeer:
        """How the client judges: the handshake's refusal, else `accept_peer`'s answer."""
        if self.client_refusal:
            raise self.client_refusal
        return accept_peer(self.client, credentials, now)

    def peer_of_server(self, credentials: HostCredentials, now: datetime = NOW) -> ControlPeer:
        if self.server_refusal:
            raise self.server_refusal
        return accept_peer(self.server, credentials, now)


def meet(client: SSL.Connection, server: SSL.Connection) -> Meeting:
    """Carry bytes both ways until neither end has more to say. Loose ends run `do_handshake` and ignore failure."""
    meeting = Meeting(client, server)
    moved = True
    while moved:
        meeting.client_refusal = meeting.client_refusal or _step(client)
        to_server = take(client)
        _give(server, to_server)
        meeting.server_refusal = meeting.server_refusal or _step(server)
        to_client = take(server)
        _give(client, to_client)
        meeting.client_sent += to_server
        meeting.server_sent += to_client
        moved = bool(to_server or to_client)
    return meeting


def take(connection: SSL.Connection) -> bytes:
    """All that the connection wants to send."""
    data = b""
    while True:
        try:
            data += connection.bio_read(65536)
        except SSL.WantReadError:
            return data


def _give(connection: SSL.Connection, data: bytes) -> None:
    if data:
        connection.bio_write(data)


def _step(connection: SSL.Connection) -> PeerRefused | None:
    if connection.get_context().get_app_data() is None:  # a loose end
        try:
            connection.do_handshake()
        except SSL.Error:
            pass
        return None
    try:
        step_handshake(connection)
    except PeerRefused as refused:
        return refused
    return None


def key_usage(*, signs: bool, proves: bool) -> x509.KeyUsage:
    return x509.KeyUsage(proves, False, False, False, False, signs, signs, False, False)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _key_id(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _authority_key_id(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
