"""A guest that was given away in post-copy needs its memory alone: what else breaks ends nothing, and nothing waits on
for a QEMU that is gone."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from tests.transport.libvirt_rpc.samples import VM
from transport.errors import LocalBroken, TransportError
from transport.hypervisors.process import process_identity
from transport.libvirt_rpc.client import DomainState
from transport.libvirt_rpc.errors import RpcMalformed
from transport.relay import libvirt_source
from transport.relay.interrupted import Interrupted
from transport.relay.libvirt_source import LibvirtSource, NextClient
from transport.relay.recovering import recover_post_copy


class Lanes:
    """Whose memory comes to its end only if `ended`."""

    def __init__(self) -> None:
        self.ended, self.is_waited_for = trio.Event(), trio.Event()

    async def open(self, _: str, local: Any) -> None:
        self._local = local  # closed with us

    def close(self) -> None:
        self._local.close()

    async def wait_opened(self, port: str) -> None:
        assert port == "memory"
        await trio.sleep_forever()

    async def wait_ended(self, port: str) -> None:
        assert port == "memory"
        self.is_waited_for.set()
        await self.ended.wait()


def talk(cause: TransportError) -> Any:
    """A conversation that breaks by `cause` after its guest was given away."""

    async def carry(*_: object) -> None:
        raise cause

    return SimpleNamespace(
        is_offline=True,
        is_given_away=True,
        is_whole_there=False,
        carry=carry,
        cause="",
        broke=trio.Event(),
        uris={},
        loopback="",
        disks=None,
    )


def nobody() -> NextClient:
    """Takes up what was interrupted."""
    return partial(Interrupted().client, (VM, "b"))


@pytest.mark.parametrize(
    "cause", [LocalBroken("the client of libvirt has left"), RpcMalformed("one refused call after the other")]
)
@pytest.mark.parametrize("what_ends", ["the memory", "the QEMU"])
async def test_its_memory_goes_on_until_it_has_ended_or_its_qemu_is_gone(cause: TransportError, what_ends: str) -> None:
    """A destination that never ends its direction would else hold one of max_moves for ever."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as qemu:
        lanes, conversation = Lanes(), talk(cause)
        facts = {"process": process_identity(qemu.pid)}
        source = LibvirtSource(Path("/nonexistent"), VM, 5.0, -1, facts, nobody(), conversation)
        migrate: Any = source.migrate
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(migrate, lanes, SimpleNamespace(accepted=None), None)
                await lanes.is_waited_for.wait()
                assert conversation.broke.is_set()
                if what_ends == "the memory":
                    lanes.ended.set()
                qemu.kill()
                await trio.to_thread.run_sync(qemu.wait)


