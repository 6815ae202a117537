"""A guest's disks on their way: exported by NBD at the destination, mirrored into it by the source's QEMU.

The mirror is begun before the memory moves and writes what the guest writes to both places at once (write-blocking), so
it converges whatever the guest does. When the guest is stopped for the switchover the mirrors end, with both images
alike, and only then may the rest of the memory go. QEMU's qapi/block-core.json and block-export.json; NBD carries no
names but those of devices, which the two QEMUs must give alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import trio
from msgspec import Meta

from transport.hypervisors.errors import HypervisorError, HypervisorRefused, MigrationFailed
from transport.hypervisors.qmp import QmpConnection

MAX_DISKS: Final = 64
_PREFIX: Final = "sealane-disk-"
_LOOK_SECONDS: Final = 0.1


class _Image(msgspec.Struct, frozen=True, rename="kebab"):
    virtual_size: Annotated[int, Meta(ge=0)]


class _Node(msgspec.Struct, frozen=True, rename="kebab"):
    node_name: str
    image: _Image


class _Inserted(_Node, frozen=True, rename="kebab"):
    ro: bool


class _Block(msgspec.Struct, frozen=True):
    device: str
    qdev: str = ""
    inserted: _Inserted | None = None


class _Job(msgspec.Struct, frozen=True):
    device: str
    ready: bool = False
    status: str = ""
    error: str | None = None
    len: Annotated[int, Meta(ge=0)] = 0
    offset: Annotated[int, Meta(ge=0)] = 0


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that the guest may write. `name`: the same at both QEMUs; `node`: this QEMU's own."""

    name: str
    node: str
    size_bytes: int


class Disks:
    """The disks of one QEMU, by its monitor. Errors as those of `QemuMachine`."""

    def __init__(self, monitor: QmpConnection, answer_seconds: float) -> None:
        self._qmp = monitor
        self._seconds = answer_seconds

    async def writable(self) -> list[Disk]:
        """Those that move. HypervisorRefused if there are none, more than can be, or two of one name."""
        found = await self._qmp.query("query-block", list[_Block], deadline_seconds=self._seconds)
        disks = [
            Disk(each.device or each.qdev, each.inserted.node_name, each.inserted.image.virtual_size)
            for each in found
            if each.inserted is not None and not each.inserted.ro
        ]
        names = {disk.name for disk in disks}
        if not disks or len(disks) > MAX_DISKS or len(names) != len(disks) or "" in names:
            raise HypervisorRefused(
                "query-block",
                "GenericError",
                f"{len(disks)} writable disks, of which {len(names)} have a name of their own",
            )
        return disks

    async def export(self, path: Path) -> None:
        """Let the source write them by NBD on `path`, which is made with mode 0600."""
        disks = await self.writable()
        address = {"type": "unix", "data": {"path": str(path)}}
        await self._run("nbd-server-start", {"addr": address, "max-connections": len(disks)})
        await trio.to_thread.run_sync(path.chmod, 0o600)
        for number, disk in enumerate(disks):
            export = {"type": "nbd", "id": f"{_PREFIX}{number}", "node-name": disk.node, "name": disk.name}
            await self._run("block-export-add", {**export, "writable": True})

    async def close_exports(self) -> None:
        """Nobody writes here any more but the guest. Does nothing where nothing is exported."""
        with contextlib.suppress(HypervisorRefused):
            await self._run("nbd-server-stop")

    async def mirror(self, path: Path, bandwidth: int) -> None:
        """Begin to copy all of them to the NBD server that is reached by `path`; see `wait_ready`.

        MigrationFailed, before anything is copied, if an image there is too small.
        """
        disks = await self.writable()
        for number, disk in enumerate(disks):
            target = f"{_PREFIX}{number}"
            await self._run(
                "blockdev-add",
                {
                    "driver": "nbd",
                    "node-name": target,
                    "server": {"type": "unix", "path": str(path)},
                    "export": disk.name,
                    "reconnect-delay": 0,
                },
            )
        await self._require_room(disks)
        for number, disk in enumerate(disks):
            target = f"{_PREFIX}{number}"
            job = {"job-id": target, "device": disk.node, "target": target, "sync": "full"}
            await self._run("blockdev-mirror", {**job, "copy-mode": "write-blocking", "speed": bandwidth})

    async def _require_room(self, disks: Sequence[Disk]) -> None:
        found = await self._qmp.query(
            "query-named-block-nodes", list[_Node], {"flat": True}, deadline_seconds=self._seconds
        )
        sizes = {node.node_name: node.image.virtual_size for node in found}
        for number, disk in enumerate(disks):
            there = sizes.get(f"{_PREFIX}{number}", 0)
            if there < disk.size_bytes:
                raise MigrationFailed(
                    f"disk {disk.name} has {disk.size_bytes} bytes, and its image at the destination only {there}: "
                    "enlarge it"
                )

    async def wait_ready(self, deadline_seconds: float, report: Callable[[int, int], Awaitable[None]]) -> None:
        """Until every mirror is alike and kept so; `report` is told of how many bytes how many are copied, again and
        again. MigrationFailed when one fails or the time is over."""
        names = [f"{_PREFIX}{number}" for number in range(len(await self.writable()))]
        with trio.move_on_after(deadline_seconds):
            while True:
                jobs = {job.device: job for job in await self._jobs()}
                # A job that failed dismisses itself: that it is not there is all that is left of it.
                if len(jobs) < len(names):
                    raise MigrationFailed("the copy of a disk failed: see QEMU's log; are both images of one size?")
                await report(sum(job.len for job in jobs.values()), sum(job.offset for job in jobs.values()))
                if all(job.ready for job in jobs.values()):
                    return
                await trio.sleep(_LOOK_SECONDS)
        raise MigrationFailed(f"the disks were not copied within {deadline_seconds:.0f} s")

    async def finish(self, deadline_seconds: float) -> None:
        """End the mirrors of a stopped guest: both images are alike then. MigrationFailed otherwise."""
        jobs = await self._jobs()
        if not jobs or not all(job.ready for job in jobs):
            raise MigrationFailed("the copy of a disk broke before the switchover")
        for job in jobs:
            await self._run("block-job-cancel", {"device": job.device})
        if not await self._wait_no_jobs(deadline_seconds):
            raise MigrationFailed("the copy of a disk does not end")
        await self._forget_targets()

    async def abandon(self, deadline_seconds: float) -> None:
        """End mirrors and targets of ours, however far they are; the guest's own disks stay as they are."""
        for job in await self._jobs():
            with contextlib.suppress(HypervisorRefused):
                await self._run("block-job-cancel", {"device": job.device, "force": True})
        if not await self._wait_no_jobs(deadline_seconds):
            raise HypervisorRefused("block-job-cancel", "GenericError", "the copy of a disk does not end")
        await self._forget_targets()

    async def _jobs(self) -> Sequence[_Job]:
        found = await self._qmp.query("query-block-jobs", list[_Job], deadline_seconds=self._seconds)
        return [job for job in found if job.device.startswith(_PREFIX)]

    async def _wait_no_jobs(self, deadline_seconds: float) -> bool:
        with trio.move_on_after(deadline_seconds):
            while await self._jobs():
                await trio.sleep(_LOOK_SECONDS / 5)
            return True
        return False

    async def _forget_targets(self) -> None:
        for number in range(MAX_DISKS):
            try:
                await self._run("blockdev-del", {"node-name": f"{_PREFIX}{number}"})
            except HypervisorError:
                return

    async def _run(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        await self._qmp.execute(command, arguments, deadline_seconds=self._seconds)
