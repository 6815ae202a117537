"""Hypervisors that are not what they should be, die, hang or never finish: one guest, in one place.

Two relays in this process, real QEMUs beside them. Whether a guest ran twice is judged by what it printed: it counts.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

import transport.relay.qmp_destination
from gateway.demo.guest import GuestLayout, build_boot_image, count_passes
from gateway.demo.machines import Qemu, run_state, start_qemu, stop_qemu, wait_passes
from policy.permit import Limits
from tests.transport.relay.conftest import serving, until
from tests.transport.relay.cutter import network_to
from tests.transport.site import Site
from tests.transport.stages import qmp_host
from transport.errors import TransportError
from transport.hypervisors.errors import HypervisorUnreachable, WrongVm
from transport.hypervisors.process import process_identity
from transport.hypervisors.qmp import QmpConnection
from transport.relay import spool
from transport.relay.config import split_address
from transport.relay.host import RelayHost
from transport.relay.local_dial import dial_unix
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source

pytestmark = pytest.mark.real
VM = "11111111-2222-4333-8444-555555555555"
OTHER_VM = "99999999-2222-4333-8444-555555555555"
MEMORY_MIB = 32
LAYOUT = GuestLayout.for_memory(MEMORY_MIB, 2)
LIMITS = {
    "hypervisor_seconds": 2.0,
    "drain_seconds": 2.0,
    "message_seconds": 2.0,
    "settle_retry_seconds": 0.2,
    "resume_seconds": 60.0,  # as it is by default
}
SLOW = 2 << 20  # bytes a second: what this guest dirties in a second is several times as much


@dataclass
class Stage:
    """Two relays that drive QEMU, and all QEMUs that a test has started."""

    site: Site
    image: Path
    source: RelayHost
    destination: RelayHost
    address: str
    cancelled: trio.Event = field(default_factory=trio.Event)
    told: list[News] = field(default_factory=list)
    machines: list[Qemu] = field(default_factory=list)

    async def start(self, host: str, vm: str = VM, *, at: str = VM, incoming: bool = False) -> Qemu:
        """A QEMU of VM `vm` on `host`, whose monitor stands where the relay looks for VM `at`."""
        folder = self.site.folder / f"q{host}" / at
        machine = await start_qemu(folder, vm, memory_mib=MEMORY_MIB, image=self.image, incoming=incoming)
        self.machines.append(machine)
        if not incoming:
            await wait_passes(machine, 3)
        return machine

    def permit(self, **changes: Any) -> str:
        return self.site.permit(vm=VM, **changes)

    def slow_permit(self) -> str:
        """A permit under which the migration stays under way until something ends it."""
        return self.permit(limits=Limits(max_channels=16, bandwidth_bytes_per_second=SLOW))

    async def tell(self, news: News) -> None:
        self.told.append(news)

    async def move(self, permit: str, seconds: float = 60) -> News:
        order = MigrationOrder(permit, self.address, deadline_seconds=seconds)
        return await carry_as_source(self.source, order, self.tell, self.cancelled)

    async def until_under_way(self) -> None:
        await until(lambda: any(n.progress and n.progress.transferred_bytes > 100_000 for n in self.told), 30)

    def session_socket(self, host: RelayHost) -> Path | None:
        return next(host.spool.run_dir.glob("*/memory.sock"), None)

    def outcome(self, host: RelayHost) -> str:
        """The outcome by the one receipt that this host keeps."""
        (path,) = host.spool.receipts()
        return str(json.loads(json.loads(path.read_bytes())["receipt"]["body"])["outcome"])


@pytest.fixture
async def stage(site: Site) -> AsyncIterator[Stage]:
    async with staged(site, LIMITS) as made:
        yield made


@asynccontextmanager
async def staged(site: Site, limits: dict[str, float]) -> AsyncIterator[Stage]:
    async with serving(qmp_host(site, "b", limits)) as (destination, address):
        source = qmp_host(site, "a", limits)
        made = Stage(site, build_boot_image(LAYOUT, site.folder), source, destination, address)
        try:
            yield made
        finally:
            for machine in made.machines:
                await stop_qemu(machine)


async def require_counting(machine: Qemu) -> None:
    """The guest goes on at the source: nothing was counted twice or left out, and it still counts."""
    assert await run_state(machine) == "running"
    await wait_passes(machine, count_passes(machine.printed()) + 3)


async def require_never_run(machine: Qemu) -> None:
    assert machine.printed() == b"", "a guest ran at the destination"


async def require_kept_by_source(stage: Stage, source: Qemu, destination: Qemu, outcome: str = "failed") -> None:
    """The guest counts on at the source; the destination's QEMU is gone; both hosts certify how it ended."""
    await require_counting(source)
    await until(lambda: destination.ended)
    await require_never_run(destination)
    await until(lambda: bool(stage.destination.spool.receipts()))
    assert (stage.outcome(stage.source), stage.outcome(stage.destination)) == (outcome, "discarded")
    assert stage.told[-1].state == outcome


