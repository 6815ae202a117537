"""What comes from the network: another relay, whoever is on the way, and hosts that ask to be enrolled."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from certs.crl_folder import keep_crls
from certs.crls import crl_number_of
from certs.enrolment import EnrolmentToken, make_request, requested_key
from certs.errors import UNREADABLE, CertificateError, CredentialError
from certs.identity import service_id_of, spiffe_id_of
from certs.tls import ControlPeer
from certs.verification import Trust, verify_chain, verify_service
from policy.errors import PermitRefused
from policy.permit import VerifiedPermit, proof_entry, verify_permit
from tests.certs.chains import TRUST_DOMAIN, make_crl, make_host, make_site
from tests.certs.test_guards import service_of
from tests.fuzz.targets.target import Target, in_pieces, scratch
from tests.policy.forgery import other_spelling
from tests.policy.test_permit import MATERIAL, PINNED
from tests.transport.wire.test_frames import KEYS, LANE, seal
from tests.transport.wire.test_messages import EXAMPLES, SESSION
from transport.errors import Misuse, ProtocolViolation, RefusalCode
from transport.relay.receipts import outcome_of, verify_peer_receipt
from transport.wire.clear_frames import ClearOpener, ClearSealer
from transport.wire.control import ControlOrder, Role
from transport.wire.frames import (
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    TAG_BYTES,
    FrameOrder,
    FrameType,
    LaneOpener,
    LaneSealer,
)
from transport.wire.messages import (
    Ack,
    Answer,
    Bye,
    Cancel,
    Handover,
    MessageReader,
    Offer,
    Open,
    Outcome,
    Receipt,
    Refusal,
    encode_message,
)
from transport.wire.preface import authenticate_preface, make_preface, read_preface

SITE: Final = make_site(ec.derive_private_key(2026, ec.SECP256R1()))  # always the same: what is kept names its CA
HOST: Final = make_host(SITE.ca, "host-a")
SERVICE: Final = service_of(SITE)
TRUST: Final = Trust((SITE.ca.certificate,), SITE.crls)
NOW: Final = datetime.now(UTC)
PEER: Final = ControlPeer(spiffe_id_of(HOST.certificate), HOST.certificate, b"", (), "", "", "")
SAID: Final = (
    Offer(1, "begin", ("permit",), SESSION, 0), Answer({}, 16), Refusal(RefusalCode.BUSY, ""), Open(0, "memory"),
    Open(1, "memory"), Ack({"0": 1}), Ack({"0": 3}), Ack({"0": 4}), Handover(), Outcome("running"), Cancel("x", ""),
    Receipt("{}", ""), Bye(), Offer(1, "resume", ("permit",), SESSION, 1, {"0": 3}), Answer({"0": 2}, 16),
    Ack({"1": 1}), Offer(1, "resume", ("permit",), SESSION, 1, {"0": 3, "1": 0}), Answer({"1": 0}, 16),
    Offer(1, "begin", ("permit",), SESSION, 0, {"0": 3}), Offer(1, "resume", ("permit",), SESSION, 1, {"1": 0}),
    Offer(1, "settle", ("permit",), SESSION, 1), Open(2, "memory"), Answer({}, 1), Ack({"0": 2, "1": 3}),
)  # fmt: skip
_FOLDER: Final = scratch()


def of_no_version(certificate: x509.Certificate) -> bytes:
    """X.509 knows no version 6: cryptography has an exception of its own for that, which is no ValueError."""
    return certificate.public_bytes(Encoding.DER).replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05", 1)


PLAINTEXT: Final = memoryview(bytearray(MAX_PAYLOAD_BYTES))


def control_messages(data: bytes) -> None:
    """Whole or byte by byte, the same messages or the same refusal."""
    whole = _messages(MessageReader().feed, data)
    reader = MessageReader()
    assert _messages(lambda each: in_pieces(lambda piece: list(reader.feed(piece)), each), data) == whole
    for message in MessageReader().feed(data):
        assert MessageReader().feed(encode_message(message)) == [message]


def _messages(feed: Callable[[bytes], Iterable[object]], data: bytes) -> list[object] | str:
    try:
        return list(feed(data))
    except ProtocolViolation as violation:
        return str(violation)


def control_order(data: bytes) -> bool:
    """Messages of both ends in any order: each of the peer's is taken or a violation, each of ours taken or our bug;
    what one end may say the other takes. Whether it is a whole session of either end.
    """
    as_source, as_destination = (_is_in_order(role, data[:64]) for role in Role)
    return as_source or as_destination


def _is_in_order(role: Role, numbers: bytes) -> bool:
    order, peers, is_sound = ControlOrder(role), ControlOrder(role.peer), True
    for number in numbers:
        message = SAID[(number & 0x7F) % len(SAID)]
        sender, receiver = (peers, order) if number & 0x80 else (order, peers)
        may_say, is_taken = True, True
        try:
            sender.sent(message)
        except Misuse:
            may_say = False
        try:
            receiver.received(message, {"0": 3})
        except ProtocolViolation:
            is_taken = False
        # Nobody notes for itself how many frames the other end has sent.
        assert may_say == is_taken or (may_say and isinstance(message, Ack))
        if not is_taken and (may_say or number & 0x80):
            return False
        is_sound &= is_taken
    return is_sound


def sealed_frames(data: bytes) -> None:
    """None but those that were sealed, in their order."""
    opener = LaneOpener(LANE)
    try:
        _frames(opener, data)
    finally:
        opened = sum(_SIZES[: opener.next_seq])
        assert data[:opened] == _STREAM[:opened]


def clear_frames(data: bytes) -> None:
    _frames(ClearOpener(), data)


def _frames(opener: LaneOpener | ClearOpener, data: bytes) -> None:
    while len(data) >= HEADER_BYTES:
        header = data[:HEADER_BYTES]
        due = opener.header(header)
        assert due <= MAX_PAYLOAD_BYTES + opener.tag_bytes
        body = data[HEADER_BYTES : HEADER_BYTES + due]
        if len(body) < due:
            return
        before = opener.next_seq
        assert opener.open_into(header, memoryview(body), PLAINTEXT) == due - opener.tag_bytes
        assert opener.next_seq == before + 1
        data = data[HEADER_BYTES + due :]


def frame_headers(data: bytes) -> None:
    """A header that passes has the size that its type may have, and is the one that is due."""
    order = FrameOrder(7)
    if len(data) >= HEADER_BYTES:
        size = order.header(data[:HEADER_BYTES]) - order.tag_bytes
        assert int.from_bytes(data[8:16]) == 7
        assert size == int.from_bytes(data[:4]) <= MAX_PAYLOAD_BYTES


def preface(data: bytes) -> None:
    """Only the preface that was made authenticates."""
    read = read_preface(data)
    authenticate_preface(read, KEYS)
    assert data == make_preface(KEYS, read.channel)


def receipt(data: bytes) -> None:
    """What it certifies is read after the signature in a relay, and before it here: else nothing would be turned."""
    body, _, signature = data.partition(b"\n")
    read = Receipt(body.decode(errors="replace"), signature.decode(errors="replace"))
    outcome_of(read)
    verify_peer_receipt(read, PEER)


def permit(data: bytes) -> None:
    """None but the one that was sealed verifies."""
    read: VerifiedPermit = verify_permit(data.decode(errors="replace"), [PINNED])
    assert read.token == MATERIAL.good
    proof_entry(read)


def host_certificate(data: bytes) -> None:
    """A peer's leaf, as TLS hands it on. None but what the CA has signed is believed: here, or in an earlier run, from
    which it was kept."""
    leaf = x509.load_der_x509_certificate(data)
    spiffe_id_of(leaf)
    assert verify_chain([leaf], TRUST, TRUST_DOMAIN, NOW).spiffe_id == PEER.spiffe_id
    leaf.verify_directly_issued_by(SITE.ca.certificate)


def service_certificate(data: bytes) -> None:
    """A client's, which is of no host. None but what the CA has signed is believed."""
    leaf = x509.load_der_x509_certificate(data)
    assert verify_service([leaf], TRUST, NOW) == service_id_of(leaf)
    leaf.verify_directly_issued_by(SITE.ca.certificate)


