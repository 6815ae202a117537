"""Whole sessions of a real destination, from the Offer to the hypervisor's socket, with a source that does as it likes,
lost connections and settlements among them. Bytes say what happens next: at the source, on the way, at the hypervisor,
to the clock. Only TLS, TCP and threads are left out, so that the same bytes do the same.

- The hypervisor gets what was sealed for it, each byte once and in order, and has all that was acknowledged.
- What the hypervisor says comes to the source alike, from where it says that it holds it.
- The destination says nothing out of order to a source that keeps to it (`played_source`).
- Whatever a source does is its own fault, and when all is over nothing is kept: no memory, no descriptor.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar
from unittest import mock

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from certs import layout
from certs.tls import ControlPeer, HostCredentials, local_leaf_sha256
from policy.permit import Limits, Requirements, VerifiedPermit
from tests.fuzz.targets.played_destination import PlayedSourceEnd, SourcePlay
from tests.fuzz.targets.played_guest import GuestPlay, PlayedGuest
from tests.fuzz.targets.played_sessions import MOST_CHANNELS, Play, Stage, program
from tests.fuzz.targets.target import Target, scratch
from tests.transport.relay.conftest import host_with
from tests.transport.site import Site
from transport.errors import Misuse
from transport.hypervisors.moving import PLAIN, Movement
from transport.relay.board import Board
from transport.relay.ends import DestinationEnd, SourceEnd
from transport.relay.host import RelayHost
from transport.relay.lane_memory import LaneMemory
from transport.relay.log_rate import LogRate
from transport.relay.places import Places
from transport.relay.spool import SessionJournal, Spool
from transport.relay.used_permits import UsedPermits
from transport.wire.window import LARGE_BYTES

VM: Final = "11111111-2222-4333-8444-555555555555"
MOST_STEPS: Final = 48
_H = TypeVar("_H", bound="_Here")
_FOLDER: Final = scratch(Path("/dev/shm"))  # noqa: S108 - where durable writes cost nothing


class _Here(RelayHost):
    """Without threads: else who is first would be chance. `guest`: in place of a hypervisor, if there is one."""

    __slots__ = ("guest",)
    guest: PlayedGuest

    def destination_end(
        self, permit: VerifiedPermit, facts: Mapping[str, Any], movement: Movement = PLAIN
    ) -> DestinationEnd:
        return getattr(self, "guest", None) or super().destination_end(permit, facts, movement)

    async def on_disk(self, work: Any, *arguments: Any, **named: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments, **named)


class _Source(_Here):
    __slots__ = ("end", "journals")
    end: PlayedSourceEnd
    journals: list[SessionJournal]

    def source_end(self, *_: Any) -> SourceEnd:
        """Whoever asks: also a relay that was started anew."""
        return self.end

    async def on_disk(self, work: Any, *arguments: Any, **named: Any) -> Any:
        done = await super().on_disk(work, *arguments, **named)
        if isinstance(done, SessionJournal):
            self.journals.append(done)
        return done


@functools.cache
def _site(process: int) -> Site:
    folder = _FOLDER / str(process)
    folder.mkdir()
    site = Site.lay_out(folder)
    layout.issue_host(site.certs, "c", datetime.now(UTC))
    return site


def _as(kind: type[_H], plain: RelayHost) -> _H:
    return kind(**{each.name: getattr(plain, each.name) for each in dataclasses.fields(plain)})


def _permit(site: Site) -> str:
    until = int(time.time()) + 86_000
    return site.permit(
        vm=VM,
        exp=until,
        session_until=until,
        recover_until=until,
        limits=Limits(MOST_CHANNELS, 0),
        requirements=Requirements(content_digest=True, stream_inspection=False, vm_binding=False),
    )


@functools.cache
def _destination(process: int) -> tuple[_Here, Stage]:
    """As it is when it starts, and what else there is."""
    site = _site(process)
    own, others = (host_with(site, name, {}).credentials for name in "ac")
    host = _as(_Here, host_with(site, "b", {"seal_threads": 0, "resume_seconds": 60.0}))
    at = site.folder / "vm" / VM / "memory.sock"
    at.parent.mkdir(parents=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.setblocking(False)
    listening.bind(str(at))
    listening.listen(64)
    atexit.register(listening.close)
    return host, Stage(_peer(own), _peer(others), own, _permit(site), listening)


@functools.cache
def _source(process: int) -> tuple[_Source, HostCredentials, str]:
    """As it is when it starts, the destination's credentials, and a permit."""
    site = _site(process)
    host = _as(_Source, host_with(site, "a", {"seal_threads": 0, "resume_seconds": 60.0, "stop_seconds": 10.0}))
    return host, host_with(site, "b", {}).credentials, _permit(site)


