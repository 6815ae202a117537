"""A source whose guests are libvirt's: a client of libvirt moves the VM, and the relay sees to it that it runs once.

The rule (ADR 0006): a guest is resumed at the destination only after the kernel has said that its QEMU at the source
is gone. libvirt ends that QEMU itself when it has the reply to Finish; where it never gets it, it resumes the guest
here, which is seen, and the destination's copy is discarded. Where it does neither (libvirtd died in between), the
relay ends the paused guest here, which the destination holds whole.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, Self

import structlog
import trio

from transport.errors import LocalBroken
from transport.hypervisors.errors import HypervisorUnreachable
from transport.hypervisors.migration_progress import MigrationProgress
from transport.hypervisors.process import is_gone
from transport.hypervisors.qemu_process import find_qemus
from transport.libvirt_rpc.client import PAUSED_POST_COPY, DomainState, JobProgress, libvirt_client
from transport.libvirt_rpc.errors import LibvirtAway, RpcFailed, RpcMalformed
from transport.relay.caller import Conversation
from transport.relay.ends import Milestones, Report, Whereabouts
from transport.relay.inlets import Inlet, SourceLanes, connected_pair, listen_tcp, listen_unix, peer_process
from transport.relay.loopback import find_peer_uid

log = structlog.get_logger("sealane.relay")
_LOOK_SECONDS = 0.2
_REPORT_SECONDS = 0.5
# The next client that takes up the guest's interrupted post-copy: `Interrupted.client` of its VM and destination.
NextClient = Callable[[Callable[[], Awaitable[None]]], AbstractAsyncContextManager[Conversation | None]]


class LibvirtSource:
    """One VM of the local libvirtd. `conversation`: its client's, if there is one. `facts`: the journal's."""

    vm_binding: Literal["uuid", "none"] = "uuid"
    hands_over = True
    recovers = "virsh migrate --postcopy-resume takes it up again"

    def __init__(  # noqa: PLR0913, PLR0917 - a composition
        self,
        libvirt_socket: Path,
        vm: str,
        seconds: float,
        qemu_uid: int,
        facts: Mapping[str, Any],
        next_client: NextClient,
        conversation: Conversation | None = None,
    ) -> None:
        self._socket = libvirt_socket
        self._vm = vm
        self._seconds = seconds
        self._uids = {0, os.geteuid(), qemu_uid}
        self._looking = trio.CapacityLimiter(1)
        self._next_client = next_client
        self._conversation = conversation
        self._is_given_away = facts.get("post_copy") is True
        self._was_paused = bool(facts.get("was_paused", False))
        self.process = str(facts.get("process", ""))
        self._own_path: Path | None = None

    @property
    def facts(self) -> dict[str, object]:
        return {"was_paused": self._was_paused}

    async def prepare(self) -> str:
        """The identity of the one QEMU of this VM on this host. `LocalBroken` if there is none, or more."""
        found = await trio.to_thread.run_sync(find_qemus, self._vm, self._uids)
        if self._conversation is not None and self._conversation.is_offline:
            if found:
                raise LocalBroken(f"VM {self._vm} runs here, and its definition alone was to move (--offline)")
            return ""  # there is no guest, so there is none to wait for
        if len(found) != 1:
            raise LocalBroken(f"{len(found)} QEMUs of VM {self._vm} run on this host, where there must be one")
        async with libvirt_client(self._socket, self._seconds) as client:
            self._was_paused = await client.state(self._vm) is DomainState.PAUSED
        self.process = found[0]
        return self.process

    def inlets(self, socket_path: Path) -> list[Inlet]:
        """Where this session's memory goes, and its disks: named in the reply to Prepare, so no other session's."""
        conversation = self._require_conversation()
        inlets = [self._inlet("memory", conversation, None if conversation.loopback else socket_path, 0)]
        if (disks := conversation.disks) is not None:
            self._own_path = disks.path  # outside the session's folder, so ours to remove
            inlets.append(self._inlet("disks", conversation, disks.path, disks.port))
        return inlets

    def _inlet(
        self, name: Literal["memory", "disks"], conversation: Conversation, path: Path | None, port: int
    ) -> Inlet:
        if path is not None:
            conversation.uris[name] = f"unix://{path}"
            # libvirt gives the socket to QEMU's user itself, as far as it runs as another.
            return Inlet(name, listen_unix(path), self._allows_unix)
        listening = listen_tcp(conversation.loopback, port)
        conversation.uris[name] = f"tcp://{conversation.loopback}:{listening.getsockname()[1]}"
        return Inlet(name, listening, self._allows_tcp)

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:
        """Let the client move the VM; returns when its QEMU here is gone, with the guest whole at the destination."""

        async def give_away() -> bool:
            if has_switched := await self._has_switched():
                self._is_given_away = True
                await milestones.switched()
            return has_switched

        await self._carry(lanes, report, give_away, milestones.accepted)

    async def last_numbers(self) -> MigrationProgress | None:
        return None  # the client asks libvirt itself

    async def _carry(
        self,
        lanes: SourceLanes,
        report: Report,
        give_away: Callable[[], Awaitable[bool]],
        accepted: Callable[[], Awaitable[None]],
    ) -> None:
        conversation = self._require_conversation()
        ours, theirs = connected_pair()
        await lanes.open("libvirt", theirs)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        async with stream, trio.open_nursery() as nursery:
            if not conversation.is_offline:
                nursery.start_soon(self._report_progress, report)
            try:
                await conversation.carry(stream, give_away, accepted)
            except (LocalBroken, RpcMalformed) as cause:
                if not conversation.is_given_away:
                    raise
                # libvirt may be restarted at either end. The guest runs at the destination: all it needs is its memory.
                log.warning("the guest's memory goes on without libvirt", vm=self._vm, cause=str(cause))
                self.broke(f"{cause}; the guest runs at the destination already, and its memory goes on")
                await self._wait_ended(lanes)
            nursery.cancel_scope.cancel()
        await self._wait_gone()

    async def whereabouts(self, *, accepted: bool) -> Whereabouts:
        """Which way the guest went here. `LocalBroken` while it may yet go either way."""
        if is_gone(self.process):
            return "gone"
        async with libvirt_client(self._socket, self._seconds) as client:
            state = await client.state(self._vm)
            if is_gone(self.process):  # what libvirt speaks of is another one, which may have come back since
                return "gone"
            if state is DomainState.RUNNING or not accepted:
                return "here"
            if state is DomainState.PAUSED and not await client.has_job(self._vm):
                # libvirtd was about to end this guest and died over it. The destination holds it whole.
                log.warning("libvirt left the guest paused after it was accepted: ending it here", vm=self._vm)
                await client.destroy(self._vm)
        if is_gone(self.process):
            return "gone"
        raise LocalBroken("libvirt has neither ended nor resumed its guest yet")

    async def resume_guest(self) -> None:
        """See the guest here as it was before; libvirt resumes it itself when its migration fails."""
        if not self.process:
            return  # a definition moved, or did not
        async with libvirt_client(self._socket, self._seconds) as client:
            state = await client.state(self._vm)
            if state is DomainState.RUNNING or (state is DomainState.PAUSED and self._was_paused):
                return
            if state is DomainState.PAUSED and not await client.has_job(self._vm):
                await client.resume(self._vm)
                return
        raise LocalBroken(f"libvirt has not brought its guest back yet (it is {state.name.lower()})")

    async def release(self) -> None:
        """The QEMU here is gone before anything is handed over; a definition that stays is libvirt's matter."""
        if not is_gone(self.process):
            raise LocalBroken("the QEMU at the source is still there: end it once the guest runs at the destination")

    async def is_in_post_copy(self) -> bool:
        """Whether the guest was given away before all of its memory was, and its QEMU, which may hold the rest, is
        here: whatever libvirt says of it, only a client of libvirt's ends it."""
        return self._is_given_away and bool(self.process) and not await self.is_gone()

    @asynccontextmanager
    async def recovery(self, pause_seconds: float) -> AsyncIterator[bool]:  # noqa: ARG002 - a client tries when it will
        """Until a client takes it up, at the front; or its QEMU has ended."""
        async with self._next_client(self._wait_surely_gone) as client:
            self._conversation = client
            yield client is not None

    async def go_on_with_post_copy(self, lanes: SourceLanes, report: Report) -> None:
        """Let the client take it up; returns when its QEMU here is gone. The guest was handed over before.

        `LocalBroken` if the client does no more than prepare it: nobody else could take it up meanwhile.
        """
        conversation = self._require_conversation()

        async def require_memory() -> None:
            while not conversation.was_prepared:
                await trio.sleep(_LOOK_SECONDS)
            with trio.move_on_after(self._seconds) as patience:
                await lanes.wait_opened("memory")
            if patience.cancelled_caught:
                raise LocalBroken("libvirt here does not go on with what its client has prepared")

        async def give_away() -> bool:
            return True

        async def accepted() -> None:
            raise LocalBroken("a guest that was given away in post-copy cannot be given away again")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(require_memory)
            await self._carry(lanes, report, give_away, accepted)
            nursery.cancel_scope.cancel()

    async def is_gone(self) -> bool:
        return bool(self.process) and is_gone(self.process)

    def broke(self, cause: str) -> None:
        if self._conversation is not None:
            self._conversation.cause = cause
            self._conversation.broke.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._own_path is not None:
            self._own_path.unlink(missing_ok=True)

    async def _has_switched(self) -> bool:
        """Whether the guest is stopped for post-copy: then libvirt never resumes it here."""
        async with libvirt_client(self._socket, self._seconds) as client:
            has_switched = await client.state_and_reason(self._vm) == (DomainState.PAUSED, PAUSED_POST_COPY)
        if has_switched:
            log.info("guest stopped here for post-copy", vm=self._vm)
        return has_switched

    async def _report_progress(self, report: Report) -> None:
        """What libvirt says of its job, until cancelled. A migration does not fail over it."""
        try:
            async with libvirt_client(self._socket, self._seconds) as client:
                while True:
                    if (job := await client.progress(self._vm)) is not None and job.total_bytes:
                        await report(_in_words_of_qemu(job))
                    await trio.sleep(_REPORT_SECONDS)
        except (LibvirtAway, RpcFailed, RpcMalformed) as error:
            log.info("libvirt does not tell how far it is", vm=self._vm, cause=str(error))

    async def _wait_ended(self, lanes: SourceLanes) -> None:
        """Until no memory is left to come out of its QEMU: a destination that never ends its direction holds nobody."""
        async with trio.open_nursery() as nursery:

            async def wait_process() -> None:
                await self._wait_surely_gone()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_process)
            await lanes.wait_ended("memory")
            nursery.cancel_scope.cancel()

    async def _wait_gone(self) -> None:
        """After libvirt was told that the guest is whole at the destination: it ends it here, or resumes it."""
        with trio.move_on_after(self._seconds):
            while not is_gone(self.process):
                await self._wait_exit()
                if is_gone(self.process):
                    return
                async with libvirt_client(self._socket, self._seconds) as client:
                    if await client.state(self._vm) is DomainState.RUNNING:
                        raise LocalBroken("libvirt has resumed the guest here instead of ending it")
            return
        await self._end_what_is_whole_there()

    async def _end_what_is_whole_there(self) -> None:
        """libvirt that loses its client between Finish and Confirm leaves its guest paused, and lets nobody take it up
        (seen). The destination's libvirt has said that all of the memory is there."""
        if self._conversation is not None and self._conversation.is_whole_there:
            async with libvirt_client(self._socket, self._seconds) as client:
                state = await client.state(self._vm)
                if state is DomainState.PAUSED and not is_gone(self.process):  # else it may be one that has come back
                    log.warning("libvirt left a guest that is whole at the destination: ending it here", vm=self._vm)
                    await client.destroy(self._vm)
        if not is_gone(self.process):
            raise LocalBroken("libvirt has not ended its guest in time")

    async def _wait_surely_gone(self) -> None:
        while not self._is_surely_gone():
            await self._wait_exit()

    def _is_surely_gone(self) -> bool:
        try:
            return is_gone(self.process)
        except HypervisorUnreachable:
            return False

    async def _wait_exit(self) -> None:
        """Until the process ends, at most a moment."""
        try:
            descriptor = os.pidfd_open(int(self.process.split(":")[1]))
        except ProcessLookupError:
            return
        except OSError:  # out of descriptors
            await trio.sleep(_LOOK_SECONDS)
            return
        try:
            with trio.move_on_after(_LOOK_SECONDS):
                await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)

    async def _allows_unix(self, local: socket.socket) -> bool:
        """libvirtd, which dials single streams as root, or this VM's own QEMU, which dials parallel ones and disks."""
        uid, pid = peer_process(local)
        # By the process that was found, not by a command line, which another guest's QEMU could write over its own.
        is_its_qemu = self.process.split(":")[1:2] == [str(pid)] and not is_gone(self.process)
        return uid == 0 or is_its_qemu

    async def _allows_tcp(self, local: socket.socket) -> bool:
        return await find_peer_uid(local, self._looking) in self._uids

    def _require_conversation(self) -> Conversation:
        if self._conversation is None:
            raise LocalBroken("no client of libvirt moves this VM")
        return self._conversation


def _in_words_of_qemu(job: JobProgress) -> MigrationProgress:
    """The rate is the mean since the job began: libvirt's answer has no other."""
    rate = job.processed_bytes * 1000 // max(1, job.elapsed_ms)
    return MigrationProgress("active", job.processed_bytes, job.remaining_bytes, job.total_bytes, rate)
