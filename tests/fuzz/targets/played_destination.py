"""A source's session of a guest, real from its permit to its journal, with a destination that does as it likes but for
one thing: what it has chosen it says for ever (`sessions`). Whatever happens, the guest is in one place."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, ClassVar, Final, Literal, cast
from unittest import mock

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from certs.tls import ControlPeer, HostCredentials
from tests.fuzz.targets.played_source import Plain
from transport.errors import ConnectionBroken, OfferRefused, RefusalCode
from transport.hypervisors.errors import HypervisorTimeout
from transport.hypervisors.migration_progress import MigrationProgress
from transport.relay.ends import Milestones, Report, Whereabouts
from transport.relay.former_sessions import _permit_of, _settle
from transport.relay.host import RelayHost
from transport.relay.inlets import Inlet, SourceLanes
from transport.relay.news import News
from transport.relay.receipts import _signed
from transport.relay.source import MigrationOrder, carry_as_source
from transport.relay.spool import SessionJournal
from transport.wire.control import ControlOrder, Phase, Role
from transport.wire.messages import (
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

SECONDS: Final = (0.1, 1.0, 6.0, 61.0)
_CODES: Final = (RefusalCode.SESSION_UNKNOWN, RefusalCode.PROTOCOL, RefusalCode.BUSY, RefusalCode.PERMIT_PARTIES)


class PlayedSourceEnd:
    """A `SourceEnd`, whose guest runs, or is stopped by its hypervisor, or is gone with that."""

    vm_binding: Literal["uuid", "none"] = "uuid"
    hands_over = True
    recovers = "nobody"
    facts: ClassVar[dict[str, object]] = {}

    def __init__(self) -> None:
        self.state: Literal["runs", "stopped", "released", "died"] = "runs"
        self.fails = 0
        self.has_ended = trio.Event()  # its migration
        self.chosen: Callable[[], str | None] = lambda: None

    async def _asked(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            self.fails -= 1
            raise HypervisorTimeout("it hangs")

    async def prepare(self) -> str:
        await self._asked()
        return "1:1"

    def inlets(self, socket_path: object) -> list[Inlet]:  # noqa: ARG002
        return []

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:  # noqa: ARG002
        await self.has_ended.wait()
        await self._asked()
        if self.state == "died":
            raise HypervisorTimeout("it has died")

    async def last_numbers(self) -> MigrationProgress | None:
        return None

    async def whereabouts(self, *, accepted: bool) -> Whereabouts:  # noqa: ARG002
        await self._asked()
        return "gone" if self.state == "died" else "here"

    async def resume_guest(self) -> None:
        await self._asked()
        assert self.chosen() != "running", "a guest runs here and there"
        assert self.state != "released"
        self.state = "runs"

    async def release(self) -> None:
        await self._asked()
        assert self.chosen() == "running", "a guest is ended that runs nowhere else"
        self.state = "released"

    async def is_in_post_copy(self) -> bool:
        return False

    @asynccontextmanager
    async def recovery(self, pause_seconds: float) -> AsyncIterator[bool]:  # noqa: ARG002
        yield False

    async def go_on_with_post_copy(self, lanes: SourceLanes, report: Report) -> None:
        pass

    async def is_gone(self) -> bool:
        await self._asked()
        return self.state in ("died", "released")

    def broke(self, cause: str) -> None:
        pass

    async def __aenter__(self) -> PlayedSourceEnd:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class SourcePlay:
    """`host`: the source's; `peer` and `credentials`: the destination's. `journals`: that the source has begun."""

    process: trio.Nursery

    def __init__(
        self, host: RelayHost, peer: ControlPeer, credentials: HostCredentials, permit: str, clock: MockClock
    ) -> None:
        self._host, self._peer, self._credentials, self._permit, self._clock = host, peer, credentials, permit, clock
        self.end = PlayedSourceEnd()
        self.end.chosen = lambda: self.outcome
        self.journals: list[SessionJournal] = []
        self.outcome: str | None = None  # that the destination chose
        self.was_answered = False
        self._control: socket.socket | None = None
        self._order = ControlOrder(Role.DESTINATION)
        self._reader = MessageReader()
        self._is_sound = True
        self._heard: list[Message] = []
        self._cancelled, self._ended = trio.Event(), trio.Event()
        self._a = self._b = 0

    async def relay(self, task_status: trio.TaskStatus[None]) -> None:
        """A process of the source's: the first one carries, the next ones see to what is left."""
        self._ended, is_first = trio.Event(), not self.journals
        try:
            async with trio.open_nursery() as self._nursery:
                former = [] if is_first else list(self._host.spool.unfinished(Role.SOURCE))
                self.journals += former
                for journal in former:
                    _permit_of(self._host, journal)
                    self._nursery.start_soon(_settle, self._host, journal, cast(Any, _Deaf()), self._nursery)
                if is_first:
                    self._nursery.start_soon(self._carry)
                task_status.started()
                await trio.sleep_forever()
        finally:
            for owned in {each._ownership for each in self.journals} - {-1}:
                with suppress(OSError):
                    os.close(owned)  # a process holds it to its end
            self._ended.set()

    async def _carry(self) -> None:
        order = MigrationOrder(self._permit, "127.0.0.1:1")
        with suppress(OfferRefused, HypervisorTimeout):
            await carry_as_source(self._host, order, _unheard, self._cancelled, None, lambda _: self.end)

    @contextmanager
    def network(self) -> Iterator[None]:
        """Connections of the source come here, without TLS."""

        async def connect_first(*_: object) -> tuple[socket.socket, tuple[str, int]]:
            await trio.lowlevel.checkpoint()
            return self._connected(), ("127.0.0.1", 1)

        async def peer(*_: object) -> ControlPeer:
            await trio.lowlevel.checkpoint()
            return self._peer

        with mock.patch.multiple(
            "transport.relay.dialling",
            connect_first=connect_first,
            notice_silence=lambda *_: None,
            TlsStream=lambda sock, _: Plain(sock),
            _require_destination=peer,
            export_secret=lambda *_: bytes(48),
        ):
            yield

    def _connected(self) -> socket.socket:
        if self._b % 8 == 7:
            raise ConnectionBroken("nobody answers")
        self._lose()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._control, self._order, self._reader = ours, ControlOrder(Role.DESTINATION), MessageReader()
        self._is_sound, self._heard = True, []
        return theirs

    async def step(self, what: int, a: int, b: int) -> None:
        self._a, self._b = a, b
        await self._settle()
        if (more := self.STEPS[what % len(self.STEPS)](self)) is not None:
            await more
        await self._settle()

    async def _settle(self) -> None:
        await wait_all_tasks_blocked()
        self._hear()

    def _hear(self) -> None:
        while self._control is not None:
            try:
                data = self._control.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose()
                return
            for message in self._reader.feed(data):
                if self._is_sound:
                    self._order.received(message, {})  # a violation would be the source's, and is a failure
                self._heard.append(message)

    def _say(self, message: Message) -> None:
        try:
            self._order._pass(Role.DESTINATION, message)
        except Exception:  # noqa: BLE001 - whatever it is, it is said all the same
            self._is_sound = False
        self._write(encode_message(message))

    def _write(self, data: bytes) -> None:
        if self._control is not None:
            with suppress(OSError):
                self._control.send(data)

    def _lose(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _answer(self) -> None:
        if self._heard and isinstance(self._heard[0], Offer) and self._order.phase is Phase.ANSWERING:
            self.was_answered = True
            self._say(Answer({}, 1 + self._a))

    def _decide(self) -> None:
        """As a destination that is asked: what was chosen once is what it says."""
        asked = [each for each in self._heard if isinstance(each, (Handover, Cancel))]
        if asked:
            if self.outcome is None:
                is_whole = isinstance(asked[-1], Handover) and self._a % 2 == 0
                self.outcome = "running" if is_whole else "discarded"
            self._say(Outcome(cast(Any, self.outcome)))

    def _refuse(self) -> None:
        """Not that it knows no session of which it has chosen that it runs here."""
        code = _CODES[self._a % len(_CODES)]
        if code is not RefusalCode.SESSION_UNKNOWN or self.outcome != "running":
            self._say(Refusal(code, ""))

    def _other(self) -> None:
        receipt = _signed({"outcome": "running"}, self._credentials)
        messages: tuple[Message, ...] = (
            Cancel("x", ""), receipt, Receipt("{}", ""), Bye(), Open(0, "memory"), Answer({"0": 1}, 1), Handover(),
        )  # fmt: skip
        self._say(messages[self._a % len(messages)])

    def _babble(self) -> None:
        self._is_sound = False
        self._write(bytes([self._a, self._b] * 3))

    def _guest_turns(self) -> None:
        match self._a % 4:
            case 0 | 1:
                if self.end.state == "runs" and not self.end.has_ended.is_set():
                    self.end.state = "stopped"
                    self.end.has_ended.set()
            case 2:
                self.end.fails = self._b % 4
            case _:
                if self.end.state in ("runs", "stopped"):
                    self.end.state = "died"
                    self.end.has_ended.set()

    def _cancel(self) -> None:
        self._cancelled.set()

    def _wait(self) -> None:
        self._clock.jump(SECONDS[self._a % len(SECONDS)])

    async def _restart(self) -> None:
        self._nursery.cancel_scope.cancel()
        await self._until_ended()
        self._lose()
        self.end.has_ended.set()
        await self.process.start(self.relay)

    async def _until_ended(self) -> None:
        for _ in range(100):
            await wait_all_tasks_blocked()
            if self._ended.is_set():
                return
            self._clock.jump(5.0)
        raise AssertionError("a relay that stops does not end")

    async def close(self) -> None:
        self._nursery.cancel_scope.cancel()
        await self._until_ended()
        self._lose()

    def check(self) -> None:
        if self.end.state == "released":
            assert self.outcome == "running"
        assert self.outcome != "running" or self.end.state != "runs", "a guest runs here and there"

    STEPS: tuple[Callable[[Any], Awaitable[None] | None], ...] = (
        _answer, _decide, _guest_turns, _wait, _lose, _restart, _refuse, _other, _answer, _decide, _wait, _cancel,
        _babble, _guest_turns,
    )  # fmt: skip


class _Deaf:
    """A gateway to which nothing gets through."""

    async def tell(self, migration_id: str, news: News) -> None:
        pass


async def _unheard(_: News) -> None:
    pass
