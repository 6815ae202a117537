"""Frames: what is sealed opens once, in order, on its own channel and direction; everything else is refused."""

import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import Misuse, ProtocolViolation
from transport.wire.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES, FrameType, LaneOpener, LaneSealer
from transport.wire.keys import FRAMES_PER_EPOCH, ConnectionKeys, Direction, epoch_key, next_lane_secret

KEYS = ConnectionKeys(bytes(range(48)))
FORTH, BACK = Direction.SOURCE_TO_DESTINATION, Direction.DESTINATION_TO_SOURCE
LANE = KEYS.lane_secret(0, FORTH)


def seal(sealer: LaneSealer, payload: bytes, frame_type: FrameType = FrameType.DATA) -> bytes:
    frame = bytearray(len(payload) + HEADER_BYTES + TAG_BYTES)
    assert sealer.seal_into(frame_type, payload, memoryview(frame)) == len(frame)
    return bytes(frame)


def open_frame(opener: LaneOpener, frame: bytes) -> bytes:
    header = frame[:HEADER_BYTES]
    due = opener.header(header)
    body = frame[HEADER_BYTES:]
    if len(body) != due:
        raise ProtocolViolation("truncated")
    plaintext = bytearray(MAX_PAYLOAD_BYTES)
    size = opener.open_into(header, memoryview(body), memoryview(plaintext))
    return bytes(plaintext[:size])


@given(st.lists(st.binary(min_size=1, max_size=4096), max_size=20))
def test_what_is_sealed_opens_to_the_same_bytes(payloads: list[bytes]) -> None:
    sealer, opener = LaneSealer(LANE), LaneOpener(LANE)
    assert [open_frame(opener, seal(sealer, payload)) for payload in payloads] == payloads
    assert open_frame(opener, seal(sealer, b"", FrameType.FIN)) == b""
    assert opener.closed_by is FrameType.FIN


def test_a_frame_is_plain_aes_256_gcm_as_documented() -> None:
    key = epoch_key(LANE)
    frame = seal(LaneSealer(LANE, 7), b"guest")
    header = struct.pack(">IB3xQ", 5, 0, 7)
    nonce = (key.iv ^ 7).to_bytes(12, "big")
    assert frame == header + AESGCM(key.key).encrypt(nonce, b"guest", header)


@given(st.integers(0, (HEADER_BYTES + 40 + TAG_BYTES) * 8 - 1))
def test_one_flipped_bit_anywhere_is_refused(bit: int) -> None:
    frame = bytearray(seal(LaneSealer(LANE), b"x" * 40))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolViolation):
        open_frame(LaneOpener(LANE), bytes(frame))


@pytest.mark.parametrize("order", [[1], [0, 0], [0, 2], [1, 0], [0, 1, 0]], ids=str)
def test_lost_replayed_and_reordered_frames_are_refused(order: list[int]) -> None:
    sealer, opener = LaneSealer(LANE), LaneOpener(LANE)
    frames = [seal(sealer, bytes([n]) * 9) for n in range(3)]
    with pytest.raises(ProtocolViolation):
        for n in order:
            open_frame(opener, frames[n])


@pytest.mark.parametrize(
    "elsewhere",
    [
        pytest.param(KEYS.lane_secret(0, BACK), id="reflected"),
        pytest.param(KEYS.lane_secret(1, FORTH), id="another channel"),
        pytest.param(ConnectionKeys(b"k" * 48).lane_secret(0, FORTH), id="another session"),
    ],
)
def test_a_frame_opens_in_its_own_place_only(elsewhere: bytes) -> None:
    frame = seal(LaneSealer(LANE), b"guest")
    with pytest.raises(ProtocolViolation):
        open_frame(LaneOpener(elsewhere), frame)


@pytest.mark.parametrize(
    ("size", "frame_type", "seq", "pad"),
    [
        pytest.param(MAX_PAYLOAD_BYTES + 1, 0, 0, b"\0\0\0", id="oversized"),
        pytest.param(0, 0, 0, b"\0\0\0", id="empty data"),
        pytest.param(1, 1, 0, b"\0\0\0", id="fin with payload"),
        pytest.param(0, 2, 0, b"\0\0\0", id="reset without code"),
        pytest.param(5, 3, 0, b"\0\0\0", id="unknown type"),
        pytest.param(5, 0, 1, b"\0\0\0", id="future seq"),
        pytest.param(5, 0, 0, b"\0\1\0", id="non-zero pad"),
    ],
)
def test_a_bad_header_is_refused_before_its_body_is_waited_for(
    size: int, frame_type: int, seq: int, pad: bytes
) -> None:
    with pytest.raises(ProtocolViolation):
        LaneOpener(LANE).header(struct.pack(">IB", size, frame_type) + pad + struct.pack(">Q", seq))


def test_nothing_follows_fin_or_reset() -> None:
    sealer, opener = LaneSealer(LANE), LaneOpener(LANE)
    open_frame(opener, seal(sealer, b"\0\1", FrameType.RESET))
    assert opener.closed_by is FrameType.RESET
    with pytest.raises(Misuse):
        seal(sealer, b"more")
    with pytest.raises(ProtocolViolation):
        opener.header(struct.pack(">IB3xQ", 4, 0, 1))


def test_nothing_opens_after_a_forgery() -> None:
    sealer, opener = LaneSealer(LANE), LaneOpener(LANE)
    good = seal(sealer, b"good")
    with pytest.raises(ProtocolViolation):
        open_frame(opener, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(ProtocolViolation):
        open_frame(opener, good)


@pytest.mark.parametrize("first", [0, 5, 1 << 40])
def test_the_key_changes_after_65_536_frames_of_this_connection(first: int) -> None:
    """Frames 65,535 and 65,536, counted from a first seq that need not be zero."""
    sealer, opener = LaneSealer(LANE, first), LaneOpener(LANE, first)
    last_of_epoch = b""
    for _ in range(FRAMES_PER_EPOCH):
        last_of_epoch = seal(sealer, b"x")
        assert open_frame(opener, last_of_epoch) == b"x"
    first_of_next = seal(sealer, b"y")
    assert open_frame(opener, first_of_next) == b"y"
    for frame, secret in ((last_of_epoch, LANE), (first_of_next, next_lane_secret(LANE))):
        key = epoch_key(secret)
        seq = struct.unpack_from(">8xQ", frame)[0]
        header, body = frame[:HEADER_BYTES], frame[HEADER_BYTES:]
        assert AESGCM(key.key).decrypt((key.iv ^ seq).to_bytes(12, "big"), body, header) in (b"x", b"y")


SIZES = st.sampled_from([0, 1, 2, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES + 1, 2**32 - 1]) | st.integers(0, 2**32 - 1)
HEADERS = st.builds(
    lambda size, kind, zero, seq: struct.pack(">IB3sQ", size, kind, zero, seq),
    SIZES,
    st.integers(0, 4),
    st.sampled_from([bytes(3), b"\0\0\1"]),
    st.integers(0, 1),
)


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES) | HEADERS)
def test_any_header_is_accepted_or_a_violation(header: bytes) -> None:
    try:
        due = LaneOpener(LANE).header(header)
    except ProtocolViolation:
        return
    size, kind, zero, seq = struct.unpack(">IB3sQ", header)
    assert (due, zero, seq) == (size + TAG_BYTES, bytes(3), 0)
    allowed = {FrameType.DATA: range(1, MAX_PAYLOAD_BYTES + 1), FrameType.FIN: (0,), FrameType.RESET: (2,)}
    assert size in allowed[FrameType(kind)]
