"""Disks that move with their guest, which writes to one all the while: real QEMUs, NBD in the lanes. By pre-copy, as a
person asks for it: tests/gateway/test_disks_real.py."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from gateway.demo.guest import FLOPPY_BYTES
from gateway.demo.machines import Qemu, run_state, start_qemu, stop_qemu
from gateway.preflight_findings import destination_findings
from tests.transport.kinds import VM, Stage, stage
from tests.transport.relay.conftest import short_path as short_path  # noqa: PLC0414 - a fixture
from tests.transport.relay.conftest import until
from transport.hypervisors.moving import How
from transport.hypervisors.preflight_facts import Inspection
from transport.hypervisors.qmp import QmpConnection
from transport.hypervisors.qmp_preflight import machine_of
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source

pytestmark = pytest.mark.real
MIB = 1 << 20
SECTOR, WRITTEN = 512, 2048
FIRST_BYTES, SECOND_BYTES = 24 * MIB, 3 * MIB
PORTS = ("disks", "memory")


@dataclass
class Scene:
    here: Stage
    source: Qemu
    destination: Qemu
    folder: Path

    def image(self, host: str, name: str) -> bytes:
        return (self.folder / f"{name}-{host}.img").read_bytes()

    async def carry(self, cancelled: trio.Event | None = None, how: How | None = None) -> News:
        order = MigrationOrder(self.here.site.permit(vm=VM, ports=PORTS), self.here.address, how=how or How())
        asked_to_end = trio.Event() if cancelled is None else cancelled
        with trio.fail_after(180):
            return await carry_as_source(self.here.source, order, self.here.tell, asked_to_end)


def boot_image(folder: Path) -> Path:
    source = Path(__file__).with_name("disk_guest.S")
    subprocess.run(["as", "--32", str(source), "-o", str(folder / "disk.o")], check=True, timeout=30)
    linking = ["-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", str(folder / "disk.bin")]
    subprocess.run(["ld", *linking, str(folder / "disk.o")], check=True, timeout=30)
    image = folder / "disk-guest.img"
    image.write_bytes((folder / "disk.bin").read_bytes().ljust(FLOPPY_BYTES, b"\0"))
    return image


def with_disks(folder: Path, host: str) -> list[str]:
    first = ["-drive", f"if=virtio,id=first,format=raw,file={folder}/first-{host}.img"]
    # One that is named by its device, as libvirt and those who like -blockdev do it.
    node = f"driver=raw,node-name=some-{host},file.driver=file,file.filename={folder}/second-{host}.img"
    return [*first, "-blockdev", node, "-device", f"virtio-blk-pci,drive=some-{host},id=second", "-boot", "a"]


@pytest.fixture
async def scene(short_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    folder = short_path
    second_there = getattr(request, "param", SECOND_BYTES)
    for name, size_here, size_there in (("first", FIRST_BYTES, FIRST_BYTES), ("second", SECOND_BYTES, second_there)):
        (folder / f"{name}-a.img").write_bytes(os.urandom(size_here))
        (folder / f"{name}-b.img").write_bytes(bytes(size_there))
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


async def stop_guest(machine: Qemu) -> None:
    async with await QmpConnection.connect(machine.observer_socket, deadline_seconds=10) as monitor:
        await monitor.execute("stop", deadline_seconds=10)


def writes(image: bytes) -> list[int]:
    """Of each sector that the guest writes, which write it holds. Each must be of one write, whole."""
    numbers = []
    for at in range(0, WRITTEN * SECTOR, SECTOR):
        sector = image[at : at + SECTOR]
        assert sector == sector[:4] * (SECTOR // 4), f"half a write at {at:#x}"
        numbers.append(int.from_bytes(sector[:4], "little"))
    return numbers


def require_no_write_missing(numbers: list[int]) -> int:
    """The last write; all before it must be where they belong, and none after it."""
    last = max(numbers)
    expected = [last - (last - number) % WRITTEN for number in range(WRITTEN)]
    assert numbers == expected
    return last


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


async def test_disks_move_by_post_copy_too(scene: Scene) -> None:
    await until(lambda: len(scene.source.printed()) > WRITTEN // 64 + 1, 150)
    last = await scene.carry(how=How(post_copy_after_seconds=0))
    assert last.state == "completed", last.message
    told = [news.progress for news in scene.here.news if news.progress is not None and news.progress.status == "disks"]
    assert told, "nobody was told how far the disks are"
    assert told[-1].total_bytes >= told[-1].transferred_bytes > 0
    await until(lambda: len(scene.destination.printed()) > 20, 30)
    await stop_guest(scene.destination)
    assert b"E" not in scene.destination.printed()
    assert scene.image("b", "first") == scene.image("a", "first")
    assert scene.image("b", "second")[WRITTEN * SECTOR :] == scene.image("a", "second")[WRITTEN * SECTOR :]
    require_no_write_missing(writes(scene.image("b", "second")))
