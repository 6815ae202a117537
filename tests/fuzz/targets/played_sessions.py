"""What may happen to a session at its destination, step by step: at its source, on the way, at the hypervisor, to the
clock (`sessions`). Each step has two numbers, `a` and `b`, that say which and how much."""

from __future__ import annotations

import dataclasses
import itertools
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final, cast

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from certs.tls import ControlPeer, HostCredentials, local_leaf_sha256
from tests.fuzz.targets.played_source import MOST_BYTES, Plain, Said, Source, secret_of, text
from transport.errors import OfferRefused, ProtocolViolation, TransportError
from transport.relay.content_digests import most_channels
from transport.relay.control import ControlLink, TlsStream
from transport.relay.destination import Destination
from transport.relay.host import RelayHost
from transport.relay.listener import Listener
from transport.relay.receipts import _signed
from transport.wire.control import Role
from transport.wire.frames import FrameType
from transport.wire.keys import ConnectionKeys, Direction
from transport.wire.messages import (
    Ack,
    Answer,
    Bye,
    Cancel,
    Handover,
    Message,
    Offer,
    Open,
    Outcome,
    Purpose,
    Receipt,
    Refusal,
    encode_message,
)
from transport.wire.preface import make_preface

SIZES: Final = (1, 2, 100, 5_000, 32_767, 32_768, 32_769, 70_000, 300_000, 1 << 20)
SECONDS: Final = (0.01, 0.1, 1.0, 3.0, 11.0, 61.0)
MOST_CHANNELS: Final = 3
_SESSION: Final = "0" * 32


@dataclasses.dataclass
class _Vm:
    """One connection of the hypervisor's."""

    channel: int
    sock: socket.socket
    said: Said  # by the source
    got: bytearray = dataclasses.field(default_factory=bytearray)
    wrote: int = 0
    has_left: bool = False

    def read(self) -> None:
        with suppress(BlockingIOError, OSError):
            while data := self.sock.recv(1 << 18):
                self.got += data
        forth = Direction.SOURCE_TO_DESTINATION
        assert self.got == text(self.channel, forth, 0, len(self.got)), "the hypervisor got something else"

    def write(self, size: int) -> None:
        size = min(size, MOST_BYTES - self.wrote)
        with suppress(BlockingIOError, OSError):
            back = Direction.DESTINATION_TO_SOURCE
            self.wrote += self.sock.send(text(self.channel, back, self.wrote, self.wrote + size))


@dataclasses.dataclass(frozen=True)
class Stage:
    """What outlives a play: who the source is, what it shows, and where the VM listens."""

    peer: ControlPeer
    another: ControlPeer  # whose permit it is not
    credentials: HostCredentials
    permit: str
    listening: socket.socket


