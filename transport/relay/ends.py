"""The hypervisor's end of a session, at the source and at the destination.

With QMP the relay knows the VM's UUID and drives the migration and its handover. With bare sockets it carries what
comes, promises nothing beyond its channels, and its receipts say `vm_binding: none`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import trio

from transport.errors import LocalBroken, SpoolFailed
from transport.hypervisors.errors import (
    HypervisorError,
    HypervisorGone,
    HypervisorTimeout,
    HypervisorUnreachable,
)
from transport.hypervisors.migration_progress import MigrationProgress
from transport.hypervisors.process import is_gone, process_identity
from transport.hypervisors.qemu import MigrationSettings, QemuMachine

Report = Callable[[MigrationProgress], Awaitable[None]]
_SETTLED = frozenset({"none", "completed", "failed", "cancelled"})


class SourceEnd(Protocol):
    """What the source session asks of its hypervisor."""

    vm_binding: Literal["uuid", "none"]
    hands_over: bool

    async def prepare(self) -> str: ...
    def allows(self, uid: int, pid: int) -> bool: ...
    async def migrate(self, socket_path: Path, report: Report) -> MigrationProgress | None: ...
    async def resume_guest(self) -> None: ...
    async def release(self) -> None: ...
    async def is_gone(self) -> bool: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _QmpEnd:
    """One VM's monitor, opened when it is first needed."""

    vm_binding: Literal["uuid", "none"] = "uuid"
    hands_over = True

    def __init__(self, qmp_socket: Path, vm: str, process: str, settings: MigrationSettings, seconds: float) -> None:
        self._qmp_socket = qmp_socket
        self._vm = vm
        self._settings = settings
        self._seconds = seconds
        self._machine: QemuMachine | None = None
        self.process = process

    async def machine(self) -> QemuMachine:
        """The VM, checked to be the permit's and, once it is known, to be still the same process."""
        if self._machine is not None and not self._machine.is_usable:
            # Kept, it would raise for ever: a guest that is to be started or resumed would stay paused.
            spoilt, self._machine = self._machine, None
            await spoilt.aclose()
        if self._machine is None:
            machine = await QemuMachine.connect(self._qmp_socket, answer_seconds=self._seconds)
            try:
                await machine.require_uuid(self._vm)
                found = process_identity(machine.peer.pid)
                if not found:
                    raise HypervisorGone(f"the process behind {self._qmp_socket} has ended")
                if self.process and found != self.process:
                    raise HypervisorGone("another process of this VM than the session's listens on its monitor")
            except BaseException:
                await machine.aclose()
                raise
            self.process = found
            self._machine = machine
        return self._machine

    async def is_gone(self) -> bool:
        """Whether the process that the session began with has ended: the kernel's word, not a socket's."""
        return bool(self.process) and is_gone(self.process)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._machine is not None:
            machine, self._machine = self._machine, None
            await machine.aclose()


class QmpSource(_QmpEnd):
    """A QEMU that sends."""

    def __init__(self, qmp_socket: Path, vm: str, process: str, settings: MigrationSettings, seconds: float) -> None:
        super().__init__(qmp_socket, vm, process, settings, seconds)
        self._deadline_seconds = 0.0

    def within(self, deadline_seconds: float) -> Self:
        self._deadline_seconds = deadline_seconds
        return self

    async def prepare(self) -> str:
        """Check that a guest of this UUID runs here and set QEMU up; returns the process's identity."""
        machine = await self.machine()
        if (found := await machine.status()) != "running":
            # The handover ends with the guest running at one of two places: one that was paused would be woken up.
            raise LocalBroken(f"the VM is {found}; only a running guest can be moved: continue it first")
        await machine.prepare_source(self._settings)
        return self.process

    def allows(self, uid: int, pid: int) -> bool:  # noqa: ARG002 - who it is matters more than as whom it runs
        """Only the very QEMU whose monitor we hold: another VM of the same user must not send in its name."""
        return self._machine is not None and pid == self._machine.peer.pid

    async def migrate(self, socket_path: Path, report: Report) -> MigrationProgress | None:
        """Let QEMU send all of the guest to `socket_path`; returns when it has, with the guest stopped."""
        machine = await self.machine()
        await machine.start_migration(socket_path)
        return await machine.wait_migration(deadline_seconds=self._deadline_seconds, on_progress=report)

    async def resume_guest(self) -> None:
        """End a migration that is under way, and see the guest running here. The session must not be handed over."""
        machine = await self.machine()
        with trio.fail_after(self._seconds):
            while (await machine.progress()).status not in _SETTLED:
                await machine.cancel()
                await trio.sleep(0.02)
        if await machine.status() != "running":
            await machine.resume()

    async def release(self) -> None:
        """End the QEMU that has handed its guest over."""
        if await self.is_gone():
            return
        try:
            machine = await self.machine()
            await machine.quit(deadline_seconds=self._seconds)
        except (HypervisorGone, HypervisorUnreachable):
            if not await self.is_gone():
                raise


