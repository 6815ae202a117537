"""A guest's hypervisor at the destination that answers as bytes say, or not at all, and a relay there that is started
anew (`sessions`): whatever its source and it do, the guest is in one place."""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import trio
from trio.testing import MockClock

from tests.fuzz.targets.played_sessions import Play, Stage
from tests.fuzz.targets.played_source import Source
from transport.errors import NotRecoverable
from transport.hypervisors.errors import HypervisorTimeout
from transport.relay.ends import Arrival
from transport.relay.host import RelayHost
from transport.relay.inlets import Port
from transport.relay.local_dial import dial_unix
from transport.relay.receipts import _signed
from transport.wire.messages import Cancel, Handover, Offer

_OUTCOMES: Final = {"runs": "running", "gone": "discarded"}


class PlayedGuest:
    """A `DestinationEnd`. A guest starts where its source has handed it over, and it is whole or was given away in
    post-copy; one that was ended never, and one that runs is never ended.
    """

    vm_binding: Literal["uuid", "none"] = "uuid"
    hands_over = True
    facts: ClassVar[dict[str, object]] = {}

    def __init__(self, at: Path) -> None:
        self._at = at
        self.state: Literal["waits", "runs", "gone"] = "waits"
        self.is_loaded = self.may_post_copy = self.is_in_midst = False
        self.source: Source | None = None
        self.fails = 0  # the next so many questions
        self.changed = trio.Event()

    async def _asked(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            self.fails -= 1
            raise HypervisorTimeout("it hangs")

    async def prepare(self, folder: Path) -> str:  # noqa: ARG002
        await self._asked()
        return "1:1"

    async def dial(self, port: Port, arrival: Arrival) -> socket.socket:  # noqa: ARG002
        return await dial_unix(self._at, arrival.dial_seconds, lambda pid: True)  # noqa: ARG005

    async def look_ahead(self) -> None:
        await self.wait_loaded(1.0)

    async def wait_loaded(self, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            while not self.is_loaded and self.state == "waits":
                await self.changed.wait()
        try:
            await self._asked()
        except HypervisorTimeout:
            return False
        return self.is_loaded and self.state != "gone"

    def begin_post_copy(self) -> bool:
        return self.may_post_copy

    async def is_in_post_copy(self) -> bool:
        return self.is_in_midst and self.state == "waits"

    async def hold_until_whole(self) -> None:
        while not self.is_loaded:
            await self.changed.wait()

    async def listen_again(self, folder: Path) -> None:  # noqa: ARG002
        await self._asked()
        if self.is_loaded:
            raise NotRecoverable("the guest is whole")

    async def start_guest(self) -> None:
        await self._asked()
        assert self.state != "gone", "a guest starts that was ended"
        assert self.source is not None
        assert self.source.has_handed_over, "a guest starts that its source has kept"
        assert self.is_loaded or (self.may_post_copy and self.source.has_given_away), "a guest starts that is not whole"
        self.state = "runs"

    async def discard(self) -> None:
        await self._asked()
        assert self.state != "runs", "a guest is ended that runs"
        self.state = "gone"

    async def __aexit__(self, *_: object) -> None:
        pass

    def turn(self, how: int, count: int) -> None:
        """What it comes to next."""
        match how % 4:
            case 0 | 1:
                self.is_loaded |= self.state != "gone"
            case 2:
                self.is_in_midst = True
            case _:
                self.fails = count % 4
        self.changed.set()
        self.changed = trio.Event()


class GuestPlay(Play):
    """A session that moves a guest."""

    def __init__(self, host: RelayHost, stage: Stage, clock: MockClock, guest: PlayedGuest) -> None:
        super().__init__(host, stage, clock)
        self._guest, guest.source = guest, self.source

    def _guest_turns(self) -> None:
        self._guest.turn(self._a, self._b)

    def _hand_over(self) -> None:
        self.source.say(Handover(post_copy=bool(self._a & 1)))

    def _abandon(self) -> None:
        self.source.say(Cancel("abandoned", ""))

    def _certify(self) -> None:
        self.source.say(_signed({"outcome": "completed"}, self._stage.credentials))

    def _settle_it(self) -> None:
        source = self.source
        self._offer(Offer(1, "settle", (self._stage.permit,), source.session_id, source.attempt + 1))

    def _recover(self) -> None:
        number = len(self._offers)
        self._offer(Offer(1, "recover", (self._stage.permit,), f"{number:032x}", 0))

    async def _restart(self) -> None:
        self._nursery.cancel_scope.cancel()
        await self._ended.wait()
        self.source.close()
        self.source.answered = -1  # a relay that was started anew knows no attempts
        await self.process.start(self.relay)

    STEPS: tuple[Callable[[Any], Awaitable[None] | None], ...] = (
        *Play.STEPS, _guest_turns, _guest_turns, _hand_over, _hand_over, _settle_it, _abandon, _restart, _recover,
        _certify, _settle_it, _guest_turns, Play._connect,
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        guest = self._guest.state
        assert set(self.source.outcomes) <= {_OUTCOMES.get(guest)}, (guest, self.source.outcomes)
        kept = [json.loads(path.read_bytes())["receipt"]["body"] for path in self._host.spool.receipts()]
        for body in (*self.source.certified, *kept):
            assert json.loads(body)["outcome"] == _OUTCOMES.get(guest), (guest, body)
