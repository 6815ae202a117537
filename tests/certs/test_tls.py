"""The control connection, in real TLS 1.3 handshakes over memory BIOs, against every bad peer that we know."""

from __future__ import annotations

import ssl
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from OpenSSL._util import lib

from certs.errors import Check, NotAccepted, PeerRefused
from certs.identity import SpiffeId
from certs.tls import (
    ALPN,
    GROUP,
    accept_peer,
    client_context,
    export_secret,
    local_leaf_sha256,
    server_context,
    step_handshake,
)
from tests.certs.bad_peers import BAD_PEERS
from tests.certs.chains import (
    DAY,
    NOW,
    Meeting,
    Site,
    client_connection,
    loose_connection,
    loose_context,
    make_crl,
    make_host,
    make_site,
    meet,
    server_connection,
    take,
)

CONTEXT = bytes(range(32))


@pytest.fixture(scope="module")
def site() -> Site:
    return make_site()


def honest_meeting(site: Site) -> Meeting:
    return meet(client_connection(site.credentials("host-a")), server_connection(site.credentials("host-b")))


def refusal_by_server(meeting: Meeting, site: Site) -> str:
    with pytest.raises(PeerRefused) as refused:
        meeting.peer_of_server(site.credentials())
    return refused.value.check


def refusal_by_client(meeting: Meeting, site: Site) -> str:
    with pytest.raises(PeerRefused) as refused:
        meeting.peer_of_client(site.credentials())
    return refused.value.check


# --- two honest hosts


def test_two_hosts_accept_each_other(site: Site) -> None:
    source, destination = site.credentials("host-a"), site.credentials("host-b")
    meeting = meet(client_connection(source), server_connection(destination))

    seen_by_source = meeting.peer_of_client(source)
    seen_by_destination = meeting.peer_of_server(destination)

    assert seen_by_source.spiffe_id == SpiffeId("td.example", "host-b")
    assert seen_by_destination.spiffe_id == SpiffeId("td.example", "host-a")
    assert seen_by_source.leaf_sha256 == local_leaf_sha256(destination)
    assert seen_by_destination.leaf_sha256 == local_leaf_sha256(source)
    for peer in (seen_by_source, seen_by_destination):
        assert (peer.tls_version, peer.group, peer.cipher) == ("TLSv1.3", GROUP, "TLS_AES_256_GCM_SHA384")
        assert peer.chain_der[0] == peer.leaf.public_bytes(Encoding.DER)
        assert peer.chain_der[-1] == site.ca.certificate.public_bytes(Encoding.DER)
        assert peer.crl_number == 1


def test_a_host_of_an_intermediate_is_accepted(site: Site) -> None:
    host = make_host(site.intermediate, "host-c")
    meeting = meet(client_connection(site.of(host)), server_connection(site.credentials()))
    peer = meeting.peer_of_server(site.credentials())
    assert peer.spiffe_id.name == "host-c"
    assert len(peer.chain_der) == 3


def test_both_ends_export_the_same_secret_after_acceptance(site: Site) -> None:
    meeting = honest_meeting(site)
    meeting.peer_of_client(site.credentials())
    meeting.peer_of_server(site.credentials())

    ours, theirs = export_secret(meeting.client, CONTEXT), export_secret(meeting.server, CONTEXT)

    assert ours == theirs
    assert len(ours) == 48
    assert export_secret(meeting.client, CONTEXT[::-1]) != ours


def test_another_connection_of_the_same_hosts_has_another_secret(site: Site) -> None:
    meetings = [honest_meeting(site) for _ in range(2)]
    for meeting in meetings:
        meeting.peer_of_client(site.credentials())
    first, second = (export_secret(meeting.client, CONTEXT) for meeting in meetings)
    assert first != second


# --- a secret too early


def test_no_secret_before_acceptance(site: Site) -> None:
    meeting = honest_meeting(site)
    for connection in (meeting.client, meeting.server):
        with pytest.raises(NotAccepted):
            export_secret(connection, CONTEXT)


