"""A client of the local libvirtd, in trio: the few calls by which a relay sees to one VM, and forwards checked ones.

One call at a time. While it waits, pings are answered and sent: a Finish may last for as long as a migration, but a
libvirtd that hangs over it is left within seconds, for the guest stands still meanwhile. Events, which nobody asked
for, are dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

import trio

from transport.libvirt_rpc.errors import LibvirtAway, LibvirtHangs, RpcFailed, RpcMalformed
from transport.libvirt_rpc.framing import (
    PING,
    PONG,
    REMOTE_PROGRAM,
    ErrorCode,
    KeepAlive,
    MessageType,
    Packet,
    PacketReader,
    Status,
    decode_error,
)
from transport.libvirt_rpc.migration import Domain
from transport.libvirt_rpc.opening import SYSTEM_URI
from transport.libvirt_rpc.procedures import Procedure
from transport.libvirt_rpc.xdr import XdrReader, XdrWriter
from transport.unix_dial import open_unix

_CHUNK: Final = 64 * 1024
_PING_SECONDS: Final = 5.0  # as libvirt's own clients
_AUTH_NONE: Final = 0
_JOB_NONE: Final = 0


class DomainState(IntEnum):
    NONE = 0
    RUNNING = 1
    BLOCKED = 2
    PAUSED = 3
    SHUTDOWN = 4
    SHUTOFF = 5
    CRASHED = 6
    PMSUSPENDED = 7

    @property
    def is_active(self) -> bool:
        return self not in (DomainState.SHUTOFF, DomainState.NONE, DomainState.CRASHED)


PAUSED_POST_COPY: Final = 12  # a reason of PAUSED, at the source
# State and reason of a guest whose post-copy was interrupted.
POST_COPY_FAILED: Final = frozenset({(DomainState.RUNNING, 11), (DomainState.PAUSED, 13)})


@dataclass(frozen=True, slots=True)
class JobProgress:
    elapsed_ms: int
    total_bytes: int
    processed_bytes: int
    remaining_bytes: int


class LibvirtClient:
    """An open connection to the local libvirtd. `LibvirtAway`, `RpcFailed`, `RpcMalformed`.

    `answer_seconds`: for a call that is not said to be long, and for silence in any.
    """

    def __init__(self, stream: trio.SocketStream, answer_seconds: float) -> None:
        self._stream = stream
        self._reader = PacketReader()
        self._waiting: list[Packet] = []
        self._serial = 0
        self._seconds = answer_seconds

    async def open(self) -> None:
        offered = XdrReader(await self.call(Procedure.AUTH_LIST, b"", "be asked how to sign in"))
        ways = [offered.integer() for _ in range(min(offered.unsigned(), 20))]
        if _AUTH_NONE not in ways:
            raise LibvirtAway("the local libvirtd wants the relay to sign in: run it as root, or set auth_unix_rw")
        await self.call(Procedure.CONNECT_OPEN, _open_arguments(), "be opened")

    async def call(self, procedure: int, body: bytes, what: str, *, seconds: float | None = None) -> bytes:
        """The results of one call; `what` says in an error what was asked. After a timeout the connection is closed."""
        reply = await self.ask(procedure, body, seconds=seconds)
        if reply.status is Status.ERROR:
            code, message = decode_error(reply.body)
            raise RpcFailed(what, code, message)
        return reply.body

    async def ask(self, procedure: int, body: bytes, *, seconds: float | None = None) -> Packet:
        """The reply to one call, an error reply too."""
        self._serial += 1
        call = Packet(REMOTE_PROGRAM, procedure, MessageType.CALL, self._serial, Status.OK, body)
        with trio.move_on_after(self._seconds if seconds is None else seconds):
            try:
                await self._stream.send_all(call.encode())
                return await self._reply(call)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise LibvirtAway("the local libvirtd closed its connection") from None
        await trio.aclose_forcefully(self._stream)
        raise LibvirtHangs(f"the local libvirtd did not answer procedure {procedure} in time")

    async def version(self) -> tuple[int, int, int]:
        """Of libvirt here."""
        body = await self.call(Procedure.CONNECT_GET_LIB_VERSION, b"", "tell its version")
        reader = XdrReader(body)
        number = reader.unsigned_hyper()
        reader.end()
        return number // 1_000_000, number // 1_000 % 1_000, number % 1_000

    async def find(self, vm: str) -> Domain | None:
        """The domain with this UUID, running or not."""
        return await self._look_up(Procedure.DOMAIN_LOOKUP_BY_UUID, bytes(XdrWriter().fixed(_uuid_bytes(vm)).data))

    async def find_named(self, name: str) -> Domain | None:
        """The domain of this name, running or not."""
        return await self._look_up(Procedure.DOMAIN_LOOKUP_BY_NAME, bytes(XdrWriter().text(name).data))

    async def _look_up(self, procedure: int, body: bytes) -> Domain | None:
        reply = await self.ask(procedure, body)
        if reply.status is Status.ERROR:
            code, message = decode_error(reply.body)
            if code == ErrorCode.NO_DOMAIN:
                return None
            raise RpcFailed("look the VM up", code, message)
        reader = XdrReader(reply.body)
        domain = Domain.read(reader)
        reader.end()
        return domain

    async def state(self, vm: str) -> DomainState:
        """NONE if libvirt knows no such domain."""
        return (await self.state_and_reason(vm))[0]

    async def state_and_reason(self, vm: str) -> tuple[DomainState, int]:
        domain = await self.find(vm)
        if domain is None:
            return DomainState.NONE, 0
        body = bytes(domain.write(XdrWriter()).unsigned(0).data)
        reply = await self.ask(Procedure.DOMAIN_GET_STATE, body)
        if reply.status is Status.ERROR:
            code, message = decode_error(reply.body)
            if code == ErrorCode.NO_DOMAIN:
                return DomainState.NONE, 0
            raise RpcFailed("tell the VM's state", code, message)
        reader = XdrReader(reply.body)
        try:
            return DomainState(reader.integer()), reader.integer()
        except ValueError:
            raise RpcMalformed("an unknown state of a domain") from None

    async def has_job(self, vm: str) -> bool:
        """Whether a migration or another long job of this VM is under way."""
        domain = await self._require(vm)
        reader = XdrReader(await self.call(Procedure.DOMAIN_GET_JOB_INFO, _only(domain), "tell of the VM's jobs"))
        return reader.integer() != _JOB_NONE

    async def progress(self, vm: str) -> JobProgress | None:
        """How far the VM's job is, in bytes of memory and disks; None without one."""
        domain = await self._require(vm)
        reader = XdrReader(await self.call(Procedure.DOMAIN_GET_JOB_INFO, _only(domain), "tell of the VM's jobs"))
        if reader.integer() == _JOB_NONE:
            return None
        elapsed_ms, _, total, processed, remaining = (reader.unsigned_hyper() for _ in range(5))
        return JobProgress(elapsed_ms, total, processed, remaining)

    async def is_persistent(self, vm: str) -> bool:
        domain = await self.find(vm)
        if domain is None:
            return False
        body = await self.call(Procedure.DOMAIN_IS_PERSISTENT, _only(domain), "tell whether the VM is defined")
        return XdrReader(body).integer() != 0

    async def resume(self, vm: str) -> None:
        await self.call(Procedure.DOMAIN_RESUME, _only(await self._require(vm)), "resume the VM")

    async def destroy(self, vm: str) -> None:
        await self.call(Procedure.DOMAIN_DESTROY, _only(await self._require(vm)), "end the VM")

    async def undefine(self, vm: str) -> None:
        body = bytes((await self._require(vm)).write(XdrWriter()).unsigned(0).data)
        await self.call(Procedure.DOMAIN_UNDEFINE_FLAGS, body, "remove the VM's definition")

    async def aclose(self) -> None:
        """At once: libvirtd then drops what was prepared on this connection."""
        await trio.aclose_forcefully(self._stream)

    async def _require(self, vm: str) -> Domain:
        domain = await self.find(vm)
        if domain is None:
            raise RpcFailed("find the VM", ErrorCode.NO_DOMAIN, f"no domain {vm}")
        return domain

    async def _reply(self, call: Packet) -> Packet:
        while True:
            while self._waiting:
                packet = self._waiting.pop(0)
                if packet.is_keepalive:
                    if packet.procedure == KeepAlive.PING:
                        await self._stream.send_all(PONG.encode())
                elif packet.type is MessageType.REPLY and packet.serial == call.serial:
                    if packet.procedure != call.procedure or packet.status is Status.CONTINUE:
                        raise RpcMalformed("a reply of another procedure")
                    return packet
                elif packet.type is not MessageType.MESSAGE:
                    raise RpcMalformed("a packet that no call of ours led to")
            self._waiting += self._reader.feed(await self._receive())

    async def _receive(self) -> bytes:
        """What libvirtd says next; it answers pings also while a call of its own is at work."""
        end = trio.current_time() + self._seconds
        while (now := trio.current_time()) < end:
            with trio.move_on_after(min(_PING_SECONDS, end - now)):
                if data := bytes(await self._stream.receive_some(_CHUNK)):
                    return data
                raise LibvirtAway("the local libvirtd closed its connection")
            await self._stream.send_all(PING.encode())
        await trio.aclose_forcefully(self._stream)
        raise LibvirtHangs(f"the local libvirtd hangs: it has answered no ping for {self._seconds:.0f} s")