# --- refused, and nothing touched


async def test_another_vm_behind_the_sources_monitor_is_refused_and_goes_on(stage: Stage) -> None:
    other = await stage.start("a", OTHER_VM)
    with pytest.raises(WrongVm):
        await stage.move(stage.permit())
    assert not stage.source.spool.receipts()
    await require_counting(other)


async def test_another_vm_behind_the_destinations_monitor_is_refused_and_left_alone(stage: Stage) -> None:
    source = await stage.start("a")
    other = await stage.start("b", OTHER_VM)
    waiting = await stage.start("b", OTHER_VM, at=OTHER_VM, incoming=True)
    permit = stage.permit()
    news = await stage.move(permit)
    assert (news.state, "hypervisor" in news.message) == ("failed", True)
    await require_counting(source)
    await require_counting(other)
    assert await run_state(waiting) == "inmigrate"
    assert "permit_replayed" in (await stage.move(permit)).message, "it is spent"


async def test_a_guest_that_runs_where_a_waiting_qemu_should_be_is_not_killed(stage: Stage) -> None:
    source, running = await stage.start("a"), await stage.start("b")
    news = await stage.move(stage.permit())
    assert (news.state, "hypervisor" in news.message) == ("failed", True)
    await require_counting(source)
    await require_counting(running)


async def test_a_missing_monitor_is_named(stage: Stage) -> None:
    with pytest.raises(HypervisorUnreachable, match=r"qmp\.sock"):
        await stage.move(stage.permit())
    source = await stage.start("a")
    news = await stage.move(stage.permit())
    assert (news.state, "hypervisor" in news.message) == ("failed", True)
    await require_counting(source)


async def test_a_second_permit_for_a_vm_that_is_under_way_is_busy_and_disturbs_nothing(stage: Stage) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.move, stage.slow_permit())
        await stage.until_under_way()
        with trio.fail_after(20), pytest.raises(TransportError, match="busy"):  # at once: it waits in no queue
            await stage.move(stage.permit())
        stage.cancelled.set()
    await require_kept_by_source(stage, source, destination, "cancelled")


async def test_a_vm_whose_former_session_is_not_settled_is_busy_also_after_a_restart(stage: Stage) -> None:
    """The former destination may run it: moved on to a third host, it would run twice."""
    source, _ = await stage.start("a"), await stage.start("b", incoming=True)
    begun = {
        "state": "begun",
        "session_id": "0" * 32,
        "vm": VM,
        "permit": stage.permit(),
        "address": "127.0.0.1:1",
        "process": process_identity(source.pid),
        "started": "2026-01-01T00:00:00+00:00",
    }
    journal = stage.source.spool.run_dir.parent / "journals" / f"source-{'0' * 32}.jsonl"
    journal.write_text("".join(json.dumps(line) + "\n" for line in (begun, {"state": "handed-over"})))
    async with serving(stage.source):
        with pytest.raises(TransportError, match=r"busy|not over here yet"):
            await stage.move(stage.permit())
    await require_counting(source)


# --- other processes at the session's sockets


