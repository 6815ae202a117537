"""The source's end of a session whose QEMU the relay drives by QMP: it sends, and hands the guest over."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

import structlog
import trio

from transport.errors import LocalBroken
from transport.hypervisors.errors import (
    HypervisorError,
    HypervisorGone,
    HypervisorTimeout,
    HypervisorUnreachable,
    MigrationFailed,
)
from transport.hypervisors.migration_progress import MigrationProgress
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.moving import How, Step, next_step
from transport.hypervisors.qemu import QemuMachine
from transport.relay.ends import Milestones, Report
from transport.relay.inlets import Inlet, SourceLanes, listen_unix, peer_process
from transport.relay.qmp_end import QmpEnd

log = structlog.get_logger("sealane.relay")
_STEER_SECONDS = 0.1
_NUMBERS_SECONDS = 2.0
_SETTLED = frozenset({"none", "completed", "failed", "cancelled"})


class QmpSource(QmpEnd):
    """A QEMU that sends."""

    recovers = "the relays are recovering it"

    def __init__(self, qmp_socket: Path, vm: str, process: str, settings: MigrationSettings, seconds: float) -> None:
        super().__init__(qmp_socket, vm, process, settings, seconds)
        self._deadline_seconds = 0.0
        self._how = How()
        self._socket_path = Path()
        self._paused_late = False
        self._asked_for_post_copy = False
        self._has_switched = False
        self._has_disks = False
        self._disks_done = False

    def within(self, deadline_seconds: float, how: How) -> Self:
        self._deadline_seconds = deadline_seconds
        self._how = how
        return self

    def with_disks(self) -> Self:
        """Its disks move, too."""
        self._has_disks = True
        return self

    async def is_in_post_copy(self) -> bool:
        """Raises HypervisorTimeout while QEMU (10.2 and later) does not know yet whether the destination has the
        devices' state, or the guest can go on here: its channels being closed, it soon does."""
        if await self.is_gone():
            return False
        status = (await (await self.machine()).progress()).status
        if status == "postcopy-device":
            raise HypervisorTimeout("QEMU has not said yet whether the destination has the devices' state")
        return status.startswith("postcopy")

    async def prepare(self) -> str:
        """Check that a guest of this UUID runs here and set QEMU up; returns the process's identity."""
        machine = await self.machine()
        if (found := await machine.status()) != "running":
            # The handover ends with the guest running at one of two places: one that was paused would be woken up.
            raise LocalBroken(f"the VM is {found}; only a running guest can be moved: continue it first")
        await machine.prepare_source(self._settings)
        return self.process

    def inlets(self, socket_path: Path) -> list[Inlet]:
        self._socket_path = socket_path
        inlets = [Inlet("memory", listen_unix(socket_path), self._allows)]
        if self._has_disks:
            inlets.append(Inlet("disks", listen_unix(self._disks_path), self._allows))
        return inlets

    @property
    def _disks_path(self) -> Path:
        return self._socket_path.with_name("disks.sock")

    async def _allows(self, local: socket.socket) -> bool:
        """Only the very QEMU whose monitor we hold: another VM of the same user must not send in its name."""
        return self._machine is not None and peer_process(local)[1] == self._machine.peer.pid

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:  # noqa: ARG002
        """Let QEMU send all of the guest to the inlet; returns when it has, with the guest stopped."""
        machine = await self.machine()
        began = trio.current_time()

        async def steer(seen: MigrationProgress) -> None:
            await report(seen)
            await self._steer(machine, seen, trio.current_time() - began, milestones)

        if self._has_disks:
            # All of them first: memory grows old while they are copied, and alike they stay by themselves.
            await machine.disks.mirror(self._disks_path, self._settings.bandwidth_bytes_per_second)
            await machine.disks.wait_ready(self._deadline_seconds, partial(_tell_of_disks, report))
        await machine.start_migration(self._socket_path)
        left = max(1.0, self._deadline_seconds - (trio.current_time() - began))
        await machine.wait_migration(deadline_seconds=left, on_progress=steer, interval_seconds=_STEER_SECONDS)

    async def last_numbers(self) -> MigrationProgress | None:
        """What QEMU counted; None where it does not say any more."""
        try:
            with trio.move_on_after(_NUMBERS_SECONDS):
                return await (await self.machine()).progress()
        except HypervisorError as error:
            log.info("no numbers of a migration that has ended", vm=self._vm, cause=str(error))
        return None

    async def _steer(
        self, machine: QemuMachine, seen: MigrationProgress, seconds: float, milestones: Milestones
    ) -> None:
        """Do what is due; see `moving.next_step`. `MigrationFailed` where it is to be given up."""
        if seen.status == "pre-switchover" and not self._disks_done:
            self._disks_done = True
            await machine.disks.finish(self._seconds)
            await machine.continue_migration()
            return
        if seen.status == "postcopy-active" and not self._has_switched:
            if await machine.status() in {"running", "paused"}:
                return  # QEMU says so a moment before it has stopped the guest
            self._has_switched = True
            await milestones.switched()
            return
        match next_step(self._how, seen, seconds):
            case Step.POST_COPY if not self._asked_for_post_copy:
                self._asked_for_post_copy = True
                log.info("switching to post-copy", vm=self._vm, passes=seen.passes, seconds=round(seconds, 1))
                await machine.post_copy.start()
            case Step.PAUSE if not self._paused_late:
                self._paused_late = True
                log.warning("guest paused: it did not converge in time", vm=self._vm, seconds=round(seconds, 1))
                await machine.stop_guest()
            case Step.CANCEL:
                allowed = self._how.converge_within_seconds
                raise MigrationFailed(f"it did not converge within {allowed:g} s, and was given up as was asked for")
            case _:
                pass

    @asynccontextmanager
    async def recovery(self, pause_seconds: float) -> AsyncIterator[bool]:
        """The relay tries by itself."""
        await trio.sleep(pause_seconds)
        yield True

    async def go_on_with_post_copy(self, lanes: SourceLanes, report: Report) -> None:  # noqa: ARG002
        """Let QEMU send what is left, to the inlets that were made last; returns when all of it was sent."""
        machine = await self.machine()
        if await machine.post_copy.pause(deadline_seconds=self._seconds) == "completed":
            return
        await machine.post_copy.resume(self._socket_path)
        await machine.wait_migration(deadline_seconds=self._deadline_seconds, on_progress=report)

    async def resume_guest(self) -> None:
        """End a migration that is under way, and see the guest running here. The session must not be handed over."""
        machine = await self.machine()
        with trio.fail_after(self._seconds):
            while (status := (await machine.progress()).status) not in _SETTLED:
                await machine.cancel()
                if status.startswith("postcopy"):
                    break  # which nothing ends, but all of the guest is here as long as it has run nowhere else
                await trio.sleep(0.02)
            if self._has_disks:
                await machine.disks.abandon(self._seconds)
        if await machine.status() != "running":
            # In post-copy it may never be put away, and its refusal is what there is to be told.
            await (machine.resume() if status.startswith("postcopy") else machine.take_back())

    async def release(self) -> None:
        """End the QEMU that has handed its guest over."""
        if await self.is_gone():
            return
        try:
            machine = await self.machine()
            if (status := (await machine.progress()).status).startswith("postcopy"):
                # The guest runs at the destination, and the rest of its memory is here and nowhere else.
                raise LocalBroken(f"post-copy is not over ({status}): this QEMU still holds memory of the guest")
            await machine.quit(deadline_seconds=self._seconds)
        except (HypervisorGone, HypervisorUnreachable):
            if not await self.is_gone():
                raise


async def _tell_of_disks(report: Report, total: int, copied: int) -> None:
    """In the words of a migration, whose memory follows when they are alike."""
    await report(MigrationProgress("disks", copied, max(0, total - copied), total))
