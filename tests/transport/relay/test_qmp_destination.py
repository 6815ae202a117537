"""A destination's QEMU by QMP."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.transport.hypervisors.test_qemu import VM, Pair, pair
from tests.transport.kinds import KINDS, move
from transport.hypervisors.errors import HypervisorUnreachable
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.process import process_identity
from transport.hypervisors.qemu import QemuMachine
from transport.relay import qmp_destination, spool
from transport.relay.qmp_destination import QmpDestination

__all__ = ["pair"]  # the fixture


async def test_a_guest_in_post_copy_is_held_on_while_no_descriptor_is_left_to_look_at_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody else catches it: the whole relay would end, and every guest's memory that it carries."""
    end = QmpDestination(Path("/nonexistent"), VM, process_identity(os.getpid()), MigrationSettings(), 1.0)
    looked: list[str] = []

    async def looks() -> bool:
        looked.append("")
        if len(looked) == 1:
            raise HypervisorUnreachable("process 1 cannot be looked at: Too many open files")
        return True

    monkeypatch.setattr(end, "is_gone", looks)
    monkeypatch.setattr(qmp_destination, "_RETRY_SECONDS", 0.01)
    with trio.fail_after(5):
        await end.hold_until_whole()
    assert len(looked) == 2


@pytest.mark.real
async def test_what_was_asked_ahead_counts_only_while_qemu_answers(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a guest could be taken that nobody can start, and its source would end the only one."""
    await pair.begin(MigrationSettings())
    await pair.at_source.wait_migration(deadline_seconds=30)
    await pair.at_destination.aclose()
    pid = pair.destination.pid
    end = QmpDestination(pair.destination.qmp_socket, VM, process_identity(pid), MigrationSettings(), 2.0)
    async with end:
        machine = await end.machine()
        await end.look_ahead()
        progress = machine.progress
        monkeypatch.setattr(machine, "progress", None)
        assert await end.wait_loaded(1.0), "its progress is known"
        monkeypatch.setattr(machine, "progress", progress)
        os.kill(pid, signal.SIGSTOP)
        assert not await end.wait_loaded(1.0), "it does not answer"
        os.kill(pid, signal.SIGKILL)
        with trio.fail_after(5):
            while not await end.is_gone():
                await trio.sleep(0.01)
        assert not await end.wait_loaded(1.0)


@pytest.mark.real
async def test_asking_ahead_takes_nothing_from_who_asks_when_it_is_due(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp_destination, "_AHEAD_SECONDS", 0.2)
    await pair.at_destination.prepare_destination(MigrationSettings())
    await pair.at_destination.hold_incoming()
    await pair.at_destination.aclose()
    pid = pair.destination.pid
    end = QmpDestination(pair.destination.qmp_socket, VM, process_identity(pid), MigrationSettings(), 5.0)
    async with end:
        with trio.fail_after(5):
            await end.look_ahead()
        machine = await end.machine()
        await machine.listen_incoming(pair.path)
        await pair.at_source.prepare_source(MigrationSettings())
        await pair.at_source.start_migration(pair.path)
        assert await end.wait_loaded(20.0)


@pytest.mark.real
async def test_a_guest_that_is_handed_over_was_asked_after_before(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still meanwhile: its QEMU was asked while the source was noting that it gives it away."""
    order: list[str] = []
    wait_incoming, durable = QemuMachine.wait_incoming, spool._append_line

    async def noted(machine: QemuMachine, *, deadline_seconds: float) -> None:
        order.append("asked")
        await wait_incoming(machine, deadline_seconds=deadline_seconds)

    def append_line(path: Path, entry: dict[str, Any]) -> None:
        if entry["state"] == "handed-over":
            time.sleep(1)  # in a thread
            order.append("handed over")
        durable(path, entry)

    monkeypatch.setattr(QemuMachine, "wait_incoming", noted)
    monkeypatch.setattr(spool, "_append_line", append_line)
    await move(KINDS[0], short_path)
    assert order == ["asked", "handed over"]
