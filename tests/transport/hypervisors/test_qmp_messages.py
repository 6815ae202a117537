"""Lines and messages of a monitor, from honest QEMUs and from anything else behind the socket."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.hypervisors.errors import HypervisorGarbled
from transport.hypervisors.qmp_messages import (
    Event,
    Failure,
    Greeting,
    LineBuffer,
    Message,
    Reply,
    decode_message,
)

TRANSCRIPT: list[tuple[bytes, Message]] = [
    (
        b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"},'
        b' "capabilities": ["oob"]}}',
        Greeting("7.2.22", has_oob=True),
    ),
    (b'{"return": {}, "id": 1}', Reply(1, {})),
    (
        b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "setup"}}',
        Event("MIGRATION", {"status": "setup"}),
    ),
    (b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}', Event("STOP", {})),
    (b'{"id": 2, "error": {"class": "GenericError", "desc": "no"}}', Failure(2, "GenericError", "no")),
    (b'{"error": {"class": "GenericError", "desc": "not JSON"}}', Failure(None, "GenericError", "not JSON")),
    (b'{"return": null, "id": 3}', Reply(3, None)),
]


@pytest.mark.parametrize(("line", "message"), TRANSCRIPT)
def test_each_kind_of_message_is_read(line: bytes, message: Message) -> None:
    assert decode_message(line) == message


@given(st.lists(st.integers(min_value=1, max_value=90)))
def test_any_split_of_the_stream_gives_the_same_messages(steps: list[int]) -> None:
    stream = b"".join(line + b"\r\n" for line, _ in TRANSCRIPT)
    buffer, messages, at = LineBuffer(), [], 0
    for step in [*steps, len(stream)]:
        messages += [decode_message(line) for line in buffer.feed(stream[at : at + step])]
        at += step
    assert messages == [message for _, message in TRANSCRIPT]


@given(st.binary(max_size=300))
def test_any_bytes_give_messages_or_garbled_and_nothing_else(data: bytes) -> None:
    try:
        for line in LineBuffer().feed(data + b"\n"):
            decode_message(line)
    except HypervisorGarbled:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["QMP", "return", "error", "event", "data", "id", "class", "desc", "version", "x"])


@given(st.dictionaries(keys, json_values, max_size=5))
def test_any_object_gives_a_message_or_garbled_and_nothing_else(value: object) -> None:
    with contextlib.suppress(HypervisorGarbled):
        decode_message(json.dumps(value).encode())


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"HTTP/1.1 400 Bad Request",
        b"[]",
        b"{}",
        b'{"return": {}}',
        b'{"return": {}, "id": "1"}',
        b'{"return": {}, "error": {"class": "A", "desc": "b"}, "id": 1}',
        b'{"return": {}, "event": "STOP", "id": 1}',
        b'{"QMP": {}}',
        b'{"event": 5}',
        b'{"event": "STOP", "data": []}',
        b'{"error": "no", "id": 1}',
        b"[" * 100_000,
        b'{"return": "\xff", "id": 1}',
    ],
)
def test_what_is_not_exactly_one_qmp_message_is_garbled(line: bytes) -> None:
    with pytest.raises(HypervisorGarbled):
        decode_message(line)


@given(st.lists(st.integers(min_value=1, max_value=40), min_size=1))
def test_a_line_over_the_limit_is_refused_however_it_is_split(steps: list[int]) -> None:
    stream, buffer, at = b"x" * 101 + b"\n", LineBuffer(max_line_bytes=100), 0

    def feed_all() -> None:
        nonlocal at
        for step in [*steps, len(stream)]:
            buffer.feed(stream[at : at + step])
            at += step

    with pytest.raises(HypervisorGarbled, match="more than 100 bytes"):
        feed_all()


def test_a_line_of_the_limit_passes() -> None:
    buffer = LineBuffer(max_line_bytes=100)
    assert buffer.feed(b"x" * 100) == []
    assert buffer.feed(b"\n") == [b"x" * 100]
