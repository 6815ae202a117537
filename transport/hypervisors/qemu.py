"""One QEMU as a relay sees it: the few things that a migration and its handover need, each with a deadline.

The guest is never started here by accident: loading at the destination is held by `hold_incoming`, and
only `resume` starts a guest. Seen with QEMU 7.2 and 10.0; the commands are in QEMU's qapi/migration.json.
"""

import contextlib
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self

import msgspec
import trio

from transport.hypervisors.disks import Disks
from transport.hypervisors.errors import (
    HypervisorGarbled,
    HypervisorGone,
    HypervisorRefused,
    HypervisorTimeout,
    MigrationCancelled,
    MigrationFailed,
    WrongVm,
)
from transport.hypervisors.migration_progress import MigrationProgress, StatusWord, read_progress
from transport.hypervisors.migration_settings import (
    MigrationSettings,
    destination_capabilities,
    migration_parameters,
    source_capabilities,
    unix_uri,
)
from transport.hypervisors.post_copy import PostCopy
from transport.hypervisors.qmp import PeerCredentials, QmpConnection, left
from transport.hypervisors.qmp_messages import Event

_SOON_SECONDS = 0.05


class _Capability(msgspec.Struct, frozen=True):
    capability: str
    state: bool


class _Status(msgspec.Struct, frozen=True):
    status: StatusWord


class _Uuid(msgspec.Struct, frozen=True, rename={"uuid": "UUID"}):
    uuid: str