def crl(data: bytes) -> None:
    crl_number_of(x509.load_der_x509_crl(data))


def told_crls(data: bytes) -> bool:
    """The CRLs that a gateway tells, into the folder. Whether one was newer."""
    folder = Path(tempfile.mkdtemp(dir=_FOLDER))
    try:
        return keep_crls(folder, data.decode().split("\n\n"), TRUST.anchors) > 0
    finally:
        shutil.rmtree(folder)


def _renamed(value: bytes, other: bytes) -> bytes:
    """A CRL with another issuer's name: cryptography reads names only when they are asked for, OpenSSL at once."""
    name = bytes.fromhex("550403")
    der = _CRL.public_bytes(Encoding.DER)
    assert name + value in der
    der = der.replace(name + value, name + other)
    return b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"


def signing_request(data: bytes) -> None:
    requested_key(data)


def enrolment_token(data: bytes) -> None:
    text = data.decode(errors="replace")
    assert EnrolmentToken.parse(text).text() == text


def clear_stream(payloads: list[bytes]) -> bytes:
    sealer, found = ClearSealer(), b""
    for payload in payloads:
        frame = memoryview(bytearray(HEADER_BYTES + len(payload)))
        sealer.seal_into(FrameType.DATA if payload else FrameType.FIN, payload, frame)
        found += bytes(frame)
    return found


