"""The hypervisor's end of a session, at the source and at the destination: what a session asks of it.

With QMP the relay knows the VM's UUID and drives the migration and its handover (`qmp_source`, `qmp_destination`);
with libvirt its client does (`libvirt_source`, `libvirt_destination`). With bare sockets (`socket_ends`) the relay
carries what comes, promises nothing beyond its channels, and its receipts say `vm_binding: none`.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Protocol, Self

import trio

from transport.errors import SpoolFailed
from transport.hypervisors.migration_progress import MigrationProgress
from transport.relay.inlets import Inlet, Port, SourceLanes

RECOVERY_SOCKET: Final = "recovery.sock"  # another path than the first: what is left of that must not look like it
Report = Callable[[MigrationProgress], Awaitable[None]]
Whereabouts = Literal["here", "gone"]


class Milestones(Protocol):
    """What a source's end tells its session when someone else than the relay moves the guest."""

    async def accepted(self) -> None:
        """The destination has all of the guest, and whoever moves it is about to hear so."""

    async def switched(self) -> None:
        """The guest is stopped here for post-copy: it can only run at the destination, which is told so now."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What a destination's end needs to take a channel. `nursery` lives as long as the connection; `loaded` is told
    facts to make durable when the hypervisor has all of the guest and holds it."""

    folder: Path
    dial_seconds: float
    nursery: trio.Nursery
    loaded: Callable[..., Awaitable[None]]


class SourceEnd(Protocol):
    """What the source session asks of its hypervisor."""

    vm_binding: Literal["uuid", "none"]
    hands_over: bool
    recovers: str  # in words, by whom its interrupted post-copy is taken up

    @property
    def facts(self) -> dict[str, object]:
        """What a restarted relay must know of it, beside the process."""
        ...

    async def prepare(self) -> str: ...
    def inlets(self, socket_path: Path) -> list[Inlet]: ...
    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None: ...
    async def last_numbers(self) -> MigrationProgress | None:
        """Of a migration that has ended; None where nobody counts, or says."""
        ...

    async def whereabouts(self, *, accepted: bool) -> Whereabouts: ...
    async def resume_guest(self) -> None: ...
    async def release(self) -> None: ...
    async def is_in_post_copy(self) -> bool: ...
    def recovery(self, pause_seconds: float) -> AbstractAsyncContextManager[bool]:
        """While its post-copy is recovered once: from when it may be tried on; False where it may not be any more.

        `pause_seconds`: after a try in vain.
        """
        ...

    async def go_on_with_post_copy(self, lanes: SourceLanes, report: Report) -> None: ...
    async def is_gone(self) -> bool: ...
    def broke(self, cause: str) -> None:
        """The session will not carry any more, and why: for whoever else than the relay moves the guest."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class DestinationEnd(Protocol):
    """What the destination session asks of its hypervisor."""

    vm_binding: Literal["uuid", "none"]
    hands_over: bool

    @property
    def facts(self) -> dict[str, object]:
        """What a restarted relay must know of it, beside the process."""
        ...

    async def prepare(self, folder: Path) -> str: ...
    async def dial(self, port: Port, arrival: Arrival) -> socket.socket: ...
    async def look_ahead(self) -> None:
        """All memory was carried, so the guest stands still: find out now what `wait_loaded` will be asked. Bounded."""
        ...

    async def wait_loaded(self, seconds: float) -> bool: ...
    def begin_post_copy(self) -> bool: ...
    async def is_in_post_copy(self) -> bool: ...
    async def listen_again(self, folder: Path) -> None: ...
    async def hold_until_whole(self) -> None: ...
    async def start_guest(self) -> None: ...
    async def discard(self) -> None: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_session_folder(run_dir: Path, session_id: str, owner: int) -> Path:
    """An own folder for each session, 0700: a second QEMU on the same path would take the other's stream.

    `owner`: the user as whom QEMU runs, who must be able to bind and dial in it; -1 for the relay's own.
    """
    folder = session_folder(run_dir, session_id)
    _make_folder(folder, owner)
    return folder


def restore_session_folder(folder: Path, owner: int) -> None:
    """As it was made, if it is gone: systemd removes /run/sealane with each process of the relay that ends."""
    if not folder.is_dir():
        _make_folder(folder, owner)


def _make_folder(folder: Path, owner: int) -> None:
    try:
        folder.mkdir(mode=0o700)
        os.chown(folder, owner, -1)
    except OSError as error:
        raise SpoolFailed(f"{folder}: {error.strerror}") from None


def session_folder(run_dir: Path, session_id: str) -> Path:
    return run_dir / session_id[:16]


def remove_session_folder(folder: Path) -> None:
    """Its socket may be unlinked by the hypervisor at the same moment; what stays there harms nobody."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder, ignore_errors=True)
