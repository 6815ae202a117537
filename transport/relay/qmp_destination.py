"""The destination's end of a session whose QEMU the relay drives by QMP: it loads, and starts no guest by itself."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import structlog
import trio

from transport.errors import NotRecoverable
from transport.hypervisors.errors import HypervisorError, HypervisorGone, HypervisorTimeout, HypervisorUnreachable
from transport.hypervisors.qemu import QemuMachine
from transport.relay.ends import RECOVERY_SOCKET, Arrival
from transport.relay.inlets import Port
from transport.relay.local_dial import dial_unix
from transport.relay.qmp_end import QmpEnd

log = structlog.get_logger("sealane.relay")
_RETRY_SECONDS = 1.0
_AHEAD_SECONDS = 1.0


class QmpDestination(QmpEnd):
    """A QEMU that loads, and never starts its guest by itself."""

    _has_disks = False
    _has_loaded = False
    _may_post_copy = False
    _memory_socket = "memory.sock"

    def with_disks(self) -> Self:
        """Its disks are filled by the source, too."""
        self._has_disks = True
        return self

    def remembering(self, facts: Mapping[str, Any]) -> Self:
        """`facts`: of the session's journal, if a former process of the relay began it."""
        self._may_post_copy = facts.get("may_post_copy") is True
        self.facts = {"may_post_copy": True} if self.begin_post_copy() else {}
        return self

    async def prepare(self, folder: Path) -> str:
        """Hold the guest, let QEMU listen in `folder`; returns the process's identity."""
        machine = await self.machine()
        await machine.hold_incoming()
        await machine.prepare_destination(self._settings)
        if self._has_disks:
            await machine.disks.export(folder / "disks.sock")
        await machine.listen_incoming(folder / "memory.sock")
        return self.process

    async def dial(self, port: Port, arrival: Arrival) -> socket.socket:
        expected = int(self.process.split(":")[1])
        name = self._memory_socket if port == "memory" else f"{port}.sock"
        return await dial_unix(arrival.folder / name, arrival.dial_seconds, lambda pid: pid == expected)

    async def look_ahead(self) -> None:
        with suppress(HypervisorError), trio.move_on_after(_AHEAD_SECONDS):
            await self.wait_loaded(_AHEAD_SECONDS)

    async def wait_loaded(self, seconds: float) -> bool:
        """Wait until QEMU has everything (True) or never will (False). It must answer each time: what cannot be started
        is better discarded, so that the source takes its guest back."""
        if await self.is_gone():
            return False
        try:
            machine = await self.machine()
            if self._has_loaded:
                return await machine.status() != "inmigrate"
            await machine.wait_incoming(deadline_seconds=seconds)
        except HypervisorError:
            return False
        self._has_loaded = True
        return True

    def begin_post_copy(self) -> bool:
        """Whether this session's QEMU was told that post-copy may come."""
        return self._settings.movement.post_copy or self._may_post_copy

    async def listen_again(self, folder: Path) -> None:
        """Let QEMU, whose post-copy was interrupted, listen for the rest. `LocalBroken` or HypervisorError."""
        if await self.is_gone():
            raise NotRecoverable("the QEMU of this guest has ended")
        machine = await self.machine()
        await machine.post_copy.listen_recovery(folder / RECOVERY_SOCKET, deadline_seconds=self._seconds)
        self._memory_socket = RECOVERY_SOCKET

    async def hold_until_whole(self) -> None:
        """Keep the monitor while memory of the guest is missing here; then leave it to others.

        A monitor that is opened only when post-copy was interrupted may never answer: the guest's pages are missing
        to QEMU itself, and it takes commands out of band from whom it has greeted before.
        """
        while True:
            try:
                if not await self.is_gone():
                    await (await self.machine()).post_copy.wait_whole()
                break
            except HypervisorError as error:  # also where nobody can say whether it is gone
                log.info("the monitor of a guest in post-copy does not answer", vm=self._vm, cause=str(error))
                await trio.sleep(_RETRY_SECONDS)
        await self._let_go()

    async def start_guest(self) -> None:
        machine = await self.machine()
        if self._has_disks:
            await machine.disks.close_exports()  # from now on the guest alone writes them
        if self.begin_post_copy() and not await self._is_whole(machine):
            await machine.post_copy.start_guest()
            return
        await machine.resume()

    async def _is_whole(self, machine: QemuMachine) -> bool:
        try:
            return (await machine.progress(deadline_seconds=_RETRY_SECONDS)).status == "completed"
        except HypervisorTimeout:
            return False

    async def discard(self) -> None:
        """End QEMU; returns when its process is gone, by SIGKILL if it must be. Raises `HypervisorError` otherwise."""
        self._has_loaded = False
        if await self.is_gone():
            return
        try:
            machine = await self.machine()
        except (HypervisorGone, HypervisorUnreachable):
            if await self.is_gone():
                return
            raise
        try:
            await machine.quit(deadline_seconds=self._seconds)
        except HypervisorTimeout:
            await machine.kill()
