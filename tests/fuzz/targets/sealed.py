"""What only the holder of a key can say: the target signs or seals the bytes itself, so that those behind the signature
are turned, too. Elsewhere a decoder that verifies first ends nearly every input at the signature.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from audit.checkpoint import Checkpoint, LogSigner, note_body, open_checkpoint, signature_line
from audit.errors import CheckpointError
from audit.proof import leaf_hash, node_hash
from audit.verify_tree import read_note, read_vkey
from certs.enrolment import make_request, requested_key
from certs.errors import UNREADABLE, CertificateError, PeerRefused
from certs.identity import service_id_of, spiffe_id_of
from certs.verification import Trust, verify_chain, verify_service
from policy.errors import PermitRefused
from policy.permit import Limits, PermitClaims, PermitKey, permit_entry, proof_entry, verify_permit
from tests.audit.samples import ORIGIN, SIGNER
from tests.certs.chains import DAY, SERVER, TRUST_DOMAIN, make_ca, make_crl, make_host, signed, uri_of, without_end
from tests.fuzz.targets.peers import HOST, NOW, PLAINTEXT, SERVICE, SITE, TRUST, clear_stream
from tests.fuzz.targets.target import Target
from tests.policy.forgery import dump, forge
from tests.policy.test_permit import CLAIMS, GATEWAY, HEADER, LEAF, MATERIAL, PINNED
from tests.transport.wire import permit_vectors as vectors
from tests.transport.wire.permit_vectors import DESK, HEAD, KEY_ID, OTHER_KEY, headed, logged, payload_of
from tests.transport.wire.test_frames import KEYS, LANE
from transport.errors import OfferRefused, ProtocolViolation
from transport.relay.permits import SitePins
from transport.wire.clear_frames import ClearOpener
from transport.wire.frames import HEADER_BYTES, LaneOpener, _Epochs
from transport.wire.preface import PREFACE_BYTES, _mac, authenticate_preface, make_preface, read_preface


def issued_certificate(data: bytes) -> bool:
    """Whatever a CA signs is of one host of ours, or of one service, or of nobody; never of both. Whether of one."""
    leaf = x509.load_der_x509_certificate(signed(data, SITE.ca.key))
    host = service = None
    try:
        host = verify_chain([leaf], TRUST, TRUST_DOMAIN, NOW).spiffe_id
        assert host == spiffe_id_of(leaf)
        assert host.trust_domain == TRUST_DOMAIN
    except PeerRefused:
        pass
    try:
        service = verify_service([leaf], TRUST, NOW)
        assert service == service_id_of(leaf)
    except PeerRefused:
        pass
    assert host is None or service is None
    return (host or service) is not None


def issued_crl(data: bytes) -> None:
    """Whatever a CA signs as its CRL: no host passes that stands in it."""
    crl = x509.load_der_x509_crl(signed(data, SITE.ca.key))
    verify_chain([HOST.certificate], Trust((SITE.ca.certificate,), (crl,)), TRUST_DOMAIN, NOW)
    assert crl.get_revoked_certificate_by_serial_number(HOST.certificate.serial_number) is None


def signed_request(data: bytes) -> None:
    request = x509.load_der_x509_csr(signed(data, HOST.key))
    assert requested_key(request.public_bytes(Encoding.PEM)) == HOST.key.public_key()


def sealed_frames(data: bytes) -> bool:
    """Any headers over any payloads, sealed by who has the key: a lane takes the frames that a clear one takes, and
    the same payloads. Whether there was one.
    """
    sealed, clear, epochs = LaneOpener(LANE), ClearOpener(), _Epochs(LANE)
    taken = 0
    while len(data) >= HEADER_BYTES:
        header = data[:HEADER_BYTES]
        due = _due(clear, header)
        assert _due(sealed, header) == (due if isinstance(due, str) else due + sealed.tag_bytes)
        if isinstance(due, str):
            raise ProtocolViolation(due)
        payload = data[HEADER_BYTES : HEADER_BYTES + due]
        if len(payload) < due:
            break
        cipher = epochs.take()
        body = cipher.encrypt((epochs.iv ^ taken).to_bytes(12), payload, header)
        assert sealed.open_into(header, memoryview(body), PLAINTEXT) == due
        assert PLAINTEXT[:due] == payload
        clear.open_into(header, memoryview(payload), PLAINTEXT)
        assert (sealed.next_seq, sealed.closed_by) == (clear.next_seq, clear.closed_by)
        data = data[HEADER_BYTES + due :]
        taken += 1
    return taken > 0


def _due(opener: LaneOpener | ClearOpener, header: bytes) -> int | str:
    try:
        return opener.header(header)
    except ProtocolViolation as violation:
        return str(violation)


def made_preface(data: bytes) -> None:
    """Any head, with the proof of who has the keys: none but a preface as it is made."""
    head = data[: PREFACE_BYTES - 32]
    read = read_preface(head + _mac(KEYS, int.from_bytes(head[4:6]) % 256, head))
    authenticate_preface(read, KEYS)
    assert head == make_preface(KEYS, read.channel)[: len(head)] or read.connection_id != KEYS.connection_id


def permits_header(data: bytes) -> None:
    """Any header that the gateway's key signs, before good claims."""
    permit = verify_permit(forge(data, MATERIAL.claims, GATEWAY), [PINNED])
    assert permit.claims == CLAIMS