async def test_another_vm_that_dials_the_sources_session_socket_is_turned_away(stage: Stage) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    other = await stage.start("a", OTHER_VM, at=OTHER_VM)
    tried: list[str] = []

    async def intrude() -> None:
        await until(lambda: stage.session_socket(stage.source) is not None)
        async with await QmpConnection.connect(other.qmp_socket, deadline_seconds=5) as monitor:
            path = stage.session_socket(stage.source)
            await monitor.execute("migrate", {"uri": f"unix:{path}"}, deadline_seconds=5)
            while not tried or tried[-1] not in ("failed", "completed"):
                tried.append((await monitor.execute("query-migrate", deadline_seconds=5)).get("status", ""))
                await trio.sleep(0.02)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(intrude)
        news = await stage.move(stage.permit(limits=Limits(max_channels=16, bandwidth_bytes_per_second=16 << 20)))
    assert tried[-1] == "failed"
    assert news.state == "completed"
    await require_counting(other)
    assert source.ended
    before = source.printed()
    await wait_passes(destination, count_passes(before) + 3, earlier=before)


async def test_another_process_on_the_destinations_session_path_gets_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    heard: list[bytes] = []
    usurper = trio.socket.socket(socket.AF_UNIX)
    dial = dial_unix

    async def dial_after_it_was_usurped(
        path: Path, seconds: float, is_expected: Callable[[int], bool]
    ) -> socket.socket:
        await usurper.bind(str(path.with_name("usurper")))
        usurper.listen(1)
        path.with_name("usurper").rename(path)
        return await dial(path, seconds, is_expected)

    async def listen_in() -> None:
        accepted, _ = await usurper.accept()
        with accepted:
            heard.append(await accepted.recv(100))

    monkeypatch.setattr(transport.relay.qmp_destination, "dial_unix", dial_after_it_was_usurped)
    with usurper:
        await stage.move(stage.permit())
        with trio.fail_after(10):
            await listen_in()
    assert heard == [b""]
    await require_kept_by_source(stage, source, destination)


# --- deaths and hangs


async def test_destinations_qemu_killed_midway(stage: Stage) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.move, stage.slow_permit())
        await stage.until_under_way()
        destination.process.kill()
    await require_kept_by_source(stage, source, destination)


async def test_sources_qemu_killed_midway(stage: Stage) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.move, stage.slow_permit())
            await stage.until_under_way()
            source.process.kill()
    await until(lambda: destination.ended)
    await require_never_run(destination)
    assert stage.told[-1].state == "failed"
    assert "ended" in stage.told[-1].message


def at_state(monkeypatch: pytest.MonkeyPatch, state: str, act: Callable[[], None]) -> None:
    """Do something right before a relay durably enters `state`."""
    durable = spool._append_line

    def append_line(path: Path, entry: dict[str, Any]) -> None:
        if entry["state"] == state:
            act()
        durable(path, entry)

    monkeypatch.setattr(spool, "_append_line", append_line)


