"""A thousand lost connections, without a network: what is sealed, held and acknowledged, and by which nonce.

Two ends that follow docs/wire-protocol.md section 6 with the real window, sealer and opener; between them frames and
acknowledgements are lost wherever the chance says. Every connection has keys of its own, as each has an exporter's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

import pytest

from tests.transport.wire.nonces import watch_nonces
from transport.wire.frames import HEADER_BYTES, MAX_FRAME_BYTES, FrameType, LaneOpener, LaneSealer
from transport.wire.keys import ConnectionKeys, Direction
from transport.wire.window import MIN_WINDOW_BYTES, SendWindow

CUTS = 1_000
FRAMES_PER_CONNECTION = 12


@pytest.fixture
def nonces(monkeypatch: pytest.MonkeyPatch) -> set[tuple[bytes, bytes]]:
    return watch_nonces(monkeypatch)


class Ends:
    """A sender with its window, and a receiver that has written what it holds."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.window = SendWindow(MIN_WINDOW_BYTES)
        self.sent, self.arrived = hashlib.sha256(), hashlib.sha256()
        self.next_seq = 0
        self.connections = 0
        self.ended = False

    def read(self) -> None:
        """The hypervisor has something to say, in pieces of any size."""
        room = self.window.room()
        if not room or self.window.closed_by is not None:
            return
        size = min(len(room), self.chance.choice([1, 100, 5_000]))
        payload = self.chance.randbytes(size)
        room[:size] = payload
        self.sent.update(payload)
        self.window.append(FrameType.DATA, size)

    def connect(self, most_frames: int, loses: Callable[[int], bool], acknowledges: Callable[[int], bool]) -> None:
        """One connection, until it has carried `most_frames` or there are no more. `loses` and `acknowledges` are asked
        by frame number: one that is lost ends it, as all that follows would be out of order."""
        self.connections += 1
        secret = hashlib.sha384(self.connections.to_bytes(4, "big")).digest()
        lane_secret = ConnectionKeys(secret).lane_secret(0, Direction.SOURCE_TO_DESTINATION)
        self.window.rewind(self.next_seq)
        sealer, opener = LaneSealer(lane_secret, self.window.sent), LaneOpener(lane_secret, self.next_seq)
        frame, plaintext = memoryview(bytearray(MAX_FRAME_BYTES)), memoryview(bytearray(MAX_FRAME_BYTES))
        for _ in range(most_frames):
            if (due := self.window.unsent()) is None:
                return
            number = self.window.sent
            size = sealer.seal_into(due[0], due[1], frame)
            self.window.note_sent()
            if loses(number):
                return
            assert opener.header(frame[:HEADER_BYTES]) == size - HEADER_BYTES
            got = opener.open_into(frame[:HEADER_BYTES], frame[HEADER_BYTES:size], plaintext)
            self.arrived.update(plaintext[:got])
            self.next_seq = opener.next_seq
            self.ended = opener.closed_by is FrameType.FIN
            if acknowledges(number):
                self.window.acknowledge(self.next_seq)

    @property
    def is_whole(self) -> bool:
        return self.ended and self.arrived.digest() == self.sent.digest()


def test_no_nonce_comes_twice_and_nothing_is_lost_over_a_thousand_cuts(nonces: set[tuple[bytes, bytes]]) -> None:
    chance = random.Random(5)
    ends = Ends(chance)
    for _ in range(CUTS):
        for _ in range(chance.randrange(FRAMES_PER_CONNECTION)):
            ends.read()
        ends.connect(
            chance.randrange(1, FRAMES_PER_CONNECTION),
            lambda _: chance.random() < 0.2,
            lambda _: chance.random() < 0.5,
        )
    ends.window.close(FrameType.FIN)
    ends.connect(100_000, lambda _: False, lambda _: True)
    assert ends.is_whole
    assert ends.connections == CUTS + 1
    assert len(nonces) > ends.next_seq, "frames were sealed again, each under a key of its own"


@pytest.mark.parametrize("what", ["frame", "acknowledgement"])
@pytest.mark.parametrize("from_the_end", range(20))
def test_each_of_the_last_messages_may_be_lost(nonces: set[tuple[bytes, bytes]], from_the_end: int, what: str) -> None:
    ends = Ends(random.Random(from_the_end))
    for _ in range(30):
        ends.read()
    ends.window.close(FrameType.FIN)
    lost = ends.window.next_seq - 1 - from_the_end
    ends.connect(100, lambda number: what == "frame" and number == lost, lambda number: number != lost)
    if what == "acknowledgement":
        assert ends.is_whole
        assert ends.window.is_acknowledged is (from_the_end > 0)
    else:
        assert not ends.is_whole
    ends.connect(100, lambda _: False, lambda _: True)
    assert ends.is_whole
    assert ends.window.is_held
    assert len(nonces) == ends.window.next_seq + (what == "frame"), "only the lost one was sealed again"