class QemuMachine:
    """A conversation with one QEMU over its QMP monitor, which no other program may hold meanwhile.

    Every operation may raise HypervisorGone (QEMU ended), HypervisorTimeout (it hangs), HypervisorGarbled
    and HypervisorRefused; others are named where they occur. After a HypervisorTimeout it is not known
    whether the command took effect: ask again (`status`, `progress`) before believing anything.
    """

    def __init__(self, connection: QmpConnection, answer_seconds: float) -> None:
        self._qmp = connection
        self._answer_seconds = answer_seconds

    @classmethod
    async def connect(cls, qmp_socket: Path, *, answer_seconds: float = 10.0) -> Self:
        """Open the monitor. `answer_seconds` is the deadline of this and of each single command later.

        Raises HypervisorUnreachable if nobody listens, HypervisorTimeout if nobody greets.
        """
        return cls(await QmpConnection.connect(qmp_socket, deadline_seconds=answer_seconds), answer_seconds)

    @property
    def peer(self) -> PeerCredentials:
        """Process, user and group that the kernel says are behind the monitor."""
        return self._qmp.peer

    @property
    def version(self) -> str:
        """QEMU's version as it greeted, such as 7.2.22."""
        return self._qmp.version

    @property
    def is_usable(self) -> bool:
        """Whether this conversation can go on. If not, another one may be begun."""
        return self._qmp.is_usable

    @property
    def disks(self) -> Disks:
        """The guest's disks, by the same monitor."""
        return Disks(self._qmp, self._answer_seconds)

    @property
    def post_copy(self) -> PostCopy:
        """Post-copy of this guest, by the same monitor."""
        return PostCopy(self._qmp, self._answer_seconds)

    async def uuid(self) -> str:
        """The VM's UUID, lower case; all zeros if QEMU was started without one."""
        answer = await self._qmp.query("query-uuid", _Uuid, deadline_seconds=self._answer_seconds)
        return answer.uuid.lower()

    async def require_uuid(self, expected: str) -> None:
        """Raises WrongVm if another virtual machine is behind the monitor."""
        found = await self.uuid()
        if found != expected:
            raise WrongVm(expected, found)

    async def status(self) -> str:
        """QEMU's run state: running, paused, inmigrate, postmigrate, finish-migrate, …"""
        answer = await self._qmp.query("query-status", _Status, deadline_seconds=self._answer_seconds)
        return answer.status

    async def prepare_source(self, settings: MigrationSettings) -> None:
        """Set capabilities and parameters of the side that sends. Raises HypervisorRefused if one is missing."""
        await self._set_capabilities(source_capabilities(settings, await self._known_capabilities()))
        await self._execute("migrate-set-parameters", migration_parameters(settings))

    async def prepare_destination(self, settings: MigrationSettings) -> None:
        """Set capabilities and parameters of the side that loads; `settings` must equal the source's."""
        await self._set_capabilities(destination_capabilities(settings, await self._known_capabilities()))
        await self._execute("migrate-set-parameters", migration_parameters(settings))

    async def hold_incoming(self) -> None:
        """Make sure that loading will not start the guest. Only `resume` starts it then.

        Raises HypervisorRefused unless QEMU waits for a migration (started with -incoming defer).
        """
        await self._require_inmigrate("stop")
        await self._execute("stop")
        await self._require_inmigrate("stop")

    async def listen_incoming(self, unix_path: Path) -> None:
        """Let QEMU listen for the migration on `unix_path`; it does when this returns.

        The folder must be this session's own: a second QEMU takes over a path without an error.
        """
        await self._execute("migrate-incoming", {"uri": unix_uri(unix_path)})

    async def start_migration(self, unix_path: Path) -> None:
        """Let QEMU connect to `unix_path` and begin to send. Returns at once; see `wait_migration`."""
        await self._execute("migrate", {"uri": unix_uri(unix_path)})
        self._qmp.forget_events()  # what an earlier migration came to is no word about this one

    async def continue_migration(self) -> None:
        """Let a source go on that has paused before its switchover."""
        await self._execute("migrate-continue", {"state": "pre-switchover"})

    async def stop_guest(self) -> None:
        """Pause the guest; a migration that runs goes on, and has no more pages to send again."""
        await self._execute("stop")

    async def progress(self, *, deadline_seconds: float | None = None) -> MigrationProgress:
        """How far the migration is, in either direction. May be slow while the source switches over."""
        deadline = self._answer_seconds if deadline_seconds is None else deadline_seconds
        return read_progress(await self._qmp.execute("query-migrate", deadline_seconds=deadline))

    async def cancel(self) -> None:
        """Ask the source to give the migration up; does nothing if none runs. See `wait_migration`.

        While the source switches over it may not answer (HypervisorTimeout): break the channel then.
        """
        await self._execute("migrate_cancel")

    async def wait_migration(
        self,
        *,
        deadline_seconds: float,
        on_progress: Callable[[MigrationProgress], Awaitable[None]] | None = None,
        interval_seconds: float = 0.25,
    ) -> None:
        """Wait for the end of the migration at the source; `progress` has its last numbers then.

        Raises MigrationFailed, MigrationCancelled; HypervisorTimeout at the deadline: the migration then
        still runs and must be cancelled. `on_progress` is called on each change of state but the last, and
        otherwise every `interval_seconds`.
        """
        end = trio.current_time() + deadline_seconds
        while True:
            # QEMU holds its big lock for the whole switchover and answers nobody meanwhile, for as long as
            # the network takes. Silence is a failure at the end of the whole deadline only.
            seen = await self.progress(deadline_seconds=left(end, deadline_seconds))
            if seen.status == "completed":
                return  # the guest stands still by now: nobody is told anything before it is handed over
            if on_progress is not None:
                await on_progress(seen)
            match seen.status:
                case "failed":
                    raise MigrationFailed(f"QEMU gave the migration up: {seen.error or 'no reason given'}")
                case "cancelled":
                    raise MigrationCancelled("the migration was cancelled")
                case "postcopy-paused":
                    raise MigrationFailed("post-copy was interrupted")
                case _:
                    patience = min(interval_seconds, left(end, deadline_seconds))
                    if _is_completed(await self._qmp.next_event(patience_seconds=patience)):
                        return  # asking once more would take QEMU, which is busy now, some milliseconds

    async def wait_incoming(self, *, deadline_seconds: float, interval_seconds: float = 0.1) -> str:
        """Wait until everything was loaded, and return the run state: paused if it was held.

        Raises MigrationFailed (QEMU before 9.1 ends instead: HypervisorGone), HypervisorTimeout.
        """
        end = trio.current_time() + deadline_seconds
        while True:
            seen = await self.progress()
            if seen.status == "failed":
                raise MigrationFailed(f"QEMU could not load the migration: {seen.error or 'no reason given'}")
            if seen.status == "completed" and (state := await self.status()) != "inmigrate":
                return state
            await self._qmp.next_event(patience_seconds=min(interval_seconds, left(end, deadline_seconds)))

    async def resume(self) -> None:
        """Start the guest (`cont`), which does nothing to one that runs, and see it running. On HypervisorTimeout count
        it as running.

        In post-copy, while the devices' state is still on its way, QEMU remembers it and starts the guest with that.
        """
        await self._execute("cont")
        end = trio.current_time() + self._answer_seconds
        while (found := await self.status()) == "inmigrate":
            await self._qmp.next_event(patience_seconds=min(_SOON_SECONDS, left(end, self._answer_seconds)))
        if found != "running":
            raise HypervisorRefused("cont", "GenericError", f"the guest is {found} after cont")

    async def take_back(self) -> None:
        """Start the guest of a source whose migration has ended: QEMU refuses that until it has put the migration away,
        a moment after it has said that it is completed. If it never does, in its own words."""
        end = trio.current_time() + self._answer_seconds
        while trio.current_time() < end and await self.status() == "finish-migrate":
            await self._qmp.next_event(patience_seconds=_SOON_SECONDS)
        await self.resume()

    async def quit(self, *, deadline_seconds: float = 30.0) -> None:
        """End QEMU and its guest; returns only when the process is really gone.

        Raises HypervisorTimeout if it is still there at the deadline (hung): see `kill`.
        """
        # Gone is what is wanted; hung or garbled is judged by whether the process ends.
        with contextlib.suppress(HypervisorGone, HypervisorGarbled, HypervisorTimeout):
            await self._qmp.execute("quit", deadline_seconds=min(self._answer_seconds, deadline_seconds))
        await self._qmp.wait_end(deadline_seconds=deadline_seconds)

    async def kill(self, *, deadline_seconds: float = 10.0) -> None:
        """End QEMU by SIGKILL, the fence for one that hangs; returns only when the process is gone.

        Needs the right to signal it (root, or the same user): HypervisorUnreachable otherwise.
        """
        self._qmp.signal_process(signal.SIGKILL)
        await self._qmp.wait_end(deadline_seconds=deadline_seconds)

    async def aclose(self) -> None:
        """Leave the monitor to others. QEMU, its guest and a running migration go on."""
        await self._qmp.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _execute(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        await self._qmp.execute(command, arguments, deadline_seconds=self._answer_seconds)

    async def _require_inmigrate(self, command: str) -> None:
        found = await self.status()
        if found != "inmigrate":
            raise HypervisorRefused(
                command, "GenericError", f"QEMU is {found} and does not wait for a migration (-incoming defer)"
            )

    async def _known_capabilities(self) -> list[str]:
        offered = await self._qmp.query(
            "query-migrate-capabilities", list[_Capability], deadline_seconds=self._answer_seconds
        )
        return [each.capability for each in offered]

    async def _set_capabilities(self, wanted: Mapping[str, bool]) -> None:
        await self._execute(
            "migrate-set-capabilities",
            {"capabilities": [{"capability": name, "state": state} for name, state in wanted.items()]},
        )


def _is_completed(event: Event | None) -> bool:
    return event is not None and event.name == "MIGRATION" and event.data.get("status") == "completed"