class QmpDestination(_QmpEnd):
    """A QEMU that loads, and never starts its guest by itself."""

    async def prepare(self, folder: Path) -> str:
        """Hold the guest, let QEMU listen in `folder`; returns the process's identity."""
        machine = await self.machine()
        await machine.hold_incoming()
        await machine.prepare_destination(self._settings)
        await machine.listen_incoming(folder / "memory.sock")
        return self.process

    def dial_path(self, folder: Path) -> Path:
        return folder / "memory.sock"

    async def wait_loaded(self, seconds: float) -> bool:
        """Wait until QEMU has everything (True) or never will (False)."""
        if await self.is_gone():
            return False
        try:
            await (await self.machine()).wait_incoming(deadline_seconds=seconds)
        except HypervisorError:
            return False
        return True

    async def start_guest(self) -> None:
        machine = await self.machine()
        if await machine.status() != "running":
            await machine.resume()

    async def discard(self) -> None:
        """End QEMU; returns when its process is gone, by SIGKILL if it must be. Raises `HypervisorError` otherwise."""
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


class SocketSource:
    """Whoever connects to the session's socket, as one of the configured users."""

    vm_binding: Literal["uuid", "none"] = "none"
    hands_over = False

    def __init__(self, peer_uids: frozenset[int]) -> None:
        self._peer_uids = peer_uids

    async def prepare(self) -> str:
        return ""

    def allows(self, uid: int, pid: int) -> bool:  # noqa: ARG002 - nothing is known of the process
        return uid in self._peer_uids

    async def migrate(self, socket_path: Path, report: Report) -> MigrationProgress | None:  # noqa: ARG002
        """The caller's channels are all there is."""
        return None

    async def resume_guest(self) -> None:
        pass

    async def release(self) -> None:
        pass

    async def is_gone(self) -> bool:
        return False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class SocketDestination:
    """A socket that the configuration names; whoever listens there gets the stream."""

    vm_binding: Literal["uuid", "none"] = "none"
    hands_over = False
    process = ""

    def __init__(self, memory_socket: Path) -> None:
        self._memory_socket = memory_socket

    async def prepare(self, folder: Path) -> str:  # noqa: ARG002
        if not self._memory_socket.is_socket():
            raise LocalBroken(f"nothing listens on {self._memory_socket}")
        return ""

    def dial_path(self, folder: Path) -> Path:  # noqa: ARG002
        return self._memory_socket

    async def wait_loaded(self, seconds: float) -> bool:  # noqa: ARG002
        return False

    async def start_guest(self) -> None:
        pass

    async def discard(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


DestinationEnd = QmpDestination | SocketDestination


def make_session_folder(run_dir: Path, session_id: str) -> Path:
    """An own folder for each session, 0700: a second QEMU on the same path would take the other's stream."""
    folder = session_folder(run_dir, session_id)
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise SpoolFailed(f"{folder}: {error.strerror}") from None
    return folder


def session_folder(run_dir: Path, session_id: str) -> Path:
    return run_dir / session_id[:16]


def remove_session_folder(folder: Path) -> None:
    """Its socket may be unlinked by the hypervisor at the same moment; what stays there harms nobody."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)


def template_path(template: str, vm: str) -> Path:
    """`template` with the permit's canonical UUID in it."""
    return Path(os.path.normpath(template.replace("{uuid}", vm)))
