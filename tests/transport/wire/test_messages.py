"""Control messages: strict both ways, whole or byte by byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import ProtocolViolation, RefusalCode
from transport.wire.messages import (
    MAX_MESSAGE_BYTES,
    Ack,
    Answer,
    Bye,
    Cancel,
    Handover,
    Message,
    MessageReader,
    Offer,
    Open,
    Outcome,
    Receipt,
    Refusal,
    encode_message,
)

SESSION = "0123456789abcdef" * 2
EXAMPLES: list[Message] = [
    Offer(1, "begin", ("permit",), SESSION, 0),
    Offer(1, "settle", ("permit",), SESSION, 4_294_967_295, {"0": 3}),
    Answer({}, 16),
    Refusal(RefusalCode.PERMIT_PROOF, "no"),
    Open(255, "memory"),
    Ack({"0": 1, "255": (1 << 62) - 1}),
    Handover(),
    Outcome("running"),
    Cancel("hypervisor", "it died"),
    Receipt("{}", "c2ln"),
    Bye(),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_reads_back(message: Message) -> None:
    assert MessageReader().feed(encode_message(message)) == [message]


@given(st.lists(st.sampled_from(EXAMPLES), max_size=6), st.data())
def test_any_split_of_the_input_gives_the_same_messages(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(encode_message(message) for message in messages)
    reader = MessageReader()
    found: list[Message] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert found == messages
    assert reader.is_between_messages


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'{"type":"unknown"}',
        b'{"type":"bye","more":1}',
        b'{"type":"outcome","outcome":"both"}',
        b'{"type":"open","channel":256,"port":"memory"}',
        b'{"type":"open","channel":-1,"port":"memory"}',
        b'{"type":"open","channel":true,"port":"memory"}',
        b'{"type":"open","channel":0,"port":"SSH"}',
        b'{"type":"open","channel":"0","port":"memory"}',
        b'{"type":"ack","written":{"01":1}}',
        b'{"type":"ack","written":{"0":-1}}',
        b'{"type":"ack","written":{"0":1.5}}',
        b'{"type":"ack","written":{"0":9223372036854775808}}',
        b'{"type":"cancel","code":"\\u001b[2J","reason":""}',
        b'{"type":"bye"}{"type":"bye"}',
        b'{"type":"bye","type":"bye"}',
        b'{"type":"outcome","outcome":"running","outcome":"discarded"}',
        b'{"type":"ack","written":{"0":1,"0":2}}',
        b'\xff{"type":"bye"}',
    ],
)
def test_a_message_that_is_not_exactly_one_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        MessageReader().feed(len(body).to_bytes(4, "big") + body)


@pytest.mark.parametrize(
    "change",
    [
        {"protocol": 2},
        {"purpose": "resumed"},
        {"permits": []},
        {"permits": ["a", "b", "c"]},
        {"permits": [""]},
        {"session_id": SESSION.upper()},
        {"session_id": SESSION[:-1]},
        {"session_id": SESSION + "\n"},
        {"attempt": 1 << 32},
        {"attempt": -1},
        {"trace": "x"},
    ],
    ids=str,
)
def test_an_offer_with_one_wrong_member_is_refused(change: dict[str, object]) -> None:
    offer = json.loads(encode_message(Offer(1, "begin", ("permit",), SESSION, 0))[4:])
    body = json.dumps(offer | change).encode()
    with pytest.raises(ProtocolViolation):
        MessageReader().feed(len(body).to_bytes(4, "big") + body)


def test_a_permit_of_any_length_is_read_so_that_its_size_is_refused_by_its_code() -> None:
    message = Offer(1, "begin", ("x" * 16_385,), SESSION, 0)
    assert MessageReader().feed(encode_message(message)) == [message]


def test_a_message_may_have_64_kib_and_no_byte_more() -> None:
    body = b'{"type":"bye"}'.ljust(MAX_MESSAGE_BYTES)
    assert MessageReader().feed(len(body).to_bytes(4) + body) == [Bye()]
    with pytest.raises(ProtocolViolation):
        MessageReader().feed((len(body) + 1).to_bytes(4) + body + b" ")


def test_a_receipt_may_have_48_ki_characters_and_no_more() -> None:
    assert MessageReader().feed(encode_message(longest := Receipt("x" * 49_152, ""))) == [longest]
    with pytest.raises(ProtocolViolation):
        MessageReader().feed(encode_message(Receipt("x" * 49_153, "")))


def test_a_length_beyond_the_limit_is_refused_before_the_body_comes() -> None:
    with pytest.raises(ProtocolViolation):
        MessageReader().feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"))


def test_the_peers_bytes_do_not_stand_in_the_error() -> None:
    body = b'{"type":"bye","\\u001b[31mred":1}'
    with pytest.raises(ProtocolViolation) as refused:
        MessageReader().feed(len(body).to_bytes(4, "big") + body)
    assert "red" not in str(refused.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_violation(data: bytes) -> None:
    try:
        MessageReader().feed(data)
    except ProtocolViolation:
        pass
