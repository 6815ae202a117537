"""One real move of a guest with its disks, to one of which it writes all the while, and what became of both images."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from gateway.demo.guest import FLOPPY_BYTES
from gateway.demo.machines import QEMU, Qemu, start_qemu, stop_qemu
from tests.transport.kinds import DEADLINE_SECONDS, MIB, VM, WrongGuest
from tests.transport.relay.conftest import until
from tests.transport.stages import Stage, stage
from transport.hypervisors.moving import How
from transport.hypervisors.qmp import QmpConnection
from transport.relay.source import MigrationOrder, carry_as_source

SECTOR, WRITTEN = 512, 2048
FIRST_BYTES, SECOND_BYTES = 24 * MIB, 3 * MIB
PORTS = ("disks", "memory")


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


def make_images(folder: Path, second_there: int = SECOND_BYTES) -> None:
    """Two disks, full of chance at host a, and their empty places at host b."""
    for name, size_here, size_there in (("first", FIRST_BYTES, FIRST_BYTES), ("second", SECOND_BYTES, second_there)):
        (folder / f"{name}-a.img").write_bytes(os.urandom(size_here))
        (folder / f"{name}-b.img").write_bytes(bytes(size_there))


def has_written_all(source: Qemu) -> bool:
    """Each sector that it writes to, once at least."""
    return len(source.printed()) > WRITTEN // 64 + 1


async def stop_guest(machine: Qemu) -> None:
    async with await QmpConnection.connect(machine.observer_socket, deadline_seconds=10) as monitor:
        await monitor.execute("stop", deadline_seconds=10)


def writes(image: bytes) -> list[int]:
    """Of each sector that the guest writes, which write it holds. Each must be of one write, whole."""
    numbers = []
    for at in range(0, WRITTEN * SECTOR, SECTOR):
        sector = image[at : at + SECTOR]
        if sector != sector[:4] * (SECTOR // 4):
            raise WrongGuest(f"half a write at {at:#x}")
        numbers.append(int.from_bytes(sector[:4], "little"))
    return numbers


def require_no_write_missing(numbers: list[int]) -> int:
    """The last write; all before it must be where they belong, and none after it."""
    last = max(numbers)
    expected = [last - (last - number) % WRITTEN for number in range(WRITTEN)]
    if numbers != expected:
        raise WrongGuest("a write is missing, or out of order")
    return last


def compare(folder: Path) -> str:
    """Both images of both hosts, byte by byte; the guest may have written on at host b. `WrongGuest`."""
    images = {host: [(folder / f"{disk}-{host}.img").read_bytes() for disk in ("first", "second")] for host in "ab"}
    before, after = images["a"][1], images["b"][1]
    # The BIOS calls the disk of the later device the first one.
    if images["a"][0] != images["b"][0] or before[WRITTEN * SECTOR :] != after[WRITTEN * SECTOR :]:
        raise WrongGuest("what the guest did not write differs")
    gone, last = require_no_write_missing(writes(before)), require_no_write_missing(writes(after))
    if gone >= last:
        raise WrongGuest("the guest did not write on at the destination")
    if any(old != new and new <= gone for old, new in zip(writes(before), writes(after), strict=True)):
        raise WrongGuest("a sector was written at the source and is another at the destination")
    return f"{(FIRST_BYTES + SECOND_BYTES) // MIB} MiB alike, after {gone} writes and {last - gone} more"


async def moved_with_disks(
    how: How,
    folder: Path,
    program: str = QEMU,
    within: Callable[[Path], AbstractAsyncContextManager[Stage]] = stage,
) -> str:
    """One move; words of evidence. `within` is where. Raises WrongGuest, and more."""
    make_images(folder)
    image = boot_image(folder)
    async with within(folder) as here:
        source = await start_qemu(
            folder / "qa" / VM, VM, memory_mib=32, image=image, more=with_disks(folder, "a"), program=program
        )
        try:
            more = with_disks(folder, "b")
            destination = await start_qemu(
                folder / "qb" / VM, VM, memory_mib=32, image=image, incoming=True, more=more, program=program
            )
            try:
                await until(lambda: has_written_all(source), 150)
                with trio.fail_after(DEADLINE_SECONDS):
                    order = MigrationOrder(here.site.permit(vm=VM, ports=PORTS), here.address, how=how)
                    last = await carry_as_source(here.source, order, here.tell, trio.Event())
                    if last.state != "completed":
                        raise WrongGuest(f"{last.state}: {last.message}")
                    told = [news.progress for news in here.news if news.progress and news.progress.status == "disks"]
                    if not told or not told[-1].total_bytes >= told[-1].transferred_bytes > 0:
                        raise WrongGuest("nobody was told how far the disks are")
                    await until(lambda: source.ended, 20)
                    await until(lambda: len(destination.printed()) > 20, 60)
                    await stop_guest(destination)
            finally:
                await stop_qemu(destination)
        finally:
            await stop_qemu(source)
    if b"E" in source.printed() + destination.printed():
        raise WrongGuest("a disk failed its guest")
    words = f", {last.downtime_ms} ms of downtime" if last.downtime_ms is not None else ""
    return compare(folder) + words
