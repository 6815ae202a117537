"""The driver against real QEMUs: two of them migrated directly over a unix socket, and all that goes wrong."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from gateway.demo.guest import GuestLayout, build_boot_image, count_passes, memory_problems
from gateway.demo.machines import Qemu, dump_region, let_run, run_state, start_qemu, stop_qemu, wait_passes
from transport.hypervisors.errors import (
    HypervisorGone,
    HypervisorRefused,
    HypervisorTimeout,
    HypervisorUnreachable,
    MigrationCancelled,
    MigrationFailed,
    WrongVm,
)
from transport.hypervisors.migration_progress import MigrationProgress
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.moving import Movement
from transport.hypervisors.qemu import QemuMachine

pytestmark = pytest.mark.real

VM = "7f9c24e8-3b5a-4f0e-8d6b-0c2a1e5d9f01"
OTHER_VM = "7f9c24e8-3b5a-4f0e-8d6b-0c2a1e5d9f02"
MEMORY_MIB = 32
LAYOUT = GuestLayout.for_memory(MEMORY_MIB, hot_mib=4)
SLOW = MigrationSettings(bandwidth_bytes_per_second=1 << 20, downtime_limit_ms=1)  # takes half a minute


@dataclass
class Pair:
    """Two QEMUs for one VM; each with a driver on the relay's monitor."""

    folder: Path
    source: Qemu
    destination: Qemu
    at_source: QemuMachine
    at_destination: QemuMachine

    @property
    def path(self) -> Path:
        return self.folder / "memory.sock"

    async def begin(self, settings: MigrationSettings) -> None:
        await self.at_source.prepare_source(settings)
        await self.at_destination.prepare_destination(settings)
        await self.at_destination.hold_incoming()
        await self.at_destination.listen_incoming(self.path)
        await self.at_source.start_migration(self.path)

    async def until_active(self) -> None:
        with trio.fail_after(20):
            while (await self.at_source.progress()).transferred_bytes == 0:
                await trio.sleep(0.01)


