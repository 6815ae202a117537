"""What both ends of a session have whose QEMU the relay drives: its monitor, and that it is still the same process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from transport.hypervisors.errors import HypervisorGone
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.process import is_gone, process_identity
from transport.hypervisors.qemu import QemuMachine
from transport.relay.ends import Whereabouts


class QmpEnd:
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
        self.facts: dict[str, object] = {}

    async def machine(self) -> QemuMachine:
        """The VM, checked to be the permit's and, once it is known, to be still the same process."""
        if self._machine is not None and not self._machine.is_usable:
            # Kept, it would raise for ever: a guest that is to be started or resumed would stay paused.
            await self._let_go()
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

    async def is_in_post_copy(self) -> bool:
        """Whether part of the guest's memory is at the source and it can run at the destination only."""
        return not await self.is_gone() and (await (await self.machine()).progress()).status.startswith("postcopy")

    async def whereabouts(self, *, accepted: bool) -> Whereabouts:  # noqa: ARG002 - nobody else drives this QEMU
        return "gone" if await self.is_gone() else "here"

    def broke(self, cause: str) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._let_go()

    async def _let_go(self) -> None:
        """Of the monitor, for others; it is opened again when it is needed."""
        if self._machine is not None:
            machine, self._machine = self._machine, None
            await machine.aclose()