async def test_sources_qemu_killed_when_the_destination_has_everything(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    at_state(monkeypatch, "handed-over", lambda: os.kill(source.pid, signal.SIGKILL))
    with trio.fail_after(30):
        news = await stage.move(stage.permit())
    assert news.state == "completed"
    before = source.printed()
    await wait_passes(destination, count_passes(before) + 3, earlier=before)


async def test_destinations_qemu_killed_once_it_was_chosen_leaves_the_guest_to_an_operator(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have run for a moment. Who is asked again and again does not do ever more of it at once."""
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    at_state(monkeypatch, "running", lambda: os.kill(destination.pid, signal.SIGKILL))
    with capture_logs() as logs:

        def said(words: str) -> int:
            return sum(words in log["event"] for log in logs)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.move, stage.permit())
            await until(lambda: said("cannot ask for the outcome yet") > 20, 60)
            assert await run_state(source) == "postmigrate"
            (shown,) = stage.destination.board.document()["sessions"]
            nursery.cancel_scope.cancel()
    assert said("session cannot be settled yet") < 2 * said("cannot ask for the outcome yet")
    assert "if its hypervisor has ended, docs/failures.md says what to do" in shown["message"]


async def test_destinations_qemu_hangs_at_the_handover_and_is_fenced(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    at_state(monkeypatch, "handed-over", lambda: os.kill(destination.pid, signal.SIGSTOP))
    with trio.fail_after(40):
        await stage.move(stage.permit())
    await require_kept_by_source(stage, source, destination)


async def test_destinations_qemu_hangs_midway(stage: Stage) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.move, stage.slow_permit(), 4)
            await stage.until_under_way()
            destination.process.send_signal(signal.SIGSTOP)
    await require_kept_by_source(stage, source, destination)


async def test_sources_qemu_hangs_midway_and_comes_back(stage: Stage) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    with trio.fail_after(40), capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.move, stage.slow_permit(), 2)
            await stage.until_under_way()
            source.process.send_signal(signal.SIGSTOP)
            await until(lambda: any("cannot note that the session broke" in log["event"] for log in logs), 20)
            source.process.send_signal(signal.SIGCONT)
    await require_kept_by_source(stage, source, destination)


# --- never finished


async def test_a_guest_that_never_converges_meets_the_deadline(stage: Stage) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    with trio.fail_after(30):
        news = await stage.move(stage.slow_permit(), 3)
    assert "did not end within" in news.message
    await require_kept_by_source(stage, source, destination)


async def test_cancelled_midway(stage: Stage) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.move, stage.slow_permit())
        await stage.until_under_way()
        stage.cancelled.set()
    await require_kept_by_source(stage, source, destination, "cancelled")
    assert all(news.is_spent for news in stage.told if news.state == "cancelled"), "the destination takes it no more"


@asynccontextmanager
async def moving_without_network(stage: Stage, *, hears_of_it: bool = False) -> AsyncIterator[None]:
    """A guest is on its way when the network goes; in the end the source has kept it, and the destination let it go:
    before the network is back, or because it `hears_of_it` then."""
    async with network_to(split_address(stage.address, "relay")) as network:
        stage.address = network.address
        source, destination = await stage.start("a"), await stage.start("b", incoming=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.move, stage.slow_permit())
            await stage.until_under_way()
            network.is_down = True
            assert network.cut("lane", "control")
            yield
            await require_counting(source)
            assert not (hears_of_it and destination.ended)
            network.is_down = not hears_of_it
            await until(lambda: destination.ended, 30)
            network.is_down = False
    await require_kept_by_source(stage, source, destination, stage.told[-1].state)


@pytest.mark.parametrize("patience", [4.0, 60.0])
async def test_cancelled_while_there_is_no_network(site: Site, patience: float) -> None:
    """At once at the source; the destination lets go when its patience is over, or sooner when it hears of it."""
    limits = {**LIMITS, "resume_seconds": patience, "silence_seconds": 2.0}
    async with staged(site, limits) as stage, moving_without_network(stage, hears_of_it=patience > 30):
        await until(lambda: any(each.is_reconnecting() for each in stage.source.board.entries), 10)
        stage.cancelled.set()
        await until(lambda: stage.told[-1].state == "cancelled", 10)


async def test_a_network_that_stays_away_leaves_the_guest_at_the_source(site: Site) -> None:
    limits = {**LIMITS, "resume_seconds": 2.0, "silence_seconds": 2.0}
    async with staged(site, limits) as stage, moving_without_network(stage):
        await until(lambda: stage.told[-1].state == "failed", 30)


async def test_cancelled_once_the_destination_has_answered(stage: Stage) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.move, stage.slow_permit())
        await until(lambda: bool(stage.told))
        stage.cancelled.set()
    await require_kept_by_source(stage, source, destination, "cancelled")


async def test_cancelled_during_the_handover_comes_too_late(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    at_state(monkeypatch, "handed-over", lambda: trio.from_thread.run_sync(stage.cancelled.set))
    with trio.fail_after(30):
        news = await stage.move(stage.permit())
    assert stage.cancelled.is_set()
    assert news.state == "completed"
    await until(lambda: source.ended)
    before = source.printed()
    await wait_passes(destination, count_passes(before) + 3, earlier=before)


async def test_cancelled_before_it_began(stage: Stage) -> None:
    source, destination = await stage.start("a"), await stage.start("b", incoming=True)
    stage.cancelled.set()
    news = await stage.move(stage.permit())
    assert news.state == "cancelled"
    assert stage.outcome(stage.source) == "cancelled"
    await require_counting(source)
    assert await run_state(destination) == "inmigrate", "the destination was never asked"
