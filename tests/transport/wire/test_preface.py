"""The preface of a lane: only the holder of the connection's keys can make one, for one channel."""

import hmac
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import Misuse, ProtocolViolation
from transport.wire.keys import ConnectionKeys
from transport.wire.preface import MAGIC, MAX_CHANNELS, PREFACE_BYTES, authenticate_preface, make_preface, read_preface

KEYS = ConnectionKeys(bytes(range(48)))


@given(st.integers(0, MAX_CHANNELS - 1))
def test_a_preface_reads_back_and_authenticates(channel: int) -> None:
    data = make_preface(KEYS, channel)
    assert len(data) == PREFACE_BYTES
    preface = read_preface(data)
    assert (preface.channel, preface.connection_id) == (channel, KEYS.connection_id)
    authenticate_preface(preface, KEYS)


@given(st.integers(0, PREFACE_BYTES * 8 - 1))
def test_one_flipped_bit_anywhere_is_refused(bit: int) -> None:
    data = bytearray(make_preface(KEYS, 3))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ProtocolViolation):
        authenticate_preface(read_preface(bytes(data)), KEYS)


def test_a_wrong_fixed_byte_is_refused_also_from_whoever_has_the_keys() -> None:
    head = struct.pack(">4sHH16s", MAGIC, 3, 1, KEYS.connection_id)
    mac = hmac.digest(KEYS.preface_key(3), head, "sha384")[:32]
    with pytest.raises(ProtocolViolation, match="fixed byte"):
        read_preface(head + mac)


def test_a_preface_of_another_session_is_refused() -> None:
    with pytest.raises(ProtocolViolation):
        authenticate_preface(read_preface(make_preface(ConnectionKeys(b"x" * 48), 0)), KEYS)


# As whoever has seen one, and has no key, would make it.
FORGED = st.builds(
    lambda channel, mac: struct.pack(">4sHH16s", MAGIC, channel, 0, KEYS.connection_id) + mac,
    st.integers(0, MAX_CHANNELS),
    st.binary(min_size=32, max_size=32),
)


@given(st.binary(max_size=80) | FORGED)
def test_any_bytes_are_a_preface_or_a_violation(data: bytes) -> None:
    try:
        preface = read_preface(data)
    except ProtocolViolation:
        return
    with pytest.raises(ProtocolViolation):
        authenticate_preface(preface, KEYS)


def test_a_channel_out_of_range_is_our_mistake() -> None:
    with pytest.raises(Misuse):
        make_preface(KEYS, MAX_CHANNELS)
