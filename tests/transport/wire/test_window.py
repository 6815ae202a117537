"""The window against a plain list of frames: whatever is sent, lost and acknowledged, each frame is what it was."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.errors import Misuse, ProtocolViolation
from transport.wire.frames import MAX_PAYLOAD_BYTES, FrameType
from transport.wire.window import MAX_FRAMES, MIN_WINDOW_BYTES, SendWindow, Slots

STEP = st.one_of(
    st.tuples(st.just("read"), st.integers(1, MAX_PAYLOAD_BYTES)),
    st.tuples(st.just("send"), st.integers(1, 8)),
    st.tuples(st.just("acknowledge"), st.integers(0, 100)),
    st.tuples(st.just("lose"), st.integers(0, 100)),
    st.tuples(st.just("interrupt"), st.integers(1, 1000)),
)


def mark(number: int, size: int) -> bytes:
    """A payload that tells which frame it is, at its beginning and end."""
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


@given(st.lists(st.tuples(st.integers(0, 2), STEP), max_size=160))
@settings(deadline=None, max_examples=60)
def test_every_frame_that_may_be_sent_again_is_what_it_was(steps: list[tuple[int, tuple[str, int]]]) -> None:
    """Of three windows that share so few slots that they often lack one."""
    slots = Slots(3 * MAX_PAYLOAD_BYTES)
    windows = [SendWindow(MIN_WINDOW_BYTES, slots) for _ in range(3)]
    carried: list[list[bytes]] = [[], [], []]
    for at, (what, number) in steps:
        window, frames = windows[at], carried[at]
        match what:
            case "read" if room := window.room():
                payload = mark(3 * len(frames) + at, max(window.pending, min(number, len(room))))
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
    for window, frames in zip(windows, carried, strict=True):
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


def fill_up(window: SendWindow) -> int:
    """Frames of the largest size until there is no room; how many."""
    before = window.next_seq
    while room := window.room():
        window.append(FrameType.DATA, len(room))
        window.note_sent()
    return window.next_seq - before


def test_windows_that_share_their_slots_leave_two_to_each_of_the_others_and_give_them_back() -> None:
    slots = Slots(MIN_WINDOW_BYTES)
    first, second, third = (SendWindow(MIN_WINDOW_BYTES, slots) for _ in range(3))
    assert [fill_up(each) for each in (first, second, third)] == [8, 4, 2]
    third.acknowledge(2)
    assert fill_up(third) == 2, "its own two go on, whatever the others hold"
    first.acknowledge(first.sent)
    assert first.room()
    assert fill_up(third) == 4 + 2
    first.close(FrameType.FIN)
    first.note_sent()
    second.acknowledge(second.sent)
    third.acknowledge(third.sent)
    first.acknowledge(first.sent)
    assert fill_up(second) == 8, "nothing was kept by a window that needs it no more"


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
