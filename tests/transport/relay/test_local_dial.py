"""Dialling what the configuration names on this host: whatever is in the way is the session's trouble, in words."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from transport.errors import ConnectionBroken, LocalBroken, NobodyListens
from transport.relay.local_dial import dial_loopback, dial_unix
from transport.relay.outgoing import Leaving, connect


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.dup(0))
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "dial",
    [
        pytest.param(partial(dial_unix, Path("/nowhere"), 1.0, lambda _: True), id="unix"),
        pytest.param(partial(dial_loopback, "127.0.0.1", 9, 1.0), id="loopback"),
        pytest.param(partial(dial_loopback, "::1", 9, 1.0), id="loopback of IPv6"),
    ],
)
async def test_descriptors_that_run_out_are_named(dial: partial[object]) -> None:
    with no_descriptor_left(), pytest.raises(LocalBroken, match="Too many open files"):
        await dial()  # type: ignore[misc]


async def test_a_listener_whose_queue_is_full_is_waited_for(short_path: Path) -> None:
    """What came back was no connection, and its session ended over it."""
    path = str(short_path / "full")
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as first:
        listening.bind(path)
        listening.listen(0)
        first.connect(path)
        with pytest.raises(NobodyListens):
            (await dial_unix(Path(path), 0.05, lambda _: True)).close()
        async with trio.open_nursery() as nursery:

            async def make_room() -> None:
                await trio.testing.wait_all_tasks_blocked(0.001)
                listening.accept()[0].close()

            nursery.start_soon(make_room)
            dialled = await dial_unix(Path(path), 5, lambda pid: pid == os.getpid())
        accepted, _ = listening.accept()
        with dialled, accepted:
            dialled.send(b"x")
            assert accepted.recv(1) == b"x"


async def test_so_it_is_on_the_way_to_another_host_and_not_said_of_that_one() -> None:
    with no_descriptor_left(), pytest.raises(ConnectionBroken, match="this host has no descriptor left"):
        await connect(("127.0.0.1", 9), Leaving(), 1.0)
