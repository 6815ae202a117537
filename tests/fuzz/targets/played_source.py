"""A source that the permit names and that does as it likes, and what it may hold a destination to (`sessions`).

It keeps for itself what it has said on each channel and what it was told, over all connections.
"""

from __future__ import annotations

import hashlib
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import trio

from transport.errors import ConnectionBroken, ProtocolViolation
from transport.wire.control import ControlOrder, Phase, Role
from transport.wire.frames import HEADER_BYTES, MAX_PAYLOAD_BYTES, TAG_BYTES, FrameType, LaneOpener, LaneSealer
from transport.wire.keys import ConnectionKeys, Direction
from transport.wire.messages import (
    Ack,
    Answer,
    Bye,
    Handover,
    Message,
    MessageReader,
    Offer,
    Outcome,
    Receipt,
    encode_message,
)
from transport.wire.preface import make_preface

MOST_BYTES: Final = 3 << 20  # of each channel and direction
_TEXT: Final = random.Random(1).randbytes(MOST_BYTES + 4096)


def text(channel: int, way: Direction, start: int, end: int) -> bytes:
    """What is said there, always: each channel and direction has a text of its own."""
    shift = 64 * channel + 17 * int(way)
    return _TEXT[shift + start : shift + end]


@dataclass(eq=False)
class Said:
    """On one channel, over all connections. `ends`: of each frame that the destination may hold, where it ends in our
    text; `heard`: of each of its frames the payload."""

    ends: list[int] = field(default_factory=list)
    is_over: bool = False
    acknowledged: int = 0
    heard: list[bytes] = field(default_factory=list)
    has_lied: bool = False  # that it holds what it does not: nothing can be asked of what it hears then

    @property
    def length(self) -> int:
        return self.ends[-1] if self.ends else 0

    def go_on(self, following: int) -> None:
        """The destination holds all frames below `following`."""
        assert self.acknowledged <= following <= len(self.ends), "it lacks what it has acknowledged, or has more"
        if following < len(self.ends):
            self.is_over = False
        del self.ends[following:]


@dataclass
class Lane:
    sock: socket.socket
    sealer: LaneSealer
    opener: LaneOpener
    unsent: bytearray = field(default_factory=bytearray)
    received: bytearray = field(default_factory=bytearray)
    is_broken: bool = False  # by us: what follows cannot be believed

    def flush(self, most: int = 1 << 30) -> None:
        """What it takes now, and no more than `most` bytes."""
        with suppress(BlockingIOError, OSError):
            while self.unsent and most > 0:
                sent = self.sock.send(self.unsent[: min(most, 1 << 18)])
                del self.unsent[:sent]
                most -= sent


