"""One QEMU as a relay sees it: the few things that a migration and its handover need, each with a deadline.

The guest is never started here by accident: loading at the destination is held by `hold_incoming`, and
only `resume` starts a guest. Seen with QEMU 7.2 and 10.0; the commands are in QEMU's qapi/migration.json.
"""

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
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
from transport.hypervisors.migration_progress import MigrationProgress, read_progress
from transport.hypervisors.moving import PLAIN, Movement
from transport.hypervisors.qmp import PeerCredentials, QmpConnection

# QEMU's own default of 128 MiB/s would hide a relay's speed; this is what its documentation calls unlimited.
UNLIMITED_BYTES_PER_SECOND = 107374182400
_IN_POST_COPY = frozenset({"postcopy-active", "postcopy-recover", "postcopy-recover-setup"})
_NOTICE_SECONDS = 1.0
_BLOCKED_SECONDS = 2.0
_EVENT_SECONDS = 0.5  # between which a command gets its turn on the monitor
_MAX_UNIX_PATH_BYTES = 107  # sun_path with its NUL, unix(7)

# What the handover stands on. Anything switched on earlier that would start or end the migration in
# another order than the relays expect is switched off.
_ON_BOTH = ("return-path", "validate-uuid", "events")
_OFF_ON_BOTH = (
    "postcopy-ram",
    "postcopy-preempt",
    "multifd",
    "xbzrle",
    "auto-converge",
    "pause-before-switchover",
    "background-snapshot",
    "x-colo",
)


@dataclass(frozen=True, slots=True)
class MigrationSettings:
    """What both QEMUs are told before a migration. A bandwidth of 0 means unlimited, no multifd channels one stream.

    `pauses_before_switchover`: the source stops its guest and then waits for `continue_migration`.
    """

    bandwidth_bytes_per_second: int = 0
    downtime_limit_ms: int = 300
    movement: Movement = PLAIN
    auto_converge: bool = False
    post_copy_bytes_per_second: int = 0
    pauses_before_switchover: bool = False


class _Capability(msgspec.Struct, frozen=True):
    capability: str
    state: bool