def _peer(credentials: HostCredentials) -> ControlPeer:
    leaf = credentials.chain[0]
    return ControlPeer(credentials.spiffe_id, leaf, local_leaf_sha256(credentials), (), "TLSv1.3", "X25519MLKEM768", "")


@contextmanager
def _fresh(host: _H) -> Iterator[_H]:
    """The destination as it starts: nothing is spent and nobody known. Lanes have so little memory that they wait."""
    folder = Path(tempfile.mkdtemp(dir=_FOLDER / str(os.getpid())))
    try:
        yield dataclasses.replace(
            host,
            spool=Spool(folder),
            used_permits=UsedPermits(folder / "used"),
            memory=LaneMemory(4 * LARGE_BYTES, MOST_CHANNELS),
            board=Board(Places(1)),
            log_rate=LogRate(),
        )
    finally:
        shutil.rmtree(folder)


def destination_session(data: bytes) -> bool:
    """Of a program's stream. Whether a session began."""
    host, stage = _destination(os.getpid())
    with _watched(host) as (fresh, clock):
        play = Play(fresh, stage, clock)
        trio.run(_run, play, data, clock=clock)
    return play.source.was_answered


def destination_guest(data: bytes) -> bool:
    """Of a guest; the first byte says whether post-copy may come."""
    host, stage = _destination(os.getpid())
    with _watched(host) as (fresh, clock):
        guest = PlayedGuest(Path(stage.listening.getsockname()))
        guest.may_post_copy = bool(data[:1] > b"\x7f")
        object.__setattr__(fresh, "guest", guest)
        play = GuestPlay(fresh, stage, clock, guest)
        trio.run(_run, play, data[1:], clock=clock)
    return play.source.was_answered


def source_guest(data: bytes) -> bool:
    """The same move at its source."""
    host, credentials, permit = _source(os.getpid())
    with _watched(host) as (fresh, clock):
        play = SourcePlay(fresh, _peer(credentials), credentials, permit, clock)
        object.__setattr__(fresh, "end", play.end)
        object.__setattr__(fresh, "journals", play.journals)
        with play.network():
            trio.run(_run, play, data, clock=clock)
    return play.was_answered


@contextmanager
def _watched(host: _H) -> Iterator[tuple[_H, MockClock]]:
    """Nothing is left of what happens within, and nothing in it was a bug."""
    misuses: list[str] = []

    def note(self: Misuse, rule: str) -> None:
        super(Misuse, self).__init__(rule)
        misuses.append(rule)

    with capture_logs() as lines, mock.patch.object(Misuse, "__init__", note), _fresh(host) as fresh:
        before = _descriptors()
        yield fresh, MockClock()
        assert _descriptors() == before
        memory = fresh.memory
        assert (memory.lent, memory.sessions, memory.further_lanes, memory.sending_sessions) == (0, 0, 0, 0)
    assert not [line for line in lines if line["event"].startswith("bug")]
    # By this the destination finds out that there is nothing that it may say any more to a source that broke the order.
    bugs = [rule for rule in misuses if not rule.startswith("Cancel from the destination")]
    assert not bugs, bugs


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _run(play: Play | SourcePlay, steps: bytes) -> None:
    async with trio.open_nursery() as play.process:
        await play.process.start(play.relay)
        try:
            for at in range(0, min(len(steps), 3 * MOST_STEPS) - 2, 3):
                await play.step(*steps[at : at + 3])
            play.check()
        finally:
            await play.close()


