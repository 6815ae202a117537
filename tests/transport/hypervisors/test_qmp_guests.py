"""Looking at real QEMUs by their monitors: without holding one, and without being fooled by what lies beside them."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from gateway.demo.machines import Qemu, start_qemu, stop_qemu
from transport.hypervisors.guests import Arrival, Presence
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.qemu import QemuMachine
from transport.hypervisors.qmp_guests import QmpGuests, monitors, presence_of

VM = "7f9c24e8-3b5a-4f0e-8d6b-0c2a1e5d9f01"
OTHER = "7f9c24e8-3b5a-4f0e-8d6b-0c2a1e5d9f02"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        yield Path(name)


def listen(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


@pytest.mark.parametrize("template", ["{uuid}/qmp.sock", "{uuid}.sock", "vm-{uuid}.d/a/qmp", "x/{uuid}"])
def test_sockets_are_found_by_the_configured_template(folder: Path, template: str) -> None:
    for uuid in (VM, OTHER):
        listen(folder / template.replace("{uuid}", uuid))
    assert set(monitors(str(folder / template))) == {VM, OTHER}


def test_what_is_no_socket_of_a_uuid_is_none(folder: Path) -> None:
    listen(folder / VM.upper() / "qmp.sock")
    listen(folder / "web" / "qmp.sock")
    (folder / OTHER).mkdir()
    (folder / OTHER / "qmp.sock").write_text("a file")
    assert monitors(str(folder / "{uuid}" / "qmp.sock")) == {}
    assert monitors(str(folder / "missing" / "{uuid}.sock")) == {}


@pytest.mark.parametrize(
    ("state", "presence"),
    [
        ("running", Presence.ACTIVE), ("paused", Presence.ACTIVE), ("io-error", Presence.ACTIVE),
        ("inmigrate", Presence.ARRIVING), ("prelaunch", Presence.ARRIVING),
        ("postmigrate", Presence.LEAVING), ("finish-migrate", Presence.LEAVING),
    ],
)  # fmt: skip
def test_the_run_state_tells_whose_the_guest_is(state: str, presence: Presence) -> None:
    assert presence_of(state) is presence


@pytest.fixture
async def qemu(folder: Path) -> AsyncIterator[Qemu]:
    machine = await start_qemu(folder / VM, VM, memory_mib=16)
    yield machine
    await stop_qemu(machine)


@pytest.mark.real
async def test_a_guest_is_seen_and_its_monitor_is_free_again(folder: Path, qemu: Qemu) -> None:
    guests = QmpGuests(str(folder / "{uuid}" / "qmp.sock"), recheck_seconds=30)
    (seen,), present = await guests.look(0.0)
    assert present == [VM]
    assert (seen.uuid, seen.presence, seen.run_state, seen.is_sure) == (VM, Presence.ACTIVE, "running", True)
    async with await QemuMachine.connect(qemu.qmp_socket, answer_seconds=2) as machine:
        await machine.require_uuid(VM)


@pytest.mark.real
async def test_a_running_guest_is_believed_for_a_while_and_its_end_is_seen_at_once(folder: Path, qemu: Qemu) -> None:
    guests = QmpGuests(str(folder / "{uuid}" / "qmp.sock"), recheck_seconds=30)
    await guests.look(0.0)
    assert await guests.look(29.0) == ([], [VM])
    (again,), _ = await guests.look(31.0)
    assert again.run_state == "running"
    await stop_qemu(qemu)
    assert qemu.qmp_socket.is_socket()  # a killed QEMU leaves it behind
    assert await guests.look(32.0) == ([], [])


@pytest.mark.real
async def test_a_monitor_that_a_session_holds_is_a_guest_of_which_no_more_is_known(folder: Path, qemu: Qemu) -> None:
    guests = QmpGuests(str(folder / "{uuid}" / "qmp.sock"), recheck_seconds=0.05)
    await guests.look(0.0)
    async with await QemuMachine.connect(qemu.qmp_socket):
        (seen,), present = await guests.look(1.0)
        assert (seen.run_state, seen.is_sure, present) == ("running", False, [VM])
    (seen,), _ = await guests.look(2.0)
    assert seen.is_sure


@pytest.mark.real
async def test_another_vm_behind_the_socket_is_not_this_vm(folder: Path, qemu: Qemu) -> None:
    (folder / OTHER).mkdir()
    (folder / OTHER / "qmp.sock").symlink_to(qemu.qmp_socket)
    guests = QmpGuests(str(folder / "{uuid}" / "qmp.sock"), recheck_seconds=30)
    _, present = await guests.look(0.0)
    assert present == [VM]


@pytest.mark.real
async def test_a_migration_is_seen_at_both_ends(folder: Path, qemu: Qemu) -> None:
    there = await start_qemu(folder / "b" / VM, VM, memory_mib=16, incoming=True)
    try:
        here = QmpGuests(str(folder / "{uuid}" / "qmp.sock"), recheck_seconds=30)
        beyond = QmpGuests(str(folder / "b" / "{uuid}" / "qmp.sock"), recheck_seconds=30)
        (arriving,), _ = await beyond.look(0.0)
        assert (arriving.presence, arriving.run_state) == (Presence.ARRIVING, "inmigrate")
        # By the monitors alone, as an administrator could who goes around the relay.
        async with (
            await QemuMachine.connect(qemu.observer_socket) as source,
            await QemuMachine.connect(there.observer_socket) as destination,
        ):
            await source.prepare_source(MigrationSettings())
            await destination.prepare_destination(MigrationSettings())
            await destination.listen_incoming(folder / "memory.sock")
            await source.start_migration(folder / "memory.sock")
            await source.wait_migration(deadline_seconds=30)
            with trio.fail_after(10):
                while await destination.status() != "running":
                    await trio.sleep(0.01)
        (left,), _ = await here.look(31.0)
        (arrived,), _ = await beyond.look(31.0)
        assert left.presence is Presence.LEAVING
        assert (arrived.presence, arrived.arrival) == (Presence.ACTIVE, Arrival.MIGRATED)
    finally:
        await stop_qemu(there)