class Play:
    """One session, or what the source makes of it."""

    process: trio.Nursery  # in which relays run, one after the other
    _nursery: trio.Nursery
    _destination: Destination
    _ended: trio.Event

    def __init__(self, host: RelayHost, stage: Stage, clock: MockClock) -> None:
        self._host, self._stage, self._clock = host, stage, clock
        self._listener = Listener(host.config.limits, cast(Any, None))
        self._offers: list[Offer] = []
        self._vms: list[_Vm] = []
        self._a = self._b = 0
        self.source = Source(_SESSION)

    async def relay(self, task_status: trio.TaskStatus[None]) -> None:
        """A process of the destination's, until its nursery is cancelled; with what a former one has left."""
        self._ended = trio.Event()
        try:
            async with trio.open_nursery() as self._nursery:
                self._destination = Destination(self._host, self._nursery)
                for journal in self._host.spool.unfinished(Role.DESTINATION):
                    permit = self._host.permits.reopen(str(journal.facts["permit"]), None)
                    self._destination.recover(journal, permit)
                task_status.started()
                await trio.sleep_forever()
        finally:
            for owned in {each.journal._ownership for each in self._destination.admissions.sessions.values()} - {-1}:
                os.close(owned)  # a process holds it to its end
            self._ended.set()

    async def step(self, what: int, a: int, b: int) -> None:
        self._a, self._b = a, b
        step = self.STEPS[what % len(self.STEPS)]
        for _ in range(b % 16 if step is Play._wait else 1):
            if (more := step(self)) is not None:
                await more
            await self._settle()

    async def _settle(self) -> None:
        """Until nothing happens any more without another step."""
        for _ in range(4):
            await wait_all_tasks_blocked()
            for lane in self.source.lanes.values():
                lane.flush()
        await wait_all_tasks_blocked()
        with suppress(BlockingIOError):
            while True:
                sock, _ = self._stage.listening.accept()
                sock.setblocking(False)
                number = sum(vm.said in self.source.said for vm in self._vms)
                said = self.source.said[number] if number < len(self.source.said) else Said()
                self._vms.append(_Vm(number, sock, said))
        self.source.hear()

    def _connect(self) -> None:
        """As it should; where the last answer was lost and where the session is known, as it goes on."""
        source = self.source
        purpose: Purpose = "resume" if self._offers else "begin"
        following = {str(number): len(each.heard) for number, each in enumerate(source.said)}
        self._offer(Offer(1, purpose, (self._stage.permit,), source.session_id, source.attempt + 1, following))

    def _connect_otherwise(self) -> None:
        purposes: tuple[Purpose, ...] = ("begin", "resume", "settle", "recover")
        said = self.source.said
        following = {str(number): max(0, len(each.heard) + self._b % 8 - 3) for number, each in enumerate(said)}
        if self._b >= 224:
            following.pop("0", None)
        session_id = self.source.session_id if self._a & 16 else "1" * 32
        attempt = max(0, self.source.attempt + (self._a >> 2 & 3) - 1)
        permits = (self._stage.permit,) if self._b & 64 else (self._stage.permit, self._stage.permit)
        following = following if purposes[self._a & 3] == "resume" and self._b & 32 else {}
        offer = Offer(1, purposes[self._a & 3], permits, session_id, attempt, following)
        self._offer(offer, is_another=self._a >= 240)

    def _offer(self, offer: Offer, *, is_another: bool = False) -> None:
        self.source.close()
        self._offers.append(offer)
        ours, theirs = _ends()
        keys = secret_of(self._offers)
        self.source.is_another = is_another
        self._nursery.start_soon(self._serve, theirs, keys, self._stage.another if is_another else self._stage.peer)
        self.source.connect(ours, offer, keys)

    async def _serve(self, sock: socket.socket, keys: ConnectionKeys, peer: ControlPeer) -> None:
        """As `Incoming` does once TLS has shown who the peer is."""
        host, limits = self._host, self._host.config.limits
        link = ControlLink(cast(TlsStream, Plain(sock)), Role.DESTINATION, limits.message_seconds)
        try:
            offer = await link.expect(Offer)
            try:
                session = await self._destination.admissions.admit(offer, peer)
            except OfferRefused as refused:
                await link.send(Refusal(refused.code, ""))
                return
            most = min(most_channels(session.permit.claims), limits.max_channels)
            desk = self._listener.open_desk(keys, most)
            try:
                await self._destination.serve(session, offer, link, desk, (peer, local_leaf_sha256(host.credentials)))
            finally:
                self._listener.close_desk(desk)
        except TransportError:
            pass
        finally:
            with trio.CancelScope(shield=True):
                await link.close()

    def _announce(self) -> None:
        """The next channel: one that the destination does not know is announced again."""
        source = self.source
        number = source.order.channels
        if source.may_carry and source.is_sound and number < MOST_CHANNELS:
            if number == len(source.said):
                source.said.append(Said())
            source.say(Open(number, "memory"))
            self._bring_lane(number)

    def _bring(self) -> None:
        """Another preface, or a second one of a channel, where `b` says so."""
        number = self._a % MOST_CHANNELS
        if number in self.source.lanes and self._b >= 64:
            ours, theirs = _ends()
            self._arrives(theirs, make_preface(self.source.keys, number))
            ours.close()
        self._bring_lane(number, spoilt=self._b if self._b >= 128 else None)

    def _bring_lane(self, number: int, spoilt: int | None = None) -> None:
        source = self.source
        if source.may_carry and number < len(source.said) and number not in source.lanes:
            ours, theirs = _ends()
            preface = bytearray(source.lane(number, ours))
            if spoilt is not None:
                preface[spoilt % len(preface)] ^= 1
            self._arrives(theirs, bytes(preface))

    def _arrives(self, lane: socket.socket, preface: bytes) -> None:
        """As the listener takes whatever connects."""
        accepted = trio.socket.from_stdlib_socket(lane)
        try:
            if not self._listener._take_lane(accepted, preface):
                accepted.close()
        except ProtocolViolation:
            accepted.close()

    def _bring_all(self) -> None:
        for number in range(len(self.source.said)):
            self._bring_lane(number)

    def _data(self) -> None:
        if self._a % MOST_CHANNELS in self.source.lanes:
            self.source.frame(self._a % MOST_CHANNELS, FrameType.DATA, SIZES[self._b % len(SIZES)])

    def _end(self) -> None:
        if self._a % MOST_CHANNELS in self.source.lanes:
            self.source.frame(self._a % MOST_CHANNELS, FrameType.RESET if self._b >= 192 else FrameType.FIN, 0)

    def _spoil(self) -> None:
        size = SIZES[(self._a >> 2) % len(SIZES)]
        if self._a % MOST_CHANNELS in self.source.lanes:
            self.source.frame(self._a % MOST_CHANNELS, FrameType.DATA, size, spoil=self._b)

    def _cut(self) -> None:
        """A frame of which a part comes, and no more."""
        if (lane := self.source.lanes.get(self._a % MOST_CHANNELS)) is not None and not lane.unsent:
            self.source.frame(self._a % MOST_CHANNELS, FrameType.DATA, SIZES[(self._a >> 2) % len(SIZES)])
            lane.flush(1 + self._b * 97)
            if lane.unsent:
                lane.unsent.clear()
                lane.is_broken = True

    def _say(self) -> None:
        written = {"0": 0, str(self._a % MOST_CHANNELS): self._b}
        messages: tuple[Message, ...] = (
            Handover(), Handover(post_copy=True), Cancel("x", ""), Bye(),
            _signed({"outcome": "completed"}, self._stage.credentials), Receipt("{}", ""),
            Answer({}, 1), Outcome("running"), Ack(written), Open(self._b, "memory"),
            Open(self.source.order.channels, "x"),
        )  # fmt: skip
        self.source.say(messages[self._a % len(messages)])

    def _acknowledge(self) -> None:
        """What it has heard, and where `b` says so more or less than that."""
        self.source.listen()
        off = self._b % 8 - 3 if self._b >= 128 else 0
        counts = {str(number): max(0, len(each.heard) + off) for number, each in enumerate(self.source.said)}
        if self.source.may_carry:
            self.source.say(Ack(dict(itertools.islice(counts.items(), self.source.order.channels))))

    def _babble(self) -> None:
        self.source.is_sound = False
        self.source.write(encode_message(Cancel("x", ""))[: self._a % 40] + bytes([self._b]))

    def _listen(self) -> None:
        self.source.listen()

    def _vm(self) -> None:
        if not self._vms:
            return
        vm = self._vms[self._a % len(self._vms)]
        match self._a >> 4 & 7:
            case 0 | 1 | 2:
                vm.read()
            case 3 | 4 | 5:
                vm.write(SIZES[self._b % len(SIZES)])
            case 6:
                with suppress(OSError):
                    vm.sock.shutdown(socket.SHUT_WR)
            case _:
                vm.has_left = True
                vm.sock.close()

    def _wait(self) -> None:
        self._clock.jump(SECONDS[self._a % len(SECONDS)])

    def _lose(self) -> None:
        """The connection, or one lane of it."""
        if (lane := self.source.lanes.get(self._a % (2 * MOST_CHANNELS))) is not None:
            lane.sock.close()
            lane.is_broken = True
        elif self._a & 128:
            self.source.close()

    def _give_up(self) -> None:
        if self._a >= 192:
            for session in self._destination.admissions.sessions.values():
                self._destination.give_up(session.permit.claims.migration_id)

    STEPS: tuple[Callable[[Any], Awaitable[None] | None], ...] = (
        _connect, _announce, _data, _data, _acknowledge, _vm, _vm, _connect, _bring_all, _end, _say, _wait, _lose,
        _listen, _cut, _connect_otherwise, _bring, _spoil, _babble, _give_up,
    )  # fmt: skip

    def check(self) -> None:
        """What has come where it was to go, now that nothing more happens."""
        self.source.listen()
        for vm in self._vms:
            if not vm.has_left:
                vm.read()
            each = vm.said
            if each.acknowledged and not vm.has_left:
                assert len(vm.got) >= each.ends[each.acknowledged - 1], "acknowledged and not written"
            heard = b"".join(each.heard)
            back = Direction.DESTINATION_TO_SOURCE
            assert each.has_lied or heard == text(vm.channel, back, 0, min(len(heard), vm.wrote))

    async def close(self) -> None:
        self.source.close()
        for vm in self._vms:
            vm.sock.close()
        self._nursery.cancel_scope.cancel()


def _ends() -> tuple[socket.socket, socket.socket]:
    both = socket.socketpair()
    for each in both:
        each.setblocking(False)
    return both


def program(play: Any, *steps: tuple[str, int, int]) -> bytes:
    names = [step.__name__.removeprefix("_") for step in play.STEPS]
    return b"".join(bytes((names.index(name), a, b)) for name, a, b in steps)
