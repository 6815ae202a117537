"""What a relay reads from others, whatever it is: a value or the named error, nothing else (`make fuzz` goes deep)."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from certs.identity import SpiffeId
from certs.tls import ControlPeer
from transport.errors import ConfigurationError, ProtocolViolation, SpoolFailed
from transport.relay.config import load_relay_config
from transport.relay.gateway_answers import decode_admission, decode_assignments
from transport.relay.operating import decode_question
from transport.relay.receipts import verify_peer_receipt
from transport.relay.spool import FOLLOWING, SessionJournal
from transport.wire.clear_frames import ClearOpener, ClearSealer
from transport.wire.frames import HEADER_BYTES, MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, FrameType
from transport.wire.messages import Receipt

# Bytes of all kinds, JSON of all shapes, and nesting that no decoder may follow to its end.
NESTED = st.integers(1, 60_000).map(lambda depth: b"[" * depth)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
).map(msgspec.json.encode)
ANYTHING = st.binary(max_size=300) | JSON | NESTED
NAMES = st.sampled_from(["assignments", "kind", "migrate", "permit", "cancel", "type", "status", "state", *FOLLOWING])
NEARLY = st.dictionaries(NAMES, NAMES | st.integers() | st.lists(NAMES, max_size=3), max_size=4).map(
    msgspec.json.encode
)


@given(ANYTHING | NEARLY)
def test_what_the_gateway_answers_is_an_assignment_or_refused(data: bytes) -> None:
    for decode in (decode_assignments, decode_admission):
        with contextlib.suppress(msgspec.MsgspecError):
            decode(data)


@given(ANYTHING | NEARLY)
def test_what_an_operators_command_asks_is_a_question_or_refused(data: bytes) -> None:
    with contextlib.suppress(msgspec.MsgspecError):
        decode_question(data)


@given(st.lists(ANYTHING | NEARLY, max_size=4).map(b"\n".join), st.booleans())
def test_a_journal_is_read_or_left_to_an_operator(data: bytes, is_finished: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "source-0.jsonl"
        path.write_bytes(data + b"\n" * is_finished)
        with contextlib.suppress(SpoolFailed):
            journal = SessionJournal.load(path, -1)
            assert journal is None or journal.state in FOLLOWING


@given(ANYTHING | st.text(max_size=200).map(str.encode))
def test_a_configuration_is_refused_with_its_file_named(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "relay.toml"
        path.write_bytes(data)
        with pytest.raises(ConfigurationError, match=r"relay\.toml"):
            load_relay_config(path)


@given(st.text(max_size=100), st.text(max_size=60))
def test_a_receipt_by_nobody_verifies_never(body: str, signature: str) -> None:
    with pytest.raises(ProtocolViolation):
        verify_peer_receipt(Receipt(body, signature), PEER)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES))
def test_a_header_of_noise_is_a_violation(header: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        ClearOpener(7).header(header)


def test_a_frame_without_a_seal_is_the_one_that_is_due_or_a_violation() -> None:
    """All of `size u32 · type u8 · three zero bytes · sequence u64`, with what is right and what is next to it."""
    plaintext, due = memoryview(bytearray(MAX_FRAME_BYTES)), 0
    sizes = (0, 1, 2, 3, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 2**32 - 1)
    for size, kind, zeros, seq in itertools.product(sizes, range(4), (0, 1, 1 << 8, 1 << 16), (0, 6, 7, 8, 2**64 - 1)):
        header, opener = size.to_bytes(4) + bytes([kind]) + zeros.to_bytes(3) + seq.to_bytes(8), ClearOpener(7)
        fits = {0: 1 <= size <= MAX_PAYLOAD_BYTES, 1: size == 0, 2: size == 2}.get(kind, False)
        if not fits or zeros or seq != 7:
            with pytest.raises(ProtocolViolation):
                opener.header(header)
            continue
        assert opener.header(header) == size
        assert opener.open_into(header, memoryview(b"x" * size), plaintext) == size
        assert plaintext[:size] == b"x" * size
        assert (opener.next_seq, opener.closed_by) == (8, FrameType(kind) if kind else None)
        due += 1
    assert due == 6


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=8))
def test_frames_without_a_seal_read_back_in_their_order(payloads: list[bytes]) -> None:
    sealer, opener = ClearSealer(3), ClearOpener(3)
    frame, plaintext = memoryview(bytearray(MAX_FRAME_BYTES)), memoryview(bytearray(MAX_FRAME_BYTES))
    for kind, payload in [*((FrameType.DATA, each) for each in payloads), (FrameType.FIN, b"")]:
        size = sealer.seal_into(kind, payload, frame)
        assert opener.header(frame[:HEADER_BYTES]) == size - HEADER_BYTES
        assert bytes(plaintext[: opener.open_into(frame, frame[HEADER_BYTES:size], plaintext)]) == payload
    assert opener.closed_by is FrameType.FIN


def _peer() -> ControlPeer:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, moment, moment)
    leaf = builder.sign(key, hashes.SHA256())
    return ControlPeer(SpiffeId("example.test", "b"), leaf, b"", (), "", "", "")


PEER = _peer()
