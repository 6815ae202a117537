"""libvirt's RPC framing: what is read is what was written, in any pieces; whatever else is refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transport.libvirt_rpc.samples import call
from transport.libvirt_rpc.errors import RpcMalformed
from transport.libvirt_rpc.framing import (
    HEADER_BYTES,
    LENGTH_BYTES,
    MAX_MESSAGE_BYTES,
    PONG,
    REMOTE_PROGRAM,
    MessageType,
    Packet,
    PacketReader,
    Status,
    decode_error,
    encode_error,
)

packets = st.builds(
    Packet,
    st.just(REMOTE_PROGRAM),
    st.integers(0, 2**31 - 1),
    st.sampled_from(MessageType),
    st.integers(0, 2**32 - 1),
    st.sampled_from(Status),
    st.binary(max_size=64),
)


@given(st.lists(packets, max_size=4), st.lists(st.integers(1, 40), max_size=30))
def test_packets_are_the_same_however_their_bytes_are_cut(sent: list[Packet], cuts: list[int]) -> None:
    data = b"".join(packet.encode() for packet in sent)
    reader, found = PacketReader(), []
    for size in [*cuts, len(data)]:
        found += reader.feed(data[:size])
        data = data[size:]
    assert found == sent
    assert reader.is_between_packets


@given(st.binary(max_size=200))
def test_any_bytes_are_packets_or_refused(data: bytes) -> None:
    try:
        PacketReader().feed(data)
    except RpcMalformed:
        pass


@pytest.mark.parametrize("size", [0, LENGTH_BYTES + HEADER_BYTES - 1, MAX_MESSAGE_BYTES + 1, 0xFFFFFFFF])
def test_an_impossible_length_is_refused_before_anything_is_held(size: int) -> None:
    with pytest.raises(RpcMalformed, match="bytes"):
        PacketReader().feed(size.to_bytes(4, "big"))


@pytest.mark.parametrize(("at", "value"), [(4, 0x20008087), (8, 2), (16, 7), (24, 3)])
def test_another_program_version_type_or_status_is_refused(at: int, value: int) -> None:
    data = bytearray(call(1).encode())
    data[at : at + 4] = value.to_bytes(4, "big")
    with pytest.raises(RpcMalformed):
        PacketReader().feed(bytes(data))


@pytest.mark.parametrize(("at", "value"), [(12, 3), (16, 0), (20, 1), (24, 1)])
def test_a_keepalive_that_is_none_is_refused(at: int, value: int) -> None:
    data = bytearray(PONG.encode())
    data[at : at + 4] = value.to_bytes(4, "big")
    with pytest.raises(RpcMalformed, match="keepalive"):
        PacketReader().feed(bytes(data))


def test_an_error_says_its_message_to_the_caller() -> None:
    assert decode_error(encode_error(88, "denied by policy no-friday")) == (88, "denied by policy no-friday")