_BEGUN: Final = (("connect", 0, 0), ("announce", 0, 0), ("data", 0, 2), ("data", 0, 9), ("vm", 0, 0), ("vm", 48, 3))
# All memory of lanes is lent, and a frame waits for some of it.
_FULL: Final = (
    ("connect", 0, 0), ("announce", 0, 0), ("vm", 48, 9), *[("announce", 0, 0)] * 2,
    *[("cut", number, 9) for number in (36, 37, 38)],
)  # fmt: skip
_SPOKEN: Final = (*_BEGUN, ("listen", 0, 0), ("acknowledge", 0, 0))
_LOST: Final = (("cut", 4, 9), ("lose", 128, 0), ("wait", 2, 1), ("connect", 0, 0), ("bring_all", 0, 0))
_LOADED: Final = (("guest_turns", 0, 0), ("hand_over", 0, 0))
_GIVEN: Final = (("guest_turns", 2, 0), ("hand_over", 1, 0))
_CERTIFIED: Final = (("say", 4, 0), ("say", 3, 0))
_SETTLED: Final = (("settle_it", 0, 0), ("hand_over", 0, 0))
_TAKEN, _STOPPED, _CHOSEN, _NONE = ("answer", 0, 0), ("guest_turns", 0, 0), ("decide", 0, 0), ("lose", 0, 0)
_RECOVERED: Final = (("recover", 0, 0), ("announce", 0, 0))
_OVER: Final = (("vm", 96, 0), ("end", 0, 0), ("listen", 0, 0), ("acknowledge", 0, 0), ("wait", 1, 1))
TARGETS: Final = (
    Target(
        "destination-session", destination_session, (),
        tuple(
            program(Play, *steps)
            for steps in (
                (*_SPOKEN, *_OVER, *_CERTIFIED),
                (*_BEGUN, *_LOST, ("data", 0, 3), ("vm", 0, 0), *_OVER),
                (*_BEGUN, ("announce", 0, 0), ("data", 1, 9), ("data", 0, 9), ("wait", 2, 15), ("announce", 0, 0)),
                (*_SPOKEN, ("connect_otherwise", 18, 100), ("say", 0, 0)),
                (*_SPOKEN, ("connect_otherwise", 249, 107), ("connect", 0, 0)),
                (*_BEGUN, *[("vm", 48, 3)] * 6, ("listen", 0, 0), *_LOST, *_OVER),
                (*_SPOKEN, ("bring", 0, 64), ("bring", 0, 130)),
                (*_FULL, ("wait", 2, 15)),
                (*_SPOKEN, ("spoil", 9, 40), ("connect_otherwise", 25, 107), ("bring_all", 0, 0)),
            )
        ),
    ),
    Target(
        "destination-guest", destination_guest, (),
        tuple(
            may + program(GuestPlay, *steps)
            for may, *steps in (
                (b"\0", *_SPOKEN, *_LOADED, *_OVER, *_CERTIFIED),
                (b"\0", *_BEGUN, ("settle_it", 0, 0), ("abandon", 0, 0), *_CERTIFIED),
                (b"\0", *_BEGUN, ("guest_turns", 0, 0), ("restart", 0, 0), *_SETTLED),
                (b"\0", *_BEGUN, *_LOADED, ("restart", 0, 0), ("settle_it", 0, 0), ("abandon", 0, 0)),
                (b"\0", *_BEGUN, ("guest_turns", 3, 2), *_LOADED, ("wait", 5, 2), *_SETTLED),
                (b"\xff", *_BEGUN, *_GIVEN, ("lose", 128, 0), *_RECOVERED, *_OVER, *_CERTIFIED),
                (b"\xff", *_BEGUN, *_GIVEN, ("restart", 0, 0), ("wait", 2, 2), *_RECOVERED, *_OVER),
            )
        ),
    ),
    Target(
        "source-guest", source_guest, (),
        tuple(
            program(SourcePlay, *steps)
            for steps in (
                (_TAKEN, _STOPPED, _CHOSEN, ("other", 1, 0), ("wait", 2, 0)),
                (_TAKEN, _STOPPED, _NONE, ("wait", 1, 0), ("answer", 0, 0), _CHOSEN, ("wait", 2, 0)),
                (_TAKEN, _STOPPED, ("decide", 1, 0), ("wait", 2, 0)),
                (_TAKEN, _STOPPED, ("restart", 0, 0), ("wait", 1, 0), _TAKEN, _CHOSEN, ("wait", 1, 0)),
                (_TAKEN, ("cancel", 0, 0), _TAKEN, ("decide", 0, 0), ("wait", 2, 0)),
                (_TAKEN, ("guest_turns", 3, 0), ("wait", 1, 0), _TAKEN, _CHOSEN, ("wait", 1, 0)),
                (_NONE, ("wait", 1, 0), ("refuse", 0, 0), ("wait", 1, 0), _TAKEN, ("other", 0, 0), ("wait", 1, 0)),
            )
        ),
    ),
)  # fmt: skip
