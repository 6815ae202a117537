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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from unittest import mock

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from certs import layout
from certs.tls import ControlPeer, HostCredentials, local_leaf_sha256
from policy.permit import Limits, Requirements
from tests.fuzz.targets.played_sessions import MOST_CHANNELS, STEPS, Play, Stage
from tests.fuzz.targets.target import Target, scratch
from tests.transport.relay.conftest import host_with
from tests.transport.site import Site
from transport.errors import Misuse
from transport.relay.board import Board
from transport.relay.host import RelayHost
from transport.relay.lane_memory import LaneMemory
from transport.relay.log_rate import LogRate
from transport.relay.places import Places
from transport.relay.spool import Spool
from transport.relay.used_permits import UsedPermits
from transport.wire.window import LARGE_BYTES

VM: Final = "11111111-2222-4333-8444-555555555555"
MOST_STEPS: Final = 48
_FOLDER: Final = scratch(Path("/dev/shm"))  # noqa: S108 - where durable writes cost nothing


class _Here(RelayHost):
    """Without threads: else who is first would be chance."""

    __slots__ = ()

    async def on_disk(self, work: Any, *arguments: Any, **named: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*arguments, **named)


@functools.cache
def _site(process: int) -> tuple[_Here, Stage]:
    """Of a process: the destination as it is when it starts, and what else there is."""
    folder = _FOLDER / str(process)
    folder.mkdir()
    site = Site.lay_out(folder)
    layout.issue_host(site.certs, "c", datetime.now(UTC))
    own, others = (host_with(site, name, {}).credentials for name in "ac")
    plain = host_with(site, "b", {"seal_threads": 0, "resume_seconds": 60.0})
    host = _Here(**{each.name: getattr(plain, each.name) for each in dataclasses.fields(plain)})
    until = int(time.time()) + 86_000
    permit = site.permit(
        vm=VM,
        exp=until,
        session_until=until,
        recover_until=until,
        limits=Limits(MOST_CHANNELS, 0),
        requirements=Requirements(content_digest=True, stream_inspection=False, vm_binding=False),
    )
    at = folder / "vm" / VM / "memory.sock"
    at.parent.mkdir(parents=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.setblocking(False)
    listening.bind(str(at))
    listening.listen(64)
    atexit.register(listening.close)
    return host, Stage(_peer(own), _peer(others), own, permit, listening)


def _peer(credentials: HostCredentials) -> ControlPeer:
    leaf = credentials.chain[0]
    return ControlPeer(credentials.spiffe_id, leaf, local_leaf_sha256(credentials), (), "TLSv1.3", "X25519MLKEM768", "")


@contextmanager
def _fresh(host: _Here) -> Iterator[_Here]:
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
    """Whether a session began."""
    host, stage = _site(os.getpid())
    misuses: list[str] = []

    def note(self: Misuse, rule: str) -> None:
        super(Misuse, self).__init__(rule)
        misuses.append(rule)

    with capture_logs() as lines, mock.patch.object(Misuse, "__init__", note), _fresh(host) as fresh:
        before, clock = _descriptors(), MockClock()
        began = trio.run(_play, fresh, stage, clock, data[: 3 * MOST_STEPS], clock=clock)
        assert _descriptors() == before
        memory = fresh.memory
        assert (memory.lent, memory.sessions, memory.further_lanes, memory.sending_sessions) == (0, 0, 0, 0)
    assert not [line for line in lines if line["event"].startswith("bug")]
    # By this the destination finds out that there is nothing that it may say any more to a source that broke the order.
    bugs = [rule for rule in misuses if not rule.startswith("Cancel from the destination")]
    assert not bugs, bugs
    return began


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _play(host: RelayHost, stage: Stage, clock: MockClock, program: bytes) -> bool:
    async with trio.open_nursery() as nursery:
        play = Play(host, stage, nursery, clock)
        try:
            for at in range(0, len(program) - 2, 3):
                await play.step(*program[at : at + 3])
            play.check()
        finally:
            play.close()
            nursery.cancel_scope.cancel()
    return play.source.was_answered


def _program(*steps: tuple[str, int, int]) -> bytes:
    return b"".join(bytes((STEPS.index(name), a, b)) for name, a, b in steps)


_BEGUN: Final = (("connect", 0, 0), ("announce", 0, 0), ("data", 0, 2), ("data", 0, 9), ("vm", 0, 0), ("vm", 48, 3))
_SPOKEN: Final = (*_BEGUN, ("listen", 0, 0), ("acknowledge", 0, 0))
_LOST: Final = (("cut", 4, 9), ("lose", 128, 0), ("wait", 2, 1), ("connect", 0, 0), ("bring_all", 0, 0))
_OVER: Final = (("vm", 96, 0), ("end", 0, 0), ("listen", 0, 0), ("acknowledge", 0, 0), ("wait", 1, 1))
TARGETS: Final = (
    Target(
        "destination-session", destination_session, (),
        tuple(
            _program(*steps)
            for steps in (
                (*_SPOKEN, *_OVER, ("say", 4, 0), ("say", 3, 0)),
                (*_BEGUN, *_LOST, ("data", 0, 3), ("vm", 0, 0), *_OVER),
                (*_BEGUN, ("announce", 0, 0), ("data", 1, 9), ("data", 0, 9), ("wait", 2, 15), ("announce", 0, 0)),
                (*_SPOKEN, ("connect_otherwise", 18, 100), ("say", 0, 0)),
                (*_SPOKEN, ("connect_otherwise", 249, 107), ("connect", 0, 0)),
                (*_BEGUN, *[("vm", 48, 3)] * 6, ("listen", 0, 0), *_LOST, *_OVER),
                (*_SPOKEN, ("bring", 0, 64), ("bring", 0, 130)),
                (*_SPOKEN, ("spoil", 9, 40), ("connect_otherwise", 25, 107), ("bring_all", 0, 0)),
            )
        ),
    ),
)  # fmt: skip
