"""The window against a plain list of frames: whatever is sent, lost and acknowledged, each frame is what it was."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.errors import Misuse, ProtocolViolation
from transport.wire.frames import MAX_PAYLOAD_BYTES, FrameType
from transport.wire.window import MAX_FRAMES, MIN_WINDOW_BYTES, SendWindow

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(1, MAX_PAYLOAD_BYTES)),
        st.tuples(st.just("send"), st.integers(1, 8)),
        st.tuples(st.just("acknowledge"), st.integers(0, 100)),
        st.tuples(st.just("lose"), st.integers(0, 100)),
        st.tuples(st.just("interrupt"), st.integers(1, 1000)),
    ),
    max_size=120,
)


def mark(number: int, size: int) -> bytes:
    """A payload that tells which frame it is, at its beginning and end."""
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


@given(STEPS)
@settings(deadline=None, max_examples=60)
def test_every_frame_that_may_be_sent_again_is_what_it_was(steps: list[tuple[str, int]]) -> None:
    window = SendWindow(MIN_WINDOW_BYTES)
    frames: list[bytes] = []
    for what, number in steps:
        match what:
            case "read" if room := window.room():
                payload = mark(len(frames), max(window.pending, min(number, len(room))))
                room[: len(payload)] = payload
                window.append(FrameType.DATA, len(payload))
                frames.append(payload)
            case "interrupt" if room := window.room():
                window.pending = max(window.pending, min(number, len(room)))
            case "send":
                for _ in range(number):
                    if (due := window.unsent()) is not None:
                        assert (due[0], bytes(due[1])) == (FrameType.DATA, frames[window.sent])
                        window.note_sent()
            case "acknowledge":
                window.acknowledge(window.acked + (window.sent - window.acked) * number // 100)
            case "lose":
                window.rewind(max(window.base, window.acked + (window.sent - window.acked) * number // 100))
            case _:
                pass
        assert window.acked <= window.base <= window.sent <= window.next_seq == len(frames)
    for number in range(window.base, len(frames)):
        window.sent = number
        due = window.unsent()
        assert due is not None
        assert bytes(due[1]) == frames[number]


def fill(window: SendWindow, frames: int, size: int = 1) -> None:
    for _ in range(frames):
        window.append(FrameType.DATA, min(size, len(window.room())))
    while window.unsent() is not None:
        window.note_sent()


def test_a_full_window_has_no_room_until_the_peer_acknowledges() -> None:
    window = SendWindow(MIN_WINDOW_BYTES)
    fill(window, MIN_WINDOW_BYTES // MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES)
    assert not window.room()
    window.acknowledge(1)
    assert len(window.room()) == MAX_PAYLOAD_BYTES


def test_frames_of_one_byte_fill_it_too() -> None:
    window = SendWindow(MIN_WINDOW_BYTES)
    fill(window, MAX_FRAMES)
    assert not window.room()


def test_the_end_finds_room_in_a_full_window_and_keeps_its_payload() -> None:
    window = SendWindow(MIN_WINDOW_BYTES)
    fill(window, MAX_FRAMES)
    window.close(FrameType.RESET, b"\x00\x01")
    assert window.unsent() == (FrameType.RESET, b"\x00\x01")
    assert not window.is_finished
    window.note_sent()
    assert window.is_finished
    assert not window.is_acknowledged
    window.acknowledge(window.next_seq)
    assert window.is_acknowledged
    with pytest.raises(Misuse):
        window.append(FrameType.DATA, 1)


@pytest.mark.parametrize(("acked", "following"), [(2, 1), (2, 6), (0, 6)])
def test_a_peer_that_resumes_from_where_it_cannot_be_is_refused(acked: int, following: int) -> None:
    window = SendWindow(MIN_WINDOW_BYTES)
    fill(window, 5)
    window.acknowledge(acked)
    with pytest.raises(ProtocolViolation):
        window.rewind(following)


@pytest.mark.parametrize("count", [1, 6])
def test_an_acknowledgement_that_falls_or_exceeds_what_was_sent_is_refused(count: int) -> None:
    window = SendWindow(MIN_WINDOW_BYTES)
    fill(window, 5)
    window.acknowledge(2)
    with pytest.raises(ProtocolViolation):
        window.acknowledge(count)


def test_after_a_loss_only_what_was_sent_since_can_be_acknowledged_or_held() -> None:
    window = SendWindow(MIN_WINDOW_BYTES)
    fill(window, 5)
    window.rewind(3)
    for refused in (window.rewind, window.acknowledge):
        with pytest.raises(ProtocolViolation):
            refused(4)