@contextlib.asynccontextmanager
async def libvirt_client(socket_path: Path, answer_seconds: float) -> AsyncIterator[LibvirtClient]:
    """An open client; closed at the end of the block. Raises `LibvirtAway`."""
    client = await connect_libvirt(socket_path, answer_seconds)
    try:
        yield client
    finally:
        await client.aclose()


async def connect_libvirt(socket_path: Path, answer_seconds: float) -> LibvirtClient:
    """An open client, which the caller closes. Raises `LibvirtAway`."""
    stream = None
    with trio.move_on_after(answer_seconds):
        try:
            stream = await open_unix(str(socket_path))
        except OSError as error:
            raise LibvirtAway(f"libvirtd does not answer on {socket_path}: {error.strerror}; is it running?") from None
    if stream is None:
        raise LibvirtHangs(f"libvirtd does not answer on {socket_path} in time")
    client = LibvirtClient(stream, answer_seconds)
    try:
        await client.open()
    except BaseException:
        await client.aclose()
        raise
    return client


def _open_arguments() -> bytes:
    return bytes(XdrWriter().optional_text(SYSTEM_URI).unsigned(0).data)


def _only(domain: Domain) -> bytes:
    return bytes(domain.write(XdrWriter()).data)


def _uuid_bytes(vm: str) -> bytes:
    return bytes.fromhex(vm.replace("-", ""))