def issued_permit(data: bytes) -> None:
    """Any claims that the gateway's key signs: none passes but those that are in the log, in their one spelling."""
    permit = DESK.verify(headed(data, HEAD), source=vectors.SOURCE, destination=vectors.DESTINATION)
    assert proof_entry(permit) in _ENTRIES
    assert msgspec.json.decode(data)["jti"] == permit.claims.jti


def issued_permits(data: bytes) -> None:
    """The same of two sites, each with a key and a log of its own: what passes is of one migration and in both logs."""
    ours, _, theirs = data.partition(b"\n")
    permit = TWO_SITES.verify(
        headed(ours, HEAD), headed(theirs, _OTHER_HEAD, OTHER_KEY), source=vectors.SOURCE, destination=_ELSEWHERE
    )
    assert permit.other is not None
    assert msgspec.json.decode(ours)["jti"] == permit.claims.jti
    each = proof_entry(permit.other), permit.other.claims
    assert each[0] in _OTHER_ENTRIES
    for member in ("vm", "source", "destination", "ports", "migration_id", "seal"):
        assert getattr(each[1], member) == getattr(permit.claims, member)
    assert permit.claims.session_until <= each[1].session_until
    assert permit.claims.limits.max_channels <= each[1].limits.max_channels


def issued_chain(data: bytes) -> bool:
    """What a peer may present: up to nine certificates, leaf first, each signed by a key that `data` names. A path that
    is believed leads to our root, each of it issued by the next, which is a CA. Whether one is.
    """
    presented: list[x509.Certificate] = []
    while len(data) > _CHAIN_HEAD and len(presented) < 9:
        size = int.from_bytes(data[1:_CHAIN_HEAD])
        key = _SIGNERS[data[0] % len(_SIGNERS)]
        presented.append(x509.load_der_x509_certificate(signed(data[_CHAIN_HEAD : _CHAIN_HEAD + size], key)))
        data = data[_CHAIN_HEAD + size :]
    try:
        verified = verify_chain(presented, TRUST_OF_BOTH, TRUST_DOMAIN, NOW)
    except PeerRefused:
        return False
    assert verified.path[0] == presented[0]
    assert verified.path[-1] == SITE.ca.certificate
    for issued, issuer in itertools.pairwise(verified.path):
        issued.verify_directly_issued_by(issuer)
        assert issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    return True


def _chain(*links: tuple[int, bytes]) -> bytes:
    return b"".join(bytes([key]) + len(tbs).to_bytes(2) + tbs for key, tbs in links)


def signed_checkpoint(data: bytes) -> bool:
    """Any body that the log's key signs: both readers, which share no code, read the same of it, or nothing. Whether
    they read it.
    """
    text = f"{data.decode()}\n{signature_line(ORIGIN, SIGNER.verifier.key_id, SIGNER.sign(data))}"
    try:
        ours = open_checkpoint(text, [SIGNER.verifier])
    except CheckpointError:
        ours = None
    try:
        theirs = read_note(text.encode(), [KEY])
    except ValueError:
        theirs = None
    if ours is None or theirs is None:
        assert ours is None
        assert theirs is None
        return False
    assert (theirs.size, theirs.root) == (ours.size, ours.root)
    assert note_body(ours).encode() == data
    return True