class Source:
    """`said` outlives its connections; all else is of the one that lives."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.attempt = -1
        self.was_answered = False
        self.outcomes: list[str] = []  # that it was told
        self.certified: list[str] = []  # the destination's receipts
        self.has_handed_over = self.has_given_away = False  # its guest, and that in post-copy
        self.answered = -1  # the greatest attempt that was
        self._offer: Offer | None = None  # of this connection
        self.said: list[Said] = []
        self.lanes: dict[int, Lane] = {}
        self.control: socket.socket | None = None
        self.keys = ConnectionKeys(bytes(48))
        self.order = ControlOrder(Role.SOURCE)
        self.is_sound = True  # it has kept to the order on this connection
        self.is_another = False  # another host, which speaks of the same session
        self._reader = MessageReader()
        self._awaits_receipt = False

    def connect(self, control: socket.socket, offer: Offer, keys: ConnectionKeys) -> None:
        """Over a new connection. The older one is closed before."""
        self.control, self.order, self._reader, self.is_sound = (
            control,
            ControlOrder(Role.SOURCE),
            MessageReader(),
            True,
        )
        self.keys, self.attempt, self._offer = keys, max(self.attempt, offer.attempt), offer
        self._awaits_receipt = False
        for channel, count in offer.next.items():
            if int(channel) < len(self.said):
                each = self.said[int(channel)]
                each.has_lied |= count > len(each.heard)
                del each.heard[count:]
        self.say(offer)

    def say(self, message: Message) -> None:
        try:
            self.order._pass(Role.SOURCE, message)  # `sent`, whose error would be a bug of ours
        except ProtocolViolation:
            self.is_sound = False
        # What crosses these on its way would be out of order, and is nobody's fault: no source ends so.
        if isinstance(message, Bye) or (self._awaits_receipt and not isinstance(message, Ack)):
            self.is_sound = False
        self._awaits_receipt = isinstance(message, Receipt)
        self.has_handed_over |= isinstance(message, Handover)
        self.has_given_away |= isinstance(message, Handover) and message.post_copy
        self.write(encode_message(message))

    def write(self, data: bytes) -> None:
        if self.control is not None:
            with suppress(OSError):
                self.control.send(data)

    def hear(self) -> None:
        """Everything that the destination has said by now, each thing held against the order."""
        while self.control is not None:
            try:
                data = self.control.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            for message in self._reader.feed(data):
                self._heed(message)

    def _heed(self, message: Message) -> None:
        if self.is_sound:
            sent = {str(number): len(each.ends) for number, each in enumerate(self.said)}
            self.order.received(message, sent)  # a violation would be the destination's, and is a failure
        if isinstance(message, Answer) and self._offer is not None:
            self._begin(self._offer, message)
        if isinstance(message, Outcome):
            self.outcomes.append(message.outcome)
        if isinstance(message, Receipt):
            self.certified.append(message.body)
        self._awaits_receipt &= not isinstance(message, Receipt)
        if isinstance(message, Ack):
            for channel, count in message.written.items():
                each = self.said[int(channel)]
                assert each.acknowledged <= count <= len(each.ends), "an acknowledgement that falls, or of too much"
                each.acknowledged = count

    def _begin(self, offer: Offer, answer: Answer) -> None:
        assert not self.is_another, "a session is another host's"
        if offer.purpose == "recover":  # a session of its own
            self.session_id, self.said = offer.session_id, []
        else:
            assert offer.attempt > self.answered, "an attempt that does not increase is answered"
        self.was_answered, self.answered = True, offer.attempt
        if self.is_sound and offer.purpose != "settle":
            for number, each in enumerate(self.said):
                each.go_on(answer.next.get(str(number), 0))

    @property
    def may_carry(self) -> bool:
        return self.control is not None and self.order.phase not in (Phase.OFFERING, Phase.ANSWERING, Phase.ENDED)

    def lane(self, channel: int, sock: socket.socket) -> bytes:
        """Its preface, which the listener takes; it begins where both ends are."""
        each = self.said[channel]
        forth, back = Direction.SOURCE_TO_DESTINATION, Direction.DESTINATION_TO_SOURCE
        sealer = LaneSealer(self.keys.lane_secret(channel, forth), len(each.ends))
        self.lanes[channel] = Lane(sock, sealer, LaneOpener(self.keys.lane_secret(channel, back), len(each.heard)))
        return make_preface(self.keys, channel)

    def frame(self, channel: int, kind: FrameType, size: int, spoil: int | None = None) -> None:
        """The next of our text, or an end; `spoil`: a bit of it is another."""
        lane, each = self.lanes[channel], self.said[channel]
        if each.is_over or lane.is_broken or each.length + size > MOST_BYTES:
            return
        payload = text(channel, Direction.SOURCE_TO_DESTINATION, each.length, each.length + size)
        if kind is FrameType.RESET:
            payload = b"\0\1"
        frame = memoryview(bytearray(HEADER_BYTES + len(payload) + TAG_BYTES))
        lane.sealer.seal_into(kind, payload, frame)
        if spoil is None:
            each.ends.append(each.length + (size if kind is FrameType.DATA else 0))
            each.is_over = kind is not FrameType.DATA
        else:
            frame[spoil % len(frame)] ^= 1 << spoil % 8
            lane.is_broken = True
        lane.unsent += frame

    def listen(self) -> None:
        """What came on the lanes, each frame opened: it must be what the hypervisor there has said."""
        for channel, lane in self.lanes.items():
            with suppress(BlockingIOError, OSError):
                while data := lane.sock.recv(1 << 18):
                    lane.received += data
            each = self.said[channel]
            while len(lane.received) >= HEADER_BYTES:
                due = int.from_bytes(lane.received[:4]) + TAG_BYTES
                if len(lane.received) < HEADER_BYTES + due:
                    break
                frame = memoryview(bytes(lane.received[: HEADER_BYTES + due]))
                del lane.received[: HEADER_BYTES + due]
                self._open(lane, each, frame)

    def _open(self, lane: Lane, each: Said, frame: memoryview) -> None:
        if each.has_lied:
            return
        payload = memoryview(bytearray(MAX_PAYLOAD_BYTES))
        assert lane.opener.header(frame[:HEADER_BYTES]) == len(frame) - HEADER_BYTES
        size = lane.opener.open_into(frame[:HEADER_BYTES], frame[HEADER_BYTES:], payload)
        each.heard.append(bytes(payload[:size]) if lane.opener.closed_by is None else b"")

    def close(self) -> None:
        for lane in self.lanes.values():
            lane.sock.close()
        self.lanes.clear()
        if self.control is not None:
            self.control.close()
            self.control = None


class Plain:
    """What a control connection asks of TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._sending = trio.Lock()

    async def send(self, data: bytes) -> None:
        try:
            async with self._sending:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ConnectionBroken("the control connection was reset") from None

    async def receive(self) -> bytes:
        try:
            data = bytes(await self._stream.receive_some(4096))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ConnectionBroken("the control connection was reset") from None
        if not data:
            raise ConnectionBroken("the control connection ended without notice")
        return data

    async def close(self) -> None:
        await self._stream.aclose()


def secret_of(offers: Sequence[Offer]) -> ConnectionKeys:
    """In place of TLS's exporter: another one for each connection."""
    return ConnectionKeys(hashlib.sha384(f"{len(offers)} {offers[-1]}".encode()).digest())
