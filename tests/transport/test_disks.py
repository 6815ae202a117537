"""Disks that move with their guest, which writes to one all the while: real QEMUs, NBD in the lanes. By pre-copy, as a
person asks for it: tests/gateway/test_disks_real.py."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from gateway.demo.machines import Qemu, run_state, start_qemu, stop_qemu
from gateway.preflight_findings import destination_findings
from tests.transport.cuts import KINDS, LIMITS
from tests.transport.disks_moved import PORTS, SECOND_BYTES, boot_image, make_images, moved_with_disks, with_disks
from tests.transport.kinds import DEADLINE_SECONDS, VM
from tests.transport.relay.conftest import short_path as short_path  # noqa: PLC0414 - a fixture
from tests.transport.relay.conftest import until
from tests.transport.relay.cutter import Network
from tests.transport.stages import Stage, stage, stage_over_network
from transport.hypervisors.moving import How
from transport.hypervisors.preflight_facts import Inspection
from transport.hypervisors.qmp import QmpConnection
from transport.hypervisors.qmp_preflight import machine_of
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source

pytestmark = pytest.mark.real


@dataclass
class Scene:
    here: Stage
    source: Qemu
    destination: Qemu
    folder: Path

    def image(self, host: str, name: str) -> bytes:
        return (self.folder / f"{name}-{host}.img").read_bytes()

    async def carry(self, cancelled: trio.Event | None = None) -> News:
        order = MigrationOrder(self.here.site.permit(vm=VM, ports=PORTS), self.here.address)
        asked_to_end = trio.Event() if cancelled is None else cancelled
        with trio.fail_after(180):
            return await carry_as_source(self.here.source, order, self.here.tell, asked_to_end)


@pytest.fixture
async def scene(short_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    folder = short_path
    second_there = getattr(request, "param", SECOND_BYTES)
    make_images(folder, second_there)
    image = boot_image(folder)
    async with stage(folder) as here:
        source = await start_qemu(folder / "qa" / VM, VM, memory_mib=32, image=image, more=with_disks(folder, "a"))
        try:
            destination = await start_qemu(
                folder / "qb" / VM, VM, memory_mib=32, image=image, incoming=True, more=with_disks(folder, "b")
            )
            try:
                await until(lambda: len(source.printed()) > 2, 30)
                yield Scene(here, source, destination, folder)
            finally:
                await stop_qemu(destination)
        finally:
            await stop_qemu(source)


async def test_a_cancelled_copy_leaves_the_guest_and_its_disks_as_they_were(scene: Scene) -> None:
    cancelled = trio.Event()
    async with trio.open_nursery() as nursery:

        async def cancel() -> None:
            await until(lambda: any(entry.channels for entry in scene.here.source.board.entries), 20)
            cancelled.set()

        nursery.start_soon(cancel)
        last = await scene.carry(cancelled)
    assert last.state == "cancelled"
    assert await run_state(scene.source) == "running"
    before = len(scene.source.printed())
    await until(lambda: len(scene.source.printed()) > before + 5, 30)
    async with await QmpConnection.connect(scene.source.observer_socket, deadline_seconds=10) as monitor:
        assert await monitor.execute("query-block-jobs", deadline_seconds=10) == []
        nodes = await monitor.execute("query-named-block-nodes", {"flat": True}, deadline_seconds=10)
    assert not any("sealane" in node["node-name"] for node in nodes)
    await until(lambda: scene.destination.ended, 10)


@pytest.mark.parametrize("scene", [SECOND_BYTES // 3], indirect=True)
async def test_an_image_that_is_too_small_at_the_destination_ends_the_move_and_not_the_guest(scene: Scene) -> None:
    here, there = [await machine_of(VM, each.observer_socket) for each in (scene.source, scene.destination)]
    found = destination_findings(here, Inspection(machine=there), "b", copies_disks=True)
    assert [(each.code, each.severity) for each in found] == [("disk_size", "cannot")]
    last = await scene.carry()
    assert last.state == "failed"
    assert f"has {SECOND_BYTES} bytes, and its image at the destination only {SECOND_BYTES // 3}" in last.message
    assert not any(scene.image("b", "first")), "another disk was begun"
    assert await run_state(scene.source) == "running"
    assert b"E" not in scene.source.printed()


async def test_disks_move_by_post_copy_too_and_over_a_network_that_is_cut(short_path: Path) -> None:
    chance, cuts = random.Random(3), 0

    async def cut(between: Network) -> None:
        nonlocal cuts
        while True:
            enough = between.forwarded + chance.randrange(200_000, 3 << 20)
            await until(lambda enough=enough: between.forwarded >= enough, DEADLINE_SECONDS)  # type: ignore[misc]
            cuts += bool(chance.choice([between.cut, between.cut_near])(*chance.choice(KINDS)))

    @asynccontextmanager
    async def often_cut(folder: Path) -> AsyncIterator[Stage]:
        network: list[Network] = []
        async with stage_over_network(network, LIMITS, folder) as here, trio.open_nursery() as nursery:
            nursery.start_soon(cut, network[0])
            yield here
            nursery.cancel_scope.cancel()

    assert await moved_with_disks(How(post_copy_after_seconds=0), short_path, within=often_cut)
    assert cuts >= 5