KEY: Final = read_vkey(SIGNER.vkey)
_REQUEST: Final = x509.load_pem_x509_csr(make_request(HOST.key))
_HOSTS: Final = (
    make_host(SITE.ca, uris=["spiffe://elsewhere.test/host/a"]),
    make_host(SITE.ca, usages=None),
    make_host(SITE.ca, usages=[SERVER]),
    make_host(SITE.ca, uris=[]),
    make_host(SITE.ca, is_ca=True),
    make_host(SITE.ca, uris=[uri_of("a"), uri_of("b")]),
    make_host(SITE.ca, not_after=NOW - DAY / 48),
)
_CRL: Final = make_crl(SITE.ca, revoked=[SERVICE.certificate], number=7)
_CRLS: Final = (
    make_crl(SITE.ca, revoked=[HOST.certificate]),
    make_crl(SITE.ca, number=None),
    make_crl(SITE.ca, next_update=NOW),
    make_crl(SITE.ca, last_update=NOW + DAY, next_update=NOW + 2 * DAY),
    make_crl(SITE.intermediate),
    make_crl(SITE.ca, extra=x509.DeltaCRLIndicator(1)),
    without_end(SITE.ca),
)
_NAME: Final = bytes.fromhex(
    "550403"
)  # commonName, a UTF8String: TypeError as a BIT STRING, no text to OpenSSL as octets
_BAD_NAMES: Final = tuple(_CRL.tbs_certlist_bytes.replace(_NAME + b"\x0c", _NAME + tag) for tag in (b"\x03", b"\x04"))
_ENTRY: Final = permit_entry(CLAIMS, 0, LEAF)
_CHAIN_HEAD: Final = 3  # which key signs, and how many bytes
TRUST_OF_BOTH: Final = Trust((SITE.ca.certificate,), SITE.crls)
_SIGNERS: Final = (SITE.ca.key, SITE.intermediate.key, HOST.key)
_LEAF: Final = make_host(SITE.intermediate, "host-b").certificate.tbs_certificate_bytes
_OF_HOST, _INTERMEDIATE = HOST.certificate.tbs_certificate_bytes, SITE.intermediate.certificate.tbs_certificate_bytes
_BELOW: Final = make_ca("Test below", parent=SITE.intermediate)
_GOOD: Final = [payload_of(each, logged(each)[0]) for each in vectors.GOOD]
_ENTRIES: Final = [logged(each)[1] for each in vectors.GOOD]
_ELSEWHERE: Final = "spiffe://other.test/host/b"
_FAR: Final = msgspec.structs.replace(vectors.CLAIMS, destination=_ELSEWHERE, aud=_ELSEWHERE)
_LOG_THERE: Final = LogSigner("other.test/log", vectors.OTHER_LOG.private_key)
_OTHER_HEAD: Final = HEAD.replace(KEY_ID.encode(), PermitKey.from_public_key(OTHER_KEY.public_key()).key_id.encode())
_THEIRS: Final = tuple(
    msgspec.structs.replace(_FAR, iss="gateway.other.test", jti="9a1b", **changes)
    for changes in (
        {"session_until": _FAR.session_until - 60, "limits": Limits(max_channels=4, bandwidth_bytes_per_second=9)},
        {"vm": "22222222-2222-4333-8444-555555555555"},
        {"ports": ("memory",)},
        {"migration_id": "m-2"},
        {"seal": "tls"},
        {"source": "spiffe://example.test/host/c"},
    )
)
_OTHER_ENTRIES: Final = [logged(each, _LOG_THERE)[1] for each in _THEIRS]


def _pair(theirs: PermitClaims) -> bytes:
    return payload_of(_FAR, logged(_FAR)[0]) + b"\n" + payload_of(theirs, logged(theirs, _LOG_THERE)[0])


TWO_SITES: Final = dataclasses.replace(
    DESK,
    sites={
        "other.test": SitePins(
            (PermitKey.from_public_key(OTHER_KEY.public_key()),), (_LOG_THERE.verifier,), lambda: vectors.CRL_NUMBER
        )
    },
)
_CHECKPOINT: Final = Checkpoint(ORIGIN, 2, node_hash(LEAF, leaf_hash(_ENTRY)))
TARGETS: Final = (
    Target(
        "issued-certificate", issued_certificate, UNREADABLE,
        tuple(each.certificate.tbs_certificate_bytes for each in (HOST, SERVICE)),
        tuple(each.certificate.tbs_certificate_bytes for each in _HOSTS),
    ),
    Target(
        "issued-crl", issued_crl, (*UNREADABLE, PeerRefused), (_CRL.tbs_certlist_bytes,),
        (*(each.tbs_certlist_bytes for each in _CRLS), *_BAD_NAMES),
    ),
    Target("permits-header", permits_header, (PermitRefused,), (dump(HEADER),), (dump(HEADER | {"typ": "JWT"}),)),
    Target("signed-request", signed_request, (*UNREADABLE, CertificateError), (_REQUEST.tbs_certrequest_bytes,)),
    Target(
        "keyed-frames", sealed_frames, (ProtocolViolation,),
        (clear_stream([b"a", b"guest" * 10, b""]),),
    ),
    Target("keyed-preface", made_preface, (ProtocolViolation,), (make_preface(KEYS, 255)[:24],)),
    Target(
        "issued-permit", issued_permit, (OfferRefused,), tuple(_GOOD),
        tuple(
            payload_of(claims, logged(claims)[0])
            for _, changes in vectors.FALSE_CLAIMS.values()
            for claims in [msgspec.structs.replace(vectors.CLAIMS, **changes)]
        ),
    ),
    Target(
        "issued-permits", issued_permits, (OfferRefused,), (_pair(_THEIRS[0]),),
        (_GOOD[0] + b"\n" + _GOOD[0], *map(_pair, _THEIRS[1:])),
    ),
    Target(
        "issued-chain", issued_chain, UNREADABLE,
        (
            _chain((0, _OF_HOST)),
            _chain((1, _LEAF), (0, _INTERMEDIATE)),
            _chain((1, _LEAF), *[(0, _OF_HOST)] * 6, (0, _INTERMEDIATE)),
        ),
        (
            _chain((1, _LEAF)),
            _chain((2, _OF_HOST), (0, _OF_HOST)),
            _chain((1, _LEAF), *[(0, _OF_HOST)] * 7, (0, _INTERMEDIATE)),
            _chain((1, _BELOW.certificate.tbs_certificate_bytes), (0, _INTERMEDIATE)),
        ),
    ),
    Target(
        "signed-checkpoint", signed_checkpoint, (UnicodeDecodeError,),
        (note_body(_CHECKPOINT).encode(),),
    ),
)  # fmt: skip