@pytest.fixture
async def pair(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    uuid_there = getattr(request, "param", VM)
    image = build_boot_image(LAYOUT, tmp_path)
    async with AsyncExitStack() as stack:
        source = await start_qemu(tmp_path / "a", VM, memory_mib=MEMORY_MIB, image=image)
        stack.push_async_callback(stop_qemu, source)
        destination = await start_qemu(tmp_path / "b", uuid_there, memory_mib=MEMORY_MIB, image=image, incoming=True)
        stack.push_async_callback(stop_qemu, destination)
        at_source = await stack.enter_async_context(await QemuMachine.connect(source.qmp_socket))
        at_destination = await stack.enter_async_context(await QemuMachine.connect(destination.qmp_socket))
        await wait_passes(source, 2)
        yield Pair(tmp_path, source, destination, at_source, at_destination)


@pytest.mark.parametrize("channels", [0, 2])
async def test_a_guest_moves_unharmed_and_starts_only_when_it_is_told_to(pair: Pair, channels: int) -> None:
    await dump_region(pair.source, pair.folder / "before", LAYOUT)
    await let_run(pair.source)
    seen: list[MigrationProgress] = []

    async def keep(progress: MigrationProgress) -> None:
        seen.append(progress)

    await pair.begin(MigrationSettings(movement=Movement(multifd_channels=channels)))
    await pair.at_source.wait_migration(deadline_seconds=30, on_progress=keep, interval_seconds=0.01)
    last = await pair.at_source.progress()
    assert await pair.at_destination.wait_incoming(deadline_seconds=10) == "paused"
    # "completed" is told a moment before QEMU's main loop has left the other.
    assert await pair.at_source.status() in {"postmigrate", "finish-migrate"}
    assert pair.destination.printed() == b""
    counted_at_source = pair.source.printed()

    await pair.at_destination.resume()
    await pair.at_source.quit()
    assert pair.source.ended
    arrived = count_passes(counted_at_source)
    await wait_passes(pair.destination, arrived + 20, earlier=counted_at_source)
    printed_here = await dump_region(pair.destination, pair.folder / "after", LAYOUT)
    passes = count_passes(counted_at_source + printed_here)
    assert memory_problems(pair.folder / "before", pair.folder / "after", LAYOUT, passes) == []

    assert last.status == "completed"
    assert last.downtime_ms is not None
    assert last.total_bytes >= MEMORY_MIB << 20
    assert last.transferred_bytes > LAYOUT.size_bytes
    assert last.passes >= 2
    assert "completed" not in {progress.status for progress in seen}  # the guest stands still: nobody is told first
    assert seen[-1].status in {"active", "device"}
    assert not any(progress.status == "completed" for progress in seen[:-1])


async def test_the_source_gets_its_guest_back_as_long_as_the_destination_is_held(pair: Pair) -> None:
    await pair.begin(MigrationSettings())
    await pair.at_source.wait_migration(deadline_seconds=30)
    assert await pair.at_destination.wait_incoming(deadline_seconds=10) == "paused"
    await pair.at_destination.quit()
    counted = count_passes(pair.source.printed())
    await pair.at_source.take_back()
    await wait_passes(pair.source, counted + 5)


@pytest.mark.parametrize("pair", [OTHER_VM], indirect=True)
async def test_another_vm_at_the_destination_is_refused_by_qemu_itself(pair: Pair) -> None:
    with pytest.raises(WrongVm, match=f"expected VM {VM}, found {OTHER_VM}"):
        await pair.at_destination.require_uuid(VM)
    await pair.at_source.require_uuid(VM)
    await pair.begin(MigrationSettings())  # as if nobody had asked: validate-uuid stands behind it
    with pytest.raises(HypervisorGone):
        await pair.at_destination.wait_incoming(deadline_seconds=20)
    with pytest.raises(MigrationFailed):
        await pair.at_source.wait_migration(deadline_seconds=20)
    assert "UUID" in pair.destination.log_file.read_text()
    await wait_passes(pair.source, count_passes(pair.source.printed()) + 5)


async def test_a_destination_killed_midway_leaves_the_guest_running_at_the_source(pair: Pair) -> None:
    await pair.begin(SLOW)
    await pair.until_active()
    await pair.at_destination.kill()
    with pytest.raises(HypervisorGone):
        await pair.at_destination.status()
    with pytest.raises(MigrationFailed, match="QEMU gave the migration up"):
        await pair.at_source.wait_migration(deadline_seconds=20)
    assert await pair.at_source.status() == "running"
    await wait_passes(pair.source, count_passes(pair.source.printed()) + 5)


async def test_a_source_killed_midway_is_gone_and_the_destination_has_no_guest(pair: Pair) -> None:
    await pair.begin(SLOW)
    await pair.until_active()
    os.kill(pair.source.pid, signal.SIGKILL)
    with pytest.raises(HypervisorGone, match=str(pair.source.pid)):
        await pair.at_source.wait_migration(deadline_seconds=20)
    with pytest.raises(HypervisorGone):
        await pair.at_destination.wait_incoming(deadline_seconds=20)
    await pair.at_destination.quit()  # of what is gone already: nothing to do
    assert pair.destination.printed() == b""


async def test_a_cancelled_migration_says_so_and_the_guest_goes_on(pair: Pair) -> None:
    await pair.begin(SLOW)
    await pair.until_active()
    await pair.at_source.cancel()
    with pytest.raises(MigrationCancelled) as cancelled:
        await pair.at_source.wait_migration(deadline_seconds=20)
    assert cancelled.value.who_must_act == "requester"
    assert await pair.at_source.status() == "running"
    await pair.at_source.cancel()  # again: nothing to do


async def test_a_migration_that_does_not_end_meets_its_deadline_and_can_be_cancelled(pair: Pair) -> None:
    await pair.begin(SLOW)
    await pair.until_active()  # cancelled while it begins, QEMU 7.2 may call it failed
    with pytest.raises(HypervisorTimeout, match=r"did not end within 0\.3 s"):
        await pair.at_source.wait_migration(deadline_seconds=0.3, interval_seconds=0.05)
    await pair.at_source.cancel()
    with pytest.raises(MigrationCancelled):
        await pair.at_source.wait_migration(deadline_seconds=20)


async def test_a_permitted_bandwidth_is_kept(pair: Pair) -> None:
    await pair.begin(SLOW)
    await pair.until_active()
    began, start = trio.current_time(), (await pair.at_source.progress()).transferred_bytes
    with pytest.raises(HypervisorTimeout):
        await pair.at_source.wait_migration(deadline_seconds=1.5, interval_seconds=0.2)
    moved = (await pair.at_source.progress()).transferred_bytes - start
    assert moved / (trio.current_time() - began) < 3 * SLOW.bandwidth_bytes_per_second


async def test_a_hung_qemu_meets_the_deadline_and_can_be_fenced(pair: Pair) -> None:
    async with await QemuMachine.connect(pair.source.observer_socket, answer_seconds=0.2) as machine:
        os.kill(pair.source.pid, signal.SIGSTOP)
        with pytest.raises(HypervisorTimeout, match="query-status"):
            await machine.status()
        with pytest.raises(HypervisorTimeout, match="ends"):
            await machine.quit(deadline_seconds=0.3)
        assert not pair.source.ended
        await machine.kill()
        assert pair.source.ended


async def test_a_monitor_that_another_program_holds_does_not_greet(pair: Pair) -> None:
    with pytest.raises(HypervisorTimeout, match="connect to the monitor"):
        await QemuMachine.connect(pair.source.qmp_socket, answer_seconds=0.2)


async def test_only_a_qemu_that_waits_for_a_migration_can_be_held(pair: Pair) -> None:
    with pytest.raises(HypervisorRefused, match="-incoming defer"):
        await pair.at_source.hold_incoming()
    assert await run_state(pair.source) == "running"
    await pair.at_destination.hold_incoming()
    await pair.at_destination.hold_incoming()
    assert await pair.at_destination.status() == "inmigrate"


async def test_a_migration_to_where_nobody_listens_fails_and_the_guest_goes_on(pair: Pair) -> None:
    await pair.at_source.prepare_source(MigrationSettings())
    await pair.at_source.start_migration(pair.folder / "nobody.sock")
    with pytest.raises(MigrationFailed, match=r"nobody\.sock"):
        await pair.at_source.wait_migration(deadline_seconds=10)
    assert await pair.at_source.status() == "running"


@pytest.mark.parametrize("path", [Path("relative.sock"), Path("/" + "x" * 107), Path("/r\u00e4um")])
async def test_a_path_that_no_socket_can_have_never_reaches_qemu(pair: Pair, path: Path) -> None:
    with pytest.raises(ValueError, match="not an absolute ASCII path"):
        await pair.at_source.start_migration(path)


async def test_quit_returns_only_when_the_process_is_gone(pair: Pair) -> None:
    await pair.at_source.quit()
    assert pair.source.ended
    with pytest.raises(HypervisorUnreachable):
        await QemuMachine.connect(pair.source.qmp_socket)
    with pytest.raises(HypervisorGone):
        await pair.at_source.status()
