"""What only the holder of a key can say: the target signs or seals the bytes itself, so that those behind the signature
are turned, too. Elsewhere a decoder that verifies first ends nearly every input at the signature.
"""

from __future__ import annotations

from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from audit.checkpoint import Checkpoint, note_body, open_checkpoint, sign_checkpoint, signature_line
from audit.errors import CheckpointError
from audit.proof import leaf_hash, node_hash
from audit.verify_tree import read_note, read_vkey
from certs.enrolment import make_request, requested_key
from certs.errors import UNREADABLE, CertificateError, PeerRefused
from certs.identity import service_id_of, spiffe_id_of
from certs.verification import Trust, verify_chain, verify_service
from policy.errors import PermitRefused
from policy.permit import permit_entry, proof_entry, verify_permit
from tests.audit.samples import ORIGIN, SIGNER
from tests.certs.chains import DAY, SERVER, TRUST_DOMAIN, make_crl, make_host, signed, uri_of, without_end
from tests.fuzz.targets.peers import HOST, NOW, PLAINTEXT, SERVICE, SITE, TRUST, clear_stream
from tests.fuzz.targets.target import Target
from tests.policy.forgery import dump, forge
from tests.policy.test_permit import CLAIMS, GATEWAY, HEADER, LEAF, LEAF_TEXT, MATERIAL, PINNED
from tests.transport.wire.test_frames import KEYS, LANE
from transport.errors import OfferRefused, ProtocolViolation
from transport.relay.permits import _check_proof
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
    """Any claims that the gateway's key signs: one spelling only, and the proof holds for the entry of these alone."""
    permit = verify_permit(forge(HEADER, data, GATEWAY), [PINNED])
    entry = proof_entry(permit)
    _check_proof(permit, (SIGNER.verifier,))
    assert entry == _ENTRY


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
_CHECKPOINT: Final = Checkpoint(ORIGIN, 2, node_hash(LEAF, leaf_hash(_ENTRY)))
_PROOF: Final = {
    "decision_index": 0, "decision_leaf_hash": LEAF_TEXT, "index": 1, "path": [LEAF_TEXT],
    "checkpoint": sign_checkpoint(_CHECKPOINT, SIGNER),
}  # fmt: skip
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
        "issued-permit", issued_permit, (PermitRefused, OfferRefused),
        (dump({**msgspec.to_builtins(CLAIMS), "proof": _PROOF}),),
    ),
    Target(
        "signed-checkpoint", signed_checkpoint, (UnicodeDecodeError,),
        (note_body(_CHECKPOINT).encode(),),
    ),
)  # fmt: skip
