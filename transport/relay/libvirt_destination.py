"""A destination whose guests are libvirt's: the filtered RPC of one migration, and the guest's start or end at last.

libvirtd defines the VM and lets its QEMU listen in the session's folder. Its Finish always leaves the guest paused;
it is resumed here, by our own call, only when the relays have handed it over (ADR 0006).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import structlog
import trio

from transport.errors import LocalBroken, NotRecoverable
from transport.hypervisors.process import is_gone, process_identity
from transport.hypervisors.qemu_process import ExpectedQemu, boot_seconds
from transport.libvirt_rpc.client import (
    POST_COPY_FAILED,
    DomainState,
    LibvirtClient,
    connect_libvirt,
    libvirt_client,
)
from transport.libvirt_rpc.domain_xml import DomainRules
from transport.libvirt_rpc.errors import CallRefused, LibvirtAway, RpcMalformed
from transport.libvirt_rpc.filter import MigrationFilter, Places
from transport.libvirt_rpc.framing import Packet, PacketReader
from transport.libvirt_rpc.procedures import MigrateFlag, Procedure
from transport.relay.ends import RECOVERY_SOCKET, Arrival
from transport.relay.inlets import Port, connected_pair
from transport.relay.local_dial import dial_unix

log = structlog.get_logger("sealane.relay")
_CHUNK = 64 * 1024
_MAX_CALLS = 64
_MAX_REFUSALS = 8
_LOOK_SECONDS = 0.1
# libvirtd of these versions dies of a Prepare that resumes post-copy (seen with 11.3; see its NEWS of 11.4).
_DIES_FROM, _DIES_BEFORE = (11, 2, 0), (11, 4, 0)


class LibvirtDestination:
    """One VM of the local libvirtd. `facts`: what its journal says of it. `refused`: told each refused call.

    `qemu_uid`: as whom its QEMU will run.
    """

    vm_binding: Literal["uuid", "none"] = "uuid"
    hands_over = True

    def __init__(  # noqa: PLR0913, PLR0917 - a composition
        self,
        libvirt_socket: Path,
        vm: str,
        rules: DomainRules,
        seconds: float,
        long_seconds: float,
        facts: Mapping[str, Any],
        refused: Callable[[str, Packet | None], None],
        qemu_uid: int,
    ) -> None:
        self._qemu_uid = qemu_uid
        self._prepared_at: float | None = None
        self._socket = libvirt_socket
        self._vm = vm
        self._rules = rules
        self._refused = refused
        self._seconds = seconds
        self._long_seconds = long_seconds
        self._was_defined = bool(facts.get("was_defined", False))
        self._stays_paused = bool(facts.get("stays_paused", False))
        self._is_loaded = bool(facts.get("is_loaded", False))
        self._is_offline = bool(facts.get("is_offline", False))
        self._is_spoken_to = False
        self._was_let_run = False
        self._qemu = str(facts.get("qemu", ""))
        self._resumed: str | None = None
        self._rpc: MigrationFilter | None = None

    @property
    def facts(self) -> dict[str, object]:
        return {"was_defined": self._was_defined, "qemu": self._qemu}

    async def prepare(self, folder: Path) -> str:  # noqa: ARG002 - libvirt is told the folder in Prepare
        """See that libvirtd answers, and that no guest of this UUID is here already."""
        async with self._client() as client:
            state = await client.state(self._vm)
            if state.is_active:
                raise LocalBroken(f"VM {self._vm} is here already: libvirt says {state.name.lower()}")
            self._was_defined = await client.is_persistent(self._vm)
        return ""

    async def dial(self, port: Port, arrival: Arrival) -> socket.socket:
        match port:
            case "libvirt":
                if self._is_spoken_to:
                    raise LocalBroken("a second libvirt channel in one session")
                self._is_spoken_to = True
                ours, theirs = connected_pair()
                theirs.setblocking(False)
                arrival.nursery.start_soon(self._converse, ours, arrival)
                return theirs
            case "memory" | "disks":
                path = arrival.folder / (f"{port}.sock" if self._resumed is None else RECOVERY_SOCKET)
                return await dial_unix(path, arrival.dial_seconds, self._is_its_qemu)
            case _:
                raise LocalBroken(f"libvirt has no port {port}")

    async def look_ahead(self) -> None:
        pass

    async def wait_loaded(self, seconds: float) -> bool:  # noqa: ARG002 - libvirt has waited already
        if not self._is_loaded:
            return False
        async with self._client() as client:
            if self._is_offline:
                return await client.find(self._vm) is not None
            return (await client.state(self._vm)).is_active

    def begin_post_copy(self) -> bool:
        """Let libvirt start the guest in its Finish: in post-copy it is not whole before it runs."""
        if self._rpc is None or not self._rpc.flags & MigrateFlag.POSTCOPY:
            return False
        self._rpc.lets_run = True
        return True

    async def is_in_post_copy(self) -> bool:
        return False

    async def hold_until_whole(self) -> None:
        pass

    async def listen_again(self, folder: Path) -> None:  # noqa: ARG002 - libvirt is told the folder in Prepare
        """See that libvirt has this very guest here, and says that its post-copy has failed: it does a moment after its
        channels were closed. A client's Prepare lets QEMU listen."""
        if not self._qemu or is_gone(self._qemu):
            raise NotRecoverable("the QEMU of this guest has ended")
        found = (DomainState.NONE, 0)
        with trio.move_on_after(self._seconds):
            async with self._client() as client:
                if _DIES_FROM <= (version := await client.version()) < _DIES_BEFORE:
                    words = f"libvirt {version[0]}.{version[1]} there dies of it"
                    raise NotRecoverable(f"{words}; upgrade it to 11.4 or later, as the guest runs, and try again")
                while (found := await client.state_and_reason(self._vm)) not in POST_COPY_FAILED:
                    await trio.sleep(_LOOK_SECONDS)
                domain = await client.find(self._vm)
        if found not in POST_COPY_FAILED or domain is None:
            state = found[0].name.lower()
            raise NotRecoverable(f"libvirt there does not say that its post-copy has failed (it is {state})")
        self._resumed, self._is_spoken_to, self._rpc = domain.name, False, None

    async def _wait_resumed(self) -> None:
        """Until libvirt has heard from its QEMU that post-copy goes on: a Finish that is quicker fails (seen)."""
        with trio.move_on_after(self._seconds):
            async with self._client() as client:
                while await client.state_and_reason(self._vm) in POST_COPY_FAILED:
                    await trio.sleep(_LOOK_SECONDS)

    async def start_guest(self) -> None:
        if self._stays_paused or self._is_offline or (self._rpc is not None and self._rpc.lets_run):
            return
        async with self._client() as client:
            if await client.state(self._vm) is not DomainState.RUNNING:
                await client.resume(self._vm)

    async def discard(self) -> None:
        """End whatever this session brought here. None was here before it: see `prepare`."""
        async with self._client() as client:
            if (await client.state(self._vm)).is_active:
                await client.destroy(self._vm)
            if (await client.state(self._vm)).is_active:
                raise LocalBroken(f"libvirt has not ended the guest of VM {self._vm}")
            if not self._was_defined and await client.is_persistent(self._vm):
                await client.undefine(self._vm)

    async def __aexit__(self, *_: object) -> None:
        pass

    def _is_its_qemu(self, pid: int) -> bool:
        """Whether it is the QEMU that libvirtd has started in this session's Prepare."""
        if self._resumed is not None:
            return bool(self._qemu) and process_identity(pid) == self._qemu
        if self._prepared_at is None:
            return False
        if not ExpectedQemu(self._vm, self._rules.emulators, self._qemu_uid, self._prepared_at).is_met_by(pid):
            return False
        self._qemu = process_identity(pid)
        return True

    def _client(self) -> AbstractAsyncContextManager[LibvirtClient]:
        return libvirt_client(self._socket, self._seconds)

    @contextmanager
    def _recording_malformed(self) -> Iterator[None]:
        try:
            yield
        except RpcMalformed as malformed:
            self._refused(str(malformed), None)
            raise

    async def _converse(self, ours: socket.socket, arrival: Arrival) -> None:
        """The RPC of one source, call by call. What was prepared and not finished goes with libvirtd's connection."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        memory = "memory.sock" if self._resumed is None else RECOVERY_SOCKET
        places = Places(str(arrival.folder / memory), str(arrival.folder / "disks.sock"))
        rpc = self._rpc = MigrationFilter(self._vm, self._rules, places, self._resumed)
        client = await connect_libvirt(self._socket, self._seconds)
        try:
            async with stream:
                await self._answer_calls(stream, rpc, client, arrival)
        except LibvirtAway as away:
            if not self._was_let_run:
                raise
            # A libvirtd that is restarted finds the guest again: what it lacks is memory, which goes by the relays.
            log.warning("libvirtd left a guest in post-copy: its memory goes on", vm=self._vm, cause=str(away))
        finally:
            await client.aclose()

    async def _answer_calls(
        self, stream: trio.SocketStream, rpc: MigrationFilter, client: LibvirtClient, arrival: Arrival
    ) -> None:
        reader = PacketReader()
        calls = refusals = 0
        async for data in stream:
            with self._recording_malformed():
                packets = reader.feed(bytes(data))
            for call in packets:
                calls += 1
                try:
                    reply = await self._forward(call, rpc, client, arrival)
                except CallRefused as refused:
                    refusals += 1
                    log.warning("libvirt call refused", vm=self._vm, procedure=call.procedure, cause=refused.message)
                    self._refused(refused.message, call)
                    reply = call.refusal(refused.code, refused.message)
                await stream.send_all(reply.encode())
                if calls > _MAX_CALLS or refusals > _MAX_REFUSALS:
                    raise LocalBroken("more libvirt calls than a migration has")

    async def _forward(self, call: Packet, rpc: MigrationFilter, client: LibvirtClient, arrival: Arrival) -> Packet:
        with self._recording_malformed():
            procedure, arguments = rpc.check(call)
        is_long = procedure in (Procedure.MIGRATE_PREPARE3_PARAMS, Procedure.MIGRATE_FINISH3_PARAMS)
        if procedure == Procedure.MIGRATE_PREPARE3_PARAMS:
            self._prepared_at = boot_seconds()
        self._was_let_run = procedure == Procedure.MIGRATE_FINISH3_PARAMS and rpc.lets_run
        if self._was_let_run and self._resumed is not None and not rpc.gives_up:
            await self._wait_resumed()
        reply = await client.ask(procedure, arguments, seconds=self._long_seconds if is_long else None)
        finished = rpc.note_reply(procedure, reply)
        if finished is not None and not rpc.lets_run:
            # As the caller wants it, by --suspend or because it was paused at the source.
            self._stays_paused, self._is_loaded = bool(rpc.flags & MigrateFlag.PAUSED), True
            self._is_offline = bool(rpc.flags & MigrateFlag.OFFLINE)
            await arrival.loaded(stays_paused=self._stays_paused, is_loaded=True, is_offline=self._is_offline)
        return Packet(call.program, call.procedure, reply.type, call.serial, reply.status, reply.body)