def test_a_server_gives_no_secret_while_the_client_is_not_authenticated(site: Site) -> None:
    client, server = client_connection(site.credentials("host-a")), server_connection(site.credentials())
    assert not step_handshake(client)
    server.bio_write(take(client))
    assert not step_handshake(server)
    # pyOpenSSL itself would export here: the server has all of its keys, but not yet the client's certificate.
    assert server.export_keying_material(b"EXPERIMENTAL-sealane-1", 48, CONTEXT)

    with pytest.raises(NotAccepted):
        export_secret(server, CONTEXT)
    with pytest.raises(PeerRefused) as refused:
        accept_peer(server, site.credentials(), NOW)
    assert refused.value.check == Check.HANDSHAKE


def test_an_empty_exporter_context_is_our_mistake(site: Site) -> None:
    meeting = honest_meeting(site)
    meeting.peer_of_client(site.credentials())
    with pytest.raises(ValueError, match="empty"):
        export_secret(meeting.client, b"")


def test_a_connection_of_another_context_is_never_accepted(site: Site) -> None:
    client = loose_connection(loose_context(make_host(site.ca)), is_client=True)
    meet(client, server_connection(site.credentials()))
    with pytest.raises(NotAccepted):
        accept_peer(client, site.credentials(), NOW)


# --- bad certificates, each way round


@pytest.mark.parametrize("name", BAD_PEERS)
def test_a_server_refuses_a_client_that_is(name: str, site: Site) -> None:
    host, judge = BAD_PEERS[name].make(site)
    client = loose_connection(loose_context(host), is_client=True)
    assert refusal_by_server(meet(client, server_connection(judge.credentials())), judge) == BAD_PEERS[name].check


@pytest.mark.parametrize("name", BAD_PEERS)
def test_a_client_refuses_a_server_that_is(name: str, site: Site) -> None:
    host, judge = BAD_PEERS[name].make(site)
    server = loose_connection(loose_context(host), is_client=False)
    expected = BAD_PEERS[name].as_server or BAD_PEERS[name].check
    assert refusal_by_client(meet(client_connection(judge.credentials()), server), judge) == expected


@pytest.mark.parametrize(
    "name", ["revoked", "with a revoked intermediate", "expired", "of another CA", "with too long a path"]
)
def test_the_handshake_itself_refuses_a_client_that_is(name: str, site: Site) -> None:
    host, judge = BAD_PEERS[name].make(site)
    client = loose_connection(loose_context(host), is_client=True)
    refusal = meet(client, server_connection(judge.credentials())).server_refusal
    assert refusal is not None
    assert refusal.check == BAD_PEERS[name].check


def test_what_the_handshake_found_counts_even_if_the_caller_judges_by_other_files(site: Site) -> None:
    """A handshake that went on in spite of its verdict, as a context with another callback would."""
    host = make_host(site.ca)
    context = server_context(site.revoking(host.certificate).credentials())
    ledger = context.get_app_data()
    context.set_verify(SSL.VERIFY_PEER, lambda *seen: ledger.judge(*seen) or True)
    meeting = meet(client_connection(site.of(host)), loose_connection(context, is_client=False))
    assert meeting.server_refusal is None
    assert refusal_by_server(meeting, site) == Check.REVOKED


@pytest.mark.parametrize("name", ["revoked", "expired", "of another CA", "two SPIFFE ids"])
def test_a_refused_client_learns_nothing(name: str, site: Site) -> None:
    """It is told neither why nor that: the server's last bytes are those that it sends to everyone."""
    host, judge = BAD_PEERS[name].make(site)
    client = loose_connection(loose_context(host), is_client=True)
    meeting = meet(client, server_connection(judge.credentials()))
    refusal_by_server(meeting, judge)
    assert client.get_state_string() == b"SSL negotiation finished successfully"
    with pytest.raises(SSL.WantReadError):  # an alert would raise SSL.Error here
        client.recv(1)


def test_a_client_without_a_certificate_is_refused(site: Site) -> None:
    client = loose_connection(loose_context(None), is_client=True)
    meeting = meet(client, server_connection(site.credentials()))
    assert refusal_by_server(meeting, site) == Check.NO_CERTIFICATE
    with pytest.raises(SSL.WantReadError):
        client.recv(1)


# --- bad TLS


def test_a_client_of_tls_1_2_only_is_refused(site: Site) -> None:
    context = loose_context(make_host(site.ca), max_version=SSL.TLS1_2_VERSION)
    meeting = meet(loose_connection(context, is_client=True), server_connection(site.credentials()))
    assert refusal_by_server(meeting, site) == Check.TLS_VERSION


