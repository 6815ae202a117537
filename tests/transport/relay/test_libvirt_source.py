"""A guest that was given away in post-copy needs its memory alone: what else breaks ends nothing, and nothing waits on
for a QEMU that is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from tests.transport.libvirt_rpc.samples import VM
from transport.errors import LocalBroken, TransportError
from transport.hypervisors.process import process_identity
from transport.libvirt_rpc.errors import RpcMalformed
from transport.relay.libvirt_source import LibvirtSource


class Lanes:
    """Whose memory comes to its end only if `ended`."""

    def __init__(self) -> None:
        self.ended, self.is_waited_for = trio.Event(), trio.Event()

    async def open(self, _: str, local: Any) -> None:
        self._local = local  # closed with us

    async def wait_ended(self, port: str) -> None:
        assert port == "memory"
        self.is_waited_for.set()
        await self.ended.wait()


def talk(cause: TransportError) -> Any:
    """A conversation that breaks by `cause` after its guest was given away."""

    async def carry(*_: object) -> None:
        raise cause

    return SimpleNamespace(
        is_offline=True, is_given_away=True, carry=carry, cause="", broke=trio.Event(), uris={}, loopback="", disks=None
    )


@pytest.mark.parametrize(
    "cause", [LocalBroken("the client of libvirt has left"), RpcMalformed("one refused call after the other")]
)
@pytest.mark.parametrize("what_ends", ["the memory", "the QEMU"])
async def test_its_memory_goes_on_until_it_has_ended_or_its_qemu_is_gone(cause: TransportError, what_ends: str) -> None:
    """A destination that never ends its direction would else hold one of max_moves for ever."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as qemu:
        lanes, conversation = Lanes(), talk(cause)
        facts = {"process": process_identity(qemu.pid)}
        source = LibvirtSource(Path("/nonexistent"), VM, 5.0, -1, facts, conversation)
        migrate: Any = source.migrate
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(migrate, lanes, None, None)
                await lanes.is_waited_for.wait()
                assert conversation.broke.is_set()
                if what_ends == "the memory":
                    lanes.ended.set()
                qemu.kill()
                await trio.to_thread.run_sync(qemu.wait)
