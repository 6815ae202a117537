"""Where a source's hypervisor connects: whoever else dials there, on this host, ends nothing."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from tests.transport.libvirt_rpc.samples import VM
from tests.transport.relay.conftest import until
from tests.transport.relay.test_front import front
from transport.relay import loopback
from transport.relay.channels import Channels
from transport.relay.cores import Cores
from transport.relay.inlets import Inlet, SourceLanes, listen_tcp
from transport.relay.interrupted import Interrupted
from transport.relay.lane_memory import lane_memory_of
from transport.relay.libvirt_source import LibvirtSource
from transport.relay.limits import LimitsSection
from transport.wire.control import Role

_RESET_WHEN_CLOSED = struct.pack("ii", 1, 0)  # SO_LINGER: on, no seconds


@asynccontextmanager
async def taking(inlet: Inlet) -> AsyncIterator[Channels]:
    channels = Channels(Role.SOURCE, LimitsSection(window_bytes=8 << 20), Cores(0), lane_memory_of(LimitsSection()))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(SourceLanes(channels, 4).accept_forever, inlet)
            yield channels
            nursery.cancel_scope.cancel()
    finally:
        inlet.listening.close()
        channels.close()


def tcp_inlet() -> tuple[Inlet, tuple[str, int]]:
    """As a caller that knows tcp only has it: any user of this host can dial it."""
    source = LibvirtSource(Path("/nonexistent"), VM, 1.0, os.geteuid(), {}, partial(Interrupted().client, (VM, "b")))
    listening = listen_tcp("127.0.0.1", 0)
    return Inlet("memory", listening, source._allows_tcp), listening.getsockname()


async def test_who_dials_and_resets_at_once_ends_no_session() -> None:
    """The kernel says of such a connection that there is no peer whose user it could name."""
    inlet, name = tcp_inlet()
    with socket.create_connection(name) as hostile:
        hostile.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_WHEN_CLOSED)
    async with taking(inlet) as channels:
        with trio.fail_after(5):
            async with await trio.open_tcp_stream(*name):
                await channels.wait_more(0)
    assert len(channels.all) == 1


async def test_a_relay_out_of_descriptors_takes_the_hypervisors_connection_when_it_has_some() -> None:
    """A guest in post-copy would be lost by the end of its session, and whoever dials brings the error about."""
    inlet, name = tcp_inlet()
    failures = [errno.EMFILE]

    class Scarce:
        """The inlet's socket, which fails once."""

        close = inlet.listening.close

        async def accept(self) -> tuple[trio.socket.SocketType, object]:
            if failures:
                raise OSError(failures.pop(), "Too many open files")
            return await inlet.listening.accept()

    async with taking(replace(inlet, listening=cast(trio.socket.SocketType, Scarce()))) as channels:
        with trio.fail_after(5):
            async with await trio.open_tcp_stream(*name):
                await channels.wait_more(0)
    assert not failures


@pytest.mark.parametrize("where", ["inlet", "front"])
async def test_whose_a_connection_is_is_looked_up_beside_whatever_else_the_relay_does(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's table is long where a user of the host has made it so: each who dialled stopped all sessions."""
    goes_on, went_on = threading.Event(), list[bool]()

    def look(_: socket.socket) -> int:
        went_on.append(goes_on.wait(2))
        return os.geteuid()

    monkeypatch.setattr(loopback, "peer_uid", look)
    async with AsyncExitStack() as held:
        if where == "inlet":
            inlet, name = tcp_inlet()
            await held.enter_async_context(taking(inlet))
        else:
            stage = await held.enter_async_context(front(tmp_path, loopback="127.77.9.9"))
            name = "127.77.9.9", stage.port
        await held.enter_async_context(await trio.open_tcp_stream(*name))
        await trio.testing.wait_all_tasks_blocked(0.05)
        goes_on.set()
        await until(lambda: bool(went_on))
    assert went_on == [True]