def test_a_server_of_tls_1_2_only_is_refused(site: Site) -> None:
    context = loose_context(make_host(site.ca), max_version=SSL.TLS1_2_VERSION)
    meeting = meet(client_connection(site.credentials()), loose_connection(context, is_client=False))
    assert refusal_by_client(meeting, site) == Check.TLS_VERSION


def test_tls_1_2_is_refused_by_itself_should_a_context_ever_allow_it(site: Site) -> None:
    context = server_context(site.credentials())
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    client = loose_connection(loose_context(make_host(site.ca), max_version=SSL.TLS1_2_VERSION), is_client=True)
    meeting = meet(client, loose_connection(context, is_client=False))
    assert meeting.server_refusal is None
    assert refusal_by_server(meeting, site) == Check.TLS_VERSION


def test_a_context_of_ours_does_not_even_begin_tls_1_2(site: Site) -> None:
    client = loose_connection(loose_context(make_host(site.ca), max_version=SSL.TLS1_2_VERSION), is_client=True)
    assert meet(client, server_connection(site.credentials())).server_refusal is not None


@pytest.mark.parametrize("cipher", [b"TLS_AES_128_GCM_SHA256", b"TLS_CHACHA20_POLY1305_SHA256"])
def test_a_suite_with_a_shorter_hash_is_refused(cipher: bytes, site: Site) -> None:
    """A 48-byte secret out of SHA-256 would be weaker than it looks."""
    client = loose_connection(loose_context(make_host(site.ca), cipher=cipher), is_client=True)
    assert refusal_by_server(meet(client, server_connection(site.credentials())), site) == Check.HANDSHAKE


@pytest.mark.parametrize("alpn", [None, b"h2", b"sealane/10", b"SEALANE/1"])
@pytest.mark.parametrize("is_client", [True, False])
def test_a_peer_without_our_alpn_is_refused(alpn: bytes | None, is_client: bool, site: Site) -> None:
    loose = loose_connection(loose_context(make_host(site.ca), alpn=alpn), is_client=is_client)
    if is_client:
        assert refusal_by_server(meet(loose, server_connection(site.credentials())), site) == Check.ALPN
    else:
        assert refusal_by_client(meet(client_connection(site.credentials()), loose), site) == Check.ALPN


@pytest.mark.parametrize("group", [b"X25519", b"P-256", b"X448", b"SecP256r1MLKEM768", b"MLKEM1024"])
@pytest.mark.parametrize("is_client", [True, False])
def test_a_peer_of_any_other_key_exchange_is_refused(group: bytes, is_client: bool, site: Site) -> None:
    """A classical one, and also others that would do: exactly one group is what both ends can check."""
    loose = loose_connection(loose_context(make_host(site.ca), groups=group), is_client=is_client)
    if is_client:
        check = refusal_by_server(meet(loose, server_connection(site.credentials())), site)
    else:
        check = refusal_by_client(meet(client_connection(site.credentials()), loose), site)
    assert check in {Check.KEY_EXCHANGE, Check.HANDSHAKE}  # the latter where OpenSSL shares no group at all
    if group in {b"X25519", b"P-256"}:
        assert check == Check.KEY_EXCHANGE


def test_set_tmp_ecdh_makes_a_classical_peer_which_is_refused(site: Site) -> None:
    context = loose_context(make_host(site.ca))
    context.set_tmp_ecdh(ec.SECP384R1())
    meeting = meet(loose_connection(context, is_client=True), server_connection(site.credentials()))
    assert refusal_by_server(meeting, site) == Check.KEY_EXCHANGE