@pytest.mark.parametrize("post_copy", [True, False])
async def test_a_guest_that_was_given_away_waits_for_a_client_as_long_as_its_qemu_is_there(post_copy: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as qemu:
        facts = {"process": process_identity(qemu.pid), "post_copy": post_copy}
        source = LibvirtSource(Path("/nonexistent"), VM, 5.0, -1, facts, nobody())
        assert await source.is_in_post_copy() is post_copy
        qemu.kill()
        await trio.to_thread.run_sync(qemu.wait)
        with trio.fail_after(5):
            async with source.recovery(0.0) as may_try:
                assert not may_try
        assert not await source.is_in_post_copy()


async def test_a_destination_that_takes_a_given_away_guest_once_more_is_not_believed() -> None:
    """By a Finish that its client has not made as one of post-copy: nothing may be handed over a second time."""

    async def carry(_lane: object, give_away: Any, accepted: Any) -> None:
        assert await give_away()
        await accepted()

    facts = {"process": "", "post_copy": True}
    conversation: Any = SimpleNamespace(is_offline=True, is_given_away=False, was_prepared=False, carry=carry)
    source = LibvirtSource(Path("/nonexistent"), VM, 5.0, -1, facts, nobody(), conversation)
    go_on: Any = source.go_on_with_post_copy
    lanes = Lanes()
    again = pytest.RaisesExc(LocalBroken, match="cannot be given away again")
    with pytest.RaisesGroup(again, flatten_subgroups=True):
        await go_on(lanes, None)
    lanes.close()


async def test_a_client_that_only_prepares_a_resumption_keeps_nobody_from_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def carry(*_: object) -> None:
        await trio.sleep_forever()

    conversation: Any = SimpleNamespace(is_offline=True, was_prepared=True, carry=carry)
    source = LibvirtSource(Path("/nonexistent"), VM, 5.0, -1, {}, nobody(), conversation)
    go_on: Any = source.go_on_with_post_copy
    lanes = Lanes()
    began = trio.current_time()
    with pytest.RaisesGroup(pytest.RaisesExc(LocalBroken, match="does not go on"), flatten_subgroups=True):
        await go_on(lanes, None)
    assert trio.current_time() - began == pytest.approx(5.0)
    lanes.close()


async def test_a_relay_without_a_descriptor_left_tries_again_when_the_next_client_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a session that a former process left, any other error would have ended the relay with all sessions."""

    def scarce(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    conversation: Any = SimpleNamespace(is_offline=True, was_prepared=False)
    source = LibvirtSource(Path("/nonexistent"), VM, 5.0, -1, {}, nobody(), conversation)
    go_on: Any = source.go_on_with_post_copy
    monkeypatch.setattr(socket, "socketpair", scarce)
    no_descriptor = pytest.RaisesExc(LocalBroken, match="Too many open files")
    with pytest.RaisesGroup(no_descriptor, flatten_subgroups=True):
        await go_on(Lanes(), None)


@pytest.mark.parametrize("is_whole_there", [True, False])
async def test_what_libvirt_leaves_of_a_guest_that_is_whole_at_the_destination_is_ended(
    monkeypatch: pytest.MonkeyPatch, is_whole_there: bool
) -> None:
    """Its client had gone after Finish, and it takes no resumption. Where Finish did not go well, memory is missing."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as qemu:

        async def destroy(_: str) -> None:
            qemu.kill()
            await trio.to_thread.run_sync(qemu.wait)

        async def state(_: str) -> DomainState:
            return DomainState.PAUSED

        @asynccontextmanager
        async def client(*_: object) -> AsyncIterator[object]:
            yield SimpleNamespace(state=state, destroy=destroy)

        monkeypatch.setattr(libvirt_source, "libvirt_client", client)
        conversation = talk(LocalBroken("the client of libvirt has left"))
        conversation.is_whole_there = is_whole_there
        lanes = Lanes()
        lanes.ended.set()
        source = LibvirtSource(
            Path("/nonexistent"), VM, 0.3, -1, {"process": process_identity(qemu.pid)}, nobody(), conversation
        )
        migrate: Any = source.migrate
        with nullcontext() if is_whole_there else pytest.raises(LocalBroken, match="has not ended its guest"):
            await migrate(lanes, SimpleNamespace(accepted=None), None)
        assert await source.is_gone() is is_whole_there
        qemu.kill()
    lanes.close()


@pytest.mark.parametrize("by_settling", [True, False])
async def test_a_guest_that_has_come_back_is_not_taken_for_the_one_that_left(
    monkeypatch: pytest.MonkeyPatch, by_settling: bool
) -> None:
    """While libvirt was asked, the QEMU that gave its guest away ended, and another one of the same VM waits here."""
    destroyed: list[str] = []
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as qemu:

        async def destroy(vm: str) -> None:
            destroyed.append(vm)

        async def state(_: str) -> DomainState:
            qemu.kill()
            await trio.to_thread.run_sync(qemu.wait)
            return DomainState.PAUSED

        async def has_job(_: str) -> bool:
            return False

        @asynccontextmanager
        async def client(*_: object) -> AsyncIterator[object]:
            yield SimpleNamespace(state=state, destroy=destroy, has_job=has_job)

        monkeypatch.setattr(libvirt_source, "libvirt_client", client)
        conversation = talk(LocalBroken("the client of libvirt has left"))
        conversation.is_whole_there = True
        facts = {"process": process_identity(qemu.pid)}
        source = LibvirtSource(Path("/nonexistent"), VM, 0.0, -1, facts, nobody(), conversation)
        if by_settling:
            assert await source.whereabouts(accepted=True) == "gone"
        else:
            lanes = Lanes()
            lanes.ended.set()
            migrate: Any = source.migrate
            await migrate(lanes, SimpleNamespace(accepted=None), None)
            lanes.close()
    assert destroyed == []


class Recoverable:
    """An end in post-copy, whose client has come."""

    recovers = "somebody takes it up"

    def __init__(self) -> None:
        self.told: list[str] = []

    async def is_in_post_copy(self) -> bool:
        return True

    @asynccontextmanager
    async def recovery(self, _: float) -> AsyncIterator[bool]:
        yield True

    def broke(self, cause: str) -> None:
        self.told.append(cause)


async def test_a_client_that_comes_after_recover_until_reads_so() -> None:
    async def tell(_: object) -> None:
        pass

    permit = SimpleNamespace(claims=SimpleNamespace(vm=VM, recover_until=1_000))
    first: Any = SimpleNamespace(permit=permit, has_receipt=True)
    end: Any = Recoverable()
    with pytest.raises(LocalBroken, match="recover_until is past"):
        await recover_post_copy(first, end, tell)
    assert end.told == ["post-copy is not over, and its permit's recover_until is past: see docs/failures.md"]
