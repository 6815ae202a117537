"""The window against a plain list of frames: whatever is sent, lost and acknowledged, each frame is what it was."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.errors import Misuse, ProtocolViolation
from transport.wire.frames import MAX_PAYLOAD_BYTES, FrameType
from transport.wire.window import LARGE_BYTES, MAX_FRAMES, MIN_WINDOW_BYTES, SMALL_BYTES, SendWindow, lazy_buffer


class Few:
    """Lends so many places, and knows whom it has lent them to."""

    def __init__(self, most: int) -> None:
        self.free = [lazy_buffer(LARGE_BYTES) for _ in range(most)]
        self.lent: list[memoryview] = []

    def lend(self, count: int) -> list[memoryview] | None:
        if len(self.free) < count:
            return None
        places = [self.free.pop() for _ in range(count)]
        self.lent += places
        return places

    def take_back(self, *places: memoryview) -> None:
        for place in places:
            assert [each for each in self.lent if each is place], "given back twice, or never lent"
            self.lent = [each for each in self.lent if each is not place]
            self.free.append(place)


STEP = st.one_of(
    st.tuples(st.just("read"), st.integers(1, MAX_PAYLOAD_BYTES)),
    st.tuples(st.just("send"), st.integers(1, 8)),
    st.tuples(st.just("acknowledge"), st.integers(0, 100)),
    st.tuples(st.just("lose"), st.integers(0, 100)),
    st.tuples(st.just("interrupt"), st.integers(1, 1000)),
    st.tuples(st.just("rest"), st.just(0)),
    st.tuples(st.just("stall"), st.just(0)),
)


def mark(number: int, size: int) -> bytes:
    """A payload that tells which frame it is, at its beginning and end."""
    return (number.to_bytes(4, "big") * (size // 4 + 1))[:size]


@given(st.lists(st.tuples(st.integers(0, 2), STEP), max_size=160))
@settings(deadline=None, max_examples=60)
def test_every_frame_that_may_be_sent_again_is_what_it_was(  # noqa: PLR0912 - an arm for each thing that can happen
    steps: list[tuple[int, tuple[str, int]]],
) -> None:
    """Of three windows whose lender has so little that they often get nothing. In the end all of it is given back, and
    what a lane still sends out of is not lent to another meanwhile."""
    lender = Few(5)
    windows = [SendWindow(MIN_WINDOW_BYTES, lender) for _ in range(3)]
    sealed: dict[int, tuple[memoryview, bytes]] = {}  # what is half sent
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
                        require_unchanged(sealed.pop(at, None))
                        window.note_whole()
                        assert (due[0], bytes(due[1])) == (FrameType.DATA, frames[window.sent])
                        window.frame(len(due[1]))[: len(due[1])] = due[1]
                        window.note_sent()
            case "stall" if (due := window.unsent()) is not None and at not in sealed:
                frame, window.is_sending = window.frame(len(due[1])), True
                frame[: len(due[1])] = due[1]
                sealed[at] = frame, bytes(due[1])
                window.note_sent()
            case "rest":
                window.rest()
            case "acknowledge":
                window.acknowledge(window.acked + (window.sent - window.acked) * number // 100)
            case "lose":
                require_unchanged(sealed.pop(at, None))
                window.note_whole()
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
    for at, window in enumerate(windows):
        require_unchanged(sealed.pop(at, None))
        window.give_all()
    assert lender.lent == []
    assert len(lender.free) == 5


def require_unchanged(sending: tuple[memoryview, bytes] | None) -> None:
    if sending is not None:
        frame, was = sending
        assert frame[: len(was)] == was


def fill(window: SendWindow, frames: int, size: int = 1) -> None:
    for _ in range(frames):
        window.append(FrameType.DATA, min(size, len(window.room())))
    while window.unsent() is not None:
        window.note_sent()


def fill_up(window: SendWindow) -> list[int]:
    """Frames of the largest size until there is no room; their sizes."""
    sizes = []
    while room := window.room():
        window.append(FrameType.DATA, len(room))
        window.note_sent()
        sizes.append(len(room))
    return sizes


LARGE = MIN_WINDOW_BYTES // MAX_PAYLOAD_BYTES - 1  # and a small one, with which it begins


def test_a_full_window_has_no_room_until_the_peer_acknowledges() -> None:
    window = SendWindow(MIN_WINDOW_BYTES)
    assert fill_up(window) == [SMALL_BYTES, *[MAX_PAYLOAD_BYTES] * LARGE, SMALL_BYTES]
    window.acknowledge(2)
    assert len(window.room()) == MAX_PAYLOAD_BYTES


def test_a_window_that_is_lent_nothing_goes_on_with_two_small_slots_for_ever() -> None:
    window = SendWindow(MIN_WINDOW_BYTES, Few(1))
    for _ in range(100):
        assert fill_up(window) == [SMALL_BYTES, SMALL_BYTES]
        window.acknowledge(window.sent)


def test_windows_share_what_is_lent_and_each_has_its_own_besides() -> None:
    lender = Few(9)
    first, second = SendWindow(MIN_WINDOW_BYTES, lender), SendWindow(MIN_WINDOW_BYTES, lender)
    assert fill_up(first) == [SMALL_BYTES, *[MAX_PAYLOAD_BYTES] * LARGE, SMALL_BYTES]
    assert lender.free != [], "the one in which to seal is lent together with the first"
    assert fill_up(second) == [SMALL_BYTES, SMALL_BYTES]
    first.acknowledge(4)
    second.acknowledge(1)
    assert fill_up(second)[:1] == [MAX_PAYLOAD_BYTES]
    for window in (first, second):
        window.close(FrameType.FIN)
        window.note_sent()
        window.acknowledge(window.sent)
    assert lender.lent == [], "nothing is kept by a window that needs it no more"


def test_a_window_whose_hypervisor_says_nothing_has_nothing_once_all_is_acknowledged() -> None:
    lender = Few(20)
    window = SendWindow(MIN_WINDOW_BYTES, lender)
    for _ in range(3):
        window.append(FrameType.DATA, len(window.room()))
        window.note_sent()
    assert window.room()
    window.rest()
    assert lender.lent != []
    window.acknowledge(3)
    assert lender.lent == []
    assert len(window.room()) == SMALL_BYTES


def test_what_is_sent_out_of_is_lent_to_nobody_else_by_an_acknowledgement_that_comes_too_soon() -> None:
    """Another session's plaintext would go to this peer, in the clear."""
    lender = Few(3)
    window = SendWindow(MIN_WINDOW_BYTES, lender)
    window.append(FrameType.DATA, len(window.room()))
    window.append(FrameType.DATA, len(window.room()))
    window.note_sent()
    frame, window.is_sending = window.frame(MAX_PAYLOAD_BYTES), True
    window.note_sent()
    window.rest()
    window.acknowledge(2)
    assert [each is frame for each in lender.lent] == [True]
    window.note_whole()
    assert lender.lent == []


def test_a_window_that_was_given_up_has_nothing_and_keeps_its_counts() -> None:
    lender = Few(20)
    window = SendWindow(MIN_WINDOW_BYTES, lender)
    fill_up(window)
    sent = window.sent
    window.give_all()
    assert lender.lent == []
    window.acknowledge(sent - 1)
    assert (window.next_seq, window.base) == (sent, sent - 1)


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


def test_what_the_peer_has_held_once_and_is_forgotten_here_it_cannot_lack_later() -> None:
    """Another frame would be sent in place of one that is not kept any more."""
    window = SendWindow(MIN_WINDOW_BYTES)
    fill(window, 5)
    window.rewind(3)
    while window.unsent() is not None:
        window.note_sent()
    assert (window.acked, window.base, window.sent) == (0, 3, 5)
    with pytest.raises(ProtocolViolation):
        window.rewind(2)
    window.rewind(3)
