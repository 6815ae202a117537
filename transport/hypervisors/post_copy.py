"""Post-copy at one QEMU: its guest runs at the destination, and what it lacks of its memory comes on demand.

Nothing leads back from there. Of an interruption, each side is told on its own to pause, to listen or to connect again,
and goes on (QEMU's docs/devel/migration/postcopy.rst).
"""

import contextlib
from pathlib import Path
from typing import Any, Final

import trio

from transport.hypervisors.errors import HypervisorRefused, HypervisorTimeout
from transport.hypervisors.migration_progress import MigrationProgress, read_progress
from transport.hypervisors.migration_settings import unix_uri
from transport.hypervisors.qmp import QmpConnection, left

_IN_POST_COPY: Final = frozenset({"postcopy-active", "postcopy-recover", "postcopy-recover-setup"})
_NOTICE_SECONDS: Final = 1.0
_BLOCKED_SECONDS: Final = 2.0
_EVENT_SECONDS: Final = 0.5  # between which a command gets its turn on the monitor


class PostCopy:
    """By the monitor of one QEMU. What its calls may raise is as with `QemuMachine`."""

    def __init__(self, connection: QmpConnection, answer_seconds: float) -> None:
        self._qmp = connection
        self._answer_seconds = answer_seconds

    async def start(self) -> None:
        """Ask the source to stop its guest and send the rest on demand. It has when the progress says postcopy-active.

        Nothing leads back from there: the guest can only run at the destination.
        """
        await self._execute("migrate-start-postcopy")

    async def pause(self, *, deadline_seconds: float) -> str:
        """See post-copy paused on this side, its channels being closed; returns QEMU's status of the migration.

        That is `postcopy-paused`, or what it came to meanwhile: `completed` where nothing was left to carry. Raises
        HypervisorTimeout where QEMU does not notice in time.
        """
        end = trio.current_time() + deadline_seconds
        while (seen := await self._progress()).status in _IN_POST_COPY:
            if trio.current_time() > end - deadline_seconds / 2:
                # It notices a closed channel when it next uses it, and one that has nothing to send does not.
                with contextlib.suppress(HypervisorRefused):
                    await self._execute("migrate-pause")
            await self._qmp.next_event(patience_seconds=min(0.1, left(end, deadline_seconds)))
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
                    "migrate-recover", {"uri": unix_uri(unix_path)}, deadline_seconds=left(end, deadline_seconds)
                )
            except HypervisorRefused as refused:
                if "triggered already" in refused.description and unix_path.is_socket():
                    return  # QEMU 7.2, which an earlier recovery that did not come so far has left listening there
                if trio.current_time() > end - _NOTICE_SECONDS:
                    raise
                with contextlib.suppress(HypervisorRefused):  # it may not have noticed yet that its channels are closed
                    await self._qmp.execute_at_once("migrate-pause", deadline_seconds=left(end, deadline_seconds))
                await self._qmp.next_event(patience_seconds=0.1)
            else:
                return

    async def wait_whole(self) -> None:
        """Until a destination in post-copy has all of its guest, by QEMU's events, as it may answer no question."""
        with contextlib.suppress(HypervisorTimeout):
            if (await self._progress()).status == "completed":
                return
        while True:
            event = await self._qmp.next_event(patience_seconds=_EVENT_SECONDS)
            if event is not None and event.name == "MIGRATION" and event.data.get("status") == "completed":
                return

    async def resume(self, unix_path: Path) -> None:
        """Let a source in paused post-copy connect to `unix_path` and go on; returns when it does. HypervisorTimeout.

        See `QemuMachine.wait_migration` for its end.
        """
        await self._execute("migrate", {"uri": unix_uri(unix_path), "resume": True})
        end = trio.current_time() + self._answer_seconds
        while (await self._progress()).status == "postcopy-paused":
            await self._qmp.next_event(patience_seconds=min(0.1, left(end, self._answer_seconds)))

    async def start_guest(self) -> None:
        """Start the guest although part of its memory is missing; what answers is not waited for long.

        QEMU may wait for a missing page itself, before it answers or even begins. It has the command by then, and
        heeds it when the page has come, for which the source may first have to hear that the guest runs here.
        """
        with contextlib.suppress(HypervisorTimeout):
            await self._qmp.execute("cont", deadline_seconds=_BLOCKED_SECONDS)

    async def _progress(self) -> MigrationProgress:
        return read_progress(await self._qmp.execute("query-migrate", deadline_seconds=self._answer_seconds))

    async def _execute(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        await self._qmp.execute(command, arguments, deadline_seconds=self._answer_seconds)