def test_a_client_by_the_standard_library_is_refused(site: Site) -> None:
    """Another OpenSSL: without a certificate it is refused whatever groups it knows, and gets not a byte more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing)
    server = server_connection(site.credentials())
    with pytest.raises(PeerRefused) as refused:
        for _ in range(10):
            try:
                client.do_handshake()
            except ssl.SSLWantReadError:
                pass
            server.bio_write(outgoing.read())
            step_handshake(server)
            incoming.write(take(server))
    assert refused.value.check == Check.NO_CERTIFICATE
    assert take(server) == b""


# --- resumption


def test_neither_end_keeps_sessions(site: Site) -> None:
    for context in (client_context(site.credentials()), server_context(site.credentials())):
        assert context.get_session_cache_mode() == SSL.SESS_CACHE_OFF
        assert context.set_options(0) & SSL.OP_NO_TICKET


def test_a_session_offered_again_gets_a_full_handshake(site: Site) -> None:
    credentials = site.credentials("host-a")
    context, server_side = client_context(credentials), server_context(site.credentials())
    first = Meeting(loose_connection(context, is_client=True), loose_connection(server_side, is_client=False))
    meet(first.client, first.server)
    with pytest.raises(SSL.WantReadError):
        first.client.recv(1)  # takes in the tickets
    session = first.client.get_session()
    assert session is not None

    again = loose_connection(context, is_client=True)
    again.set_session(session)
    meeting = meet(again, loose_connection(server_side, is_client=False))

    assert meeting.peer_of_client(credentials).spiffe_id.name == "host-b"
    assert meeting.peer_of_server(site.credentials()).spiffe_id.name == "host-a"
    assert not lib.SSL_session_reused(again._ssl)


def test_a_resumed_session_is_refused(site: Site) -> None:
    """A server that resumes shows no certificate again: it may have been revoked since."""
    credentials = site.credentials("host-a")
    context, resuming = client_context(credentials), loose_context(make_host(site.ca, "host-b"))
    first = loose_connection(context, is_client=True)
    meet(first, loose_connection(resuming, is_client=False))
    accept_peer(first, credentials, NOW)
    with pytest.raises(SSL.WantReadError):
        first.recv(1)
    session = first.get_session()
    assert session is not None

    again = loose_connection(context, is_client=True)
    again.set_session(session)
    meeting = meet(again, loose_connection(resuming, is_client=False))

    assert lib.SSL_session_reused(again._ssl)
    assert refusal_by_client(meeting, site) == Check.RESUMPTION


# --- the judge's own CRLs and clock


@pytest.mark.parametrize("years", [-3, 3])
def test_with_a_clock_that_is_years_off_nobody_is_accepted(years: int, site: Site) -> None:
    meeting = honest_meeting(site)
    with pytest.raises(PeerRefused, match="clock") as refused:
        meeting.peer_of_server(site.credentials(), NOW + timedelta(days=365 * years))
    assert refused.value.check == Check.CRL_STALE


def test_without_a_crl_the_handshake_already_fails(site: Site) -> None:
    judge = Site(site.ca, site.intermediate, ())
    meeting = meet(client_connection(site.credentials("host-a")), server_connection(judge.credentials()))
    assert meeting.server_refusal is not None
    assert meeting.server_refusal.check == Check.CRL_MISSING


def test_with_a_stale_crl_the_handshake_already_fails(site: Site) -> None:
    stale = make_crl(site.ca, last_update=NOW - 2 * DAY, next_update=NOW - DAY)
    judge = Site(site.ca, site.intermediate, (stale,))
    meeting = meet(client_connection(site.credentials("host-a")), server_connection(judge.credentials()))
    assert meeting.server_refusal is not None
    assert meeting.server_refusal.check == Check.CRL_STALE


def test_a_revocation_that_arrives_after_the_handshake_still_counts(site: Site) -> None:
    host = make_host(site.ca, "host-a")
    meeting = meet(client_connection(site.of(host)), server_connection(site.credentials()))
    with pytest.raises(PeerRefused) as refused:
        meeting.peer_of_server(site.revoking(host.certificate).credentials())
    assert refused.value.check == Check.REVOKED


# --- parsers


@given(st.binary(min_size=1, max_size=600), st.booleans())
def test_any_bytes_are_waited_on_or_refused(data: bytes, looks_like_tls: bool) -> None:
    connection = server_connection(_FUZZ_CREDENTIALS)
    if looks_like_tls:
        data = b"\x16\x03\x01" + len(data).to_bytes(2, "big") + b"\x01" + data
    connection.bio_write(data)
    try:
        is_finished = step_handshake(connection)
    except PeerRefused:
        assert take(connection) == b""
    else:
        assert not is_finished


_FUZZ_CREDENTIALS = make_site().credentials()


def test_the_names_on_the_wire_are_those_of_the_specification() -> None:
    assert (ALPN, GROUP) == (b"sealane/1", "X25519MLKEM768")