_sealer = LaneSealer(LANE)
_STREAM: Final = b"".join(seal(_sealer, each) for each in (b"a", b"guest" * 10)) + seal(_sealer, b"", FrameType.FIN)
_SIZES: Final = [HEADER_BYTES + each + TAG_BYTES for each in (1, 50, 0)]
_HEADER: Final = (5).to_bytes(4) + bytes(4) + (7).to_bytes(8)
_BODY: Final = b'{"outcome":"completed","role":"source","version":1}'
_SIGNED: Final = _BODY + b"\n" + base64.b64encode(HOST.key.sign(_BODY, ec.ECDSA(hashes.SHA256())))
_CRL: Final = make_crl(SITE.ca, revoked=[HOST.certificate])
_PEM: Final = _CRL.public_bytes(Encoding.PEM)
TARGETS: Final = (
    Target(
        "control-messages", control_messages, (ProtocolViolation,),
        (*map(encode_message, EXAMPLES), b"".join(map(encode_message, EXAMPLES))),
    ),
    Target(
        "control-order", control_order, (),
        # All of a session, as its source and its destination see it: numbers of SAID, the peer's with the high bit.
        (bytes([0, 0x81, 3, 4, 0x85, 5, 8, 0x89, 11, 0x8B, 12]), bytes([0x80, 1, 0x83, 5, 0x86, 0x88, 9, 0x8B, 11])),
    ),
    Target("sealed-frames", sealed_frames, (ProtocolViolation,), (_STREAM,)),
    Target(
        "clear-frames", clear_frames, (ProtocolViolation,), (clear_stream([b"a", b"guest" * 10, b""]),),
    ),
    Target("frame-headers", frame_headers, (ProtocolViolation,), (_HEADER,)),
    Target(
        "preface", preface, (ProtocolViolation,), (make_preface(KEYS, 0), make_preface(KEYS, 255)),
    ),
    Target(
        "peer-receipt", receipt, (ProtocolViolation,), (_SIGNED,),
    ),
    Target(
        "permit", permit, (PermitRefused,), (MATERIAL.good.encode(),), (other_spelling(MATERIAL.good).encode(),),
    ),
    Target(
        "host-certificate", host_certificate, (*UNREADABLE, CertificateError),
        (HOST.certificate.public_bytes(Encoding.DER),), (of_no_version(HOST.certificate),),
    ),
    Target(
        "service-certificate", service_certificate, (*UNREADABLE, CertificateError),
        (SERVICE.certificate.public_bytes(Encoding.DER),),
    ),
    Target("crl", crl, UNREADABLE, (_CRL.public_bytes(Encoding.DER),)),
    Target(
        "told-crls", told_crls, (CredentialError, UnicodeDecodeError),
        (_PEM, b"\n\n".join((_PEM, make_crl(SITE.ca, number=2).public_bytes(Encoding.PEM), _PEM))),
        (_renamed(b"\x0c\x09Te", b"\x0c\x09\xff\xff"), _renamed(b"\x0c", b"\x03"), _renamed(b"\x0c", b"\x04"),
         make_crl(SITE.ca, number=None).public_bytes(Encoding.PEM), b"x"),
    ),
    Target("signing-request", signing_request, (CertificateError,), (make_request(HOST.key),)),
    Target(
        "enrolment-token", enrolment_token, (CertificateError,),
        (EnrolmentToken("host-a", bytes(32), bytes(32)).text().encode(),),
    ),
)  # fmt: skip