class _Status(msgspec.Struct, frozen=True):
    status: str


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
        await self._set_capabilities(
            _capabilities(settings.movement)
            | {"auto-converge": settings.auto_converge, "pause-before-switchover": settings.pauses_before_switchover}
        )
        await self._set_parameters(settings)

    async def prepare_destination(self, settings: MigrationSettings) -> None:
        """Set capabilities and parameters of the side that loads; `settings` must equal the source's."""
        # late-block-activate: disks stay the source's until `resume`, as it may get the guest back.
        await self._set_capabilities(_capabilities(settings.movement) | {"late-block-activate": True})
        await self._set_parameters(settings)

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
        await self._execute("migrate-incoming", {"uri": _unix_uri(unix_path)})

    async def start_migration(self, unix_path: Path) -> None:
        """Let QEMU connect to `unix_path` and begin to send. Returns at once; see `wait_migration`."""
        await self._execute("migrate", {"uri": _unix_uri(unix_path)})

    async def start_post_copy(self) -> None:
        """Ask the source to stop its guest and send the rest on demand. It has when `progress` says postcopy-active.

        Nothing leads back from there: the guest can only run at the destination.
        """
        await self._execute("migrate-start-postcopy")

    async def continue_migration(self) -> None:
        """Let a source go on that has paused before its switchover."""
        await self._execute("migrate-continue", {"state": "pre-switchover"})

    async def pause_post_copy(self, *, deadline_seconds: float) -> str:
        """See post-copy paused on this side, its channels being closed; returns QEMU's status of the migration.

        That is `postcopy-paused`, or what it came to meanwhile: `completed` where nothing was left to carry. Raises
        HypervisorTimeout where QEMU does not notice in time.
        """
        end = trio.current_time() + deadline_seconds
        while (seen := await self.progress()).status in _IN_POST_COPY:
            if trio.current_time() > end - deadline_seconds / 2:
                # It notices a closed channel when it next uses it, and one that has nothing to send does not.
                with contextlib.suppress(HypervisorRefused):
                    await self._execute("migrate-pause")
            await self._qmp.next_event(patience_seconds=min(0.1, _left(end, deadline_seconds)))
        return seen.status

    async def listen_recovery(self, unix_path: Path, *, deadline_seconds: float) -> None:
        """Let a destination in post-copy, its channels being closed, listen on `unix_path` for the rest of its memory.

        Nothing else is asked: until a page comes that it waits for itself, QEMU may answer nothing. HypervisorRefused
        where post-copy is not interrupted and does not become so.
        """
        end = trio.current_time() + deadline_seconds
        while True:
            try:
                await self._qmp.execute_at_once(
                    "migrate-recover", {"uri": _unix_uri(unix_path)}, deadline_seconds=_left(end, deadline_seconds)
                )
            except HypervisorRefused as refused:
                if "triggered already" in refused.description and unix_path.is_socket():
                    return  # QEMU 7.2, which an earlier recovery that did not come so far has left listening there
                if trio.current_time() > end - _NOTICE_SECONDS:
                    raise
                with contextlib.suppress(HypervisorRefused):  # it may not have noticed yet that its channels are closed
                    await self._qmp.execute_at_once("migrate-pause", deadline_seconds=_left(end, deadline_seconds))
                await self._qmp.next_event(patience_seconds=0.1)
            else:
                return

    async def wait_whole(self) -> None:
        """Until a destination in post-copy has all of its guest, by QEMU's events, as it may answer no question."""
        with contextlib.suppress(HypervisorTimeout):
            if (await self.progress()).status == "completed":
                return
        while True:
            event = await self._qmp.next_event(patience_seconds=_EVENT_SECONDS)
            if event is not None and event.name == "MIGRATION" and event.data.get("status") == "completed":
                return

    async def resume_post_copy(self, unix_path: Path) -> None:
        """Let a source in paused post-copy connect to `unix_path` and go on; returns when it does. HypervisorTimeout.

        See `wait_migration` for its end.
        """
        await self._execute("migrate", {"uri": _unix_uri(unix_path), "resume": True})
        end = trio.current_time() + self._answer_seconds
        while (await self.progress()).status == "postcopy-paused":
            await self._qmp.next_event(patience_seconds=min(0.1, _left(end, self._answer_seconds)))

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
    ) -> MigrationProgress:
        """Wait for the end of the migration at the source and return its last numbers.

        Raises MigrationFailed, MigrationCancelled; HypervisorTimeout at the deadline: the migration then
        still runs and must be cancelled. `on_progress` is called on each change of state but the last, and
        otherwise every `interval_seconds`.
        """
        end = trio.current_time() + deadline_seconds
        while True:
            # QEMU holds its big lock for the whole switchover and answers nobody meanwhile, for as long as
            # the network takes. Silence is a failure at the end of the whole deadline only.
            seen = await self.progress(deadline_seconds=_left(end, deadline_seconds))
            if seen.status == "completed":
                return seen  # the guest stands still by now: nobody is told anything before it is handed over
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
                    await self._qmp.next_event(patience_seconds=min(interval_seconds, _left(end, deadline_seconds)))

    async def incoming_complete(self) -> bool:
        """Whether everything was loaded here. Raises MigrationFailed if it cannot be any more."""
        seen = await self.progress()
        if seen.status == "failed":
            raise MigrationFailed(f"QEMU could not load the migration: {seen.error or 'no reason given'}")
        return seen.status == "completed" and await self.status() != "inmigrate"

    async def wait_incoming(self, *, deadline_seconds: float, interval_seconds: float = 0.1) -> str:
        """Wait until everything was loaded, and return the run state: paused if it was held.

        Raises MigrationFailed (QEMU before 9.1 ends instead: HypervisorGone), HypervisorTimeout.
        """
        end = trio.current_time() + deadline_seconds
        while not await self.incoming_complete():
            await self._qmp.next_event(patience_seconds=min(interval_seconds, _left(end, deadline_seconds)))
        return await self.status()

    async def resume(self) -> None:
        """Start the guest (`cont`) and see it running. On HypervisorTimeout count it as running.

        In post-copy, while the devices' state is still on its way, QEMU remembers it and starts the guest with that.
        """
        await self._execute("cont")
        end = trio.current_time() + self._answer_seconds
        while (found := await self.status()) == "inmigrate":
            await self._qmp.next_event(patience_seconds=min(0.05, _left(end, self._answer_seconds)))
        if found != "running":
            raise HypervisorRefused("cont", "GenericError", f"the guest is {found} after cont")

    async def resume_in_post_copy(self) -> None:
        """Start the guest although part of its memory is missing; what answers is not waited for long.

        QEMU may wait for a missing page itself, before it answers or even begins. It has the command by then, and
        heeds it when the page has come, for which the source may first have to hear that the guest runs here.
        """
        with contextlib.suppress(HypervisorTimeout):
            await self._qmp.execute("cont", deadline_seconds=_BLOCKED_SECONDS)

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

    async def _set_capabilities(self, more: dict[str, bool]) -> None:
        offered = await self._qmp.query(
            "query-migrate-capabilities", list[_Capability], deadline_seconds=self._answer_seconds
        )
        known = {each.capability for each in offered}
        # Switching off what this QEMU does not know is no wish; switching on is, and QEMU refuses it.
        wanted = {name: False for name in _OFF_ON_BOTH if name in known}
        wanted |= {name: state for name, state in more.items() if state or name in known}
        wanted |= dict.fromkeys(_ON_BOTH, True)
        await self._execute(
            "migrate-set-capabilities",
            {"capabilities": [{"capability": name, "state": state} for name, state in wanted.items()]},
        )

    async def _set_parameters(self, settings: MigrationSettings) -> None:
        bandwidth, movement = settings.bandwidth_bytes_per_second, settings.movement
        parameters: dict[str, int | str] = {
            "max-bandwidth": bandwidth or UNLIMITED_BYTES_PER_SECOND,
            "downtime-limit": settings.downtime_limit_ms,
            "multifd-compression": movement.multifd_compression,
        }
        if movement.multifd_channels:
            parameters["multifd-channels"] = movement.multifd_channels
        if movement.post_copy:
            # Its own default is no limit at all, which would go past the permit's.
            parameters["max-postcopy-bandwidth"] = min(
                (each for each in (settings.post_copy_bytes_per_second, bandwidth) if each), default=0
            )
        await self._execute("migrate-set-parameters", parameters)


def _capabilities(movement: Movement) -> dict[str, bool]:
    return {
        "multifd": movement.multifd_channels > 0,
        "xbzrle": movement.xbzrle,
        "postcopy-ram": movement.post_copy,
        "postcopy-preempt": movement.preempt,
    }


def _left(end: float, whole_seconds: float) -> float:
    """Seconds until `end` by trio's clock. Raises HypervisorTimeout when there are none."""
    left = end - trio.current_time()
    if left <= 0:
        raise HypervisorTimeout(f"the migration did not end within {whole_seconds:g} s")
    return left


def _unix_uri(path: Path) -> str:
    """QEMU's name for a unix socket. ValueError for a path that no socket can have."""
    raw = os.fsencode(path)
    if not path.is_absolute() or len(raw) > _MAX_UNIX_PATH_BYTES or not raw.isascii() or b"\0" in raw:
        raise ValueError(f"not an absolute ASCII path of at most {_MAX_UNIX_PATH_BYTES} bytes: {path}")
    return f"unix:{path}"
