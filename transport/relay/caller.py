"""The client of libvirt at a front: its calls one after the other, its keepalive answered at once.

libvirt gives a peer up after 25 s of silence. Its pings are answered here and never travel, so that a caller waits in
peace while the relays ask the gateway, reach the destination, or settle a session.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn

import structlog
import trio

from transport.errors import LocalBroken
from transport.libvirt_rpc.errors import CallRefused, RpcMalformed
from transport.libvirt_rpc.filter import require_call
from transport.libvirt_rpc.framing import (
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
from transport.libvirt_rpc.migration import Finish, Prepare, PrepareReply
from transport.libvirt_rpc.opening import feature_call, is_supported, opening_answer
from transport.libvirt_rpc.procedures import FEATURES, Feature, MigrateFlag, Procedure

log = structlog.get_logger("sealane.relay")
_NBD = re.compile(rb"<nbd(?:\s+port='[0-9]+')?")
_CHUNK = 64 * 1024
_MAX_WAITING = 16
_MAX_REFUSALS = 16
_LAST_WORD_SECONDS = 1.0


# Told each refused call: the cause, the call if it was one, and its VM if that is known.
Refused = Callable[[str, Packet | None, str | None], None]


class Caller:
    """One connection of a client of libvirt. `read_forever` runs beside whoever answers its calls."""

    def __init__(self, stream: trio.abc.Stream, send_seconds: float, refused: Refused) -> None:
        self._stream = stream
        self._sending = trio.Lock()
        self._send_seconds = send_seconds
        self._refusals = 0
        self._refused = refused
        self._put, self._get = trio.open_memory_channel[Packet](_MAX_WAITING)

    async def read_forever(self) -> None:
        """Until the caller leaves. `RpcMalformed` if it is no client of libvirt."""
        reader = PacketReader()
        async with self._put:
            try:
                while data := await self._stream.receive_some(_CHUNK):
                    for packet in reader.feed(bytes(data)):
                        await self._take(packet)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            except RpcMalformed as malformed:
                # Here, where it is known: whoever serves the caller may see it leave first.
                self._refused(str(malformed), None, None)
                raise

    async def next_call(self) -> Packet | None:
        """The next call, or None when the caller has left."""
        try:
            return await self._get.receive()
        except trio.EndOfChannel:
            return None

    async def refuse(self, call: Packet, refused: CallRefused, vm: str | None = None) -> None:
        """Answer with the words of `refused`, and have it put on record. As `reply`."""
        self._refused(refused.message, call, vm)
        await self.reply(call.refusal(refused.code, refused.message))

    async def answer(self, call: Packet) -> None:
        """Answer a call that needs no destination, or refuse what does not pass. As `reply`."""
        try:
            answer = answer_locally(call)
        except CallRefused as refused:
            log.warning("libvirt call refused", procedure=call.procedure)
            await self.refuse(call, refused)
        else:
            await self.reply(answer)

    async def reply(self, packet: Packet) -> None:
        """Whether the caller has read it nobody knows. `LocalBroken` if it has surely not.

        `RpcMalformed` at one refusal too many: each leaves a line in the log.
        """
        if packet.status is Status.ERROR:
            self._refusals += 1
            if self._refusals > _MAX_REFUSALS:
                raise RpcMalformed("one refused call after the other")
        try:
            with trio.fail_after(self._send_seconds):
                async with self._sending:
                    await self._stream.send_all(packet.encode())
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            raise LocalBroken("the client of libvirt has left") from None

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)

    async def _take(self, packet: Packet) -> None:
        if packet.is_keepalive:
            if packet.procedure == KeepAlive.PING:
                await self.reply(PONG)
            return
        require_call(packet)
        try:
            self._put.send_nowait(packet)
        except trio.WouldBlock:
            raise RpcMalformed("more calls at once than a migration has") from None


@dataclass(frozen=True, slots=True)
class DisksInlet:
    """Where this host's QEMU will look for the destination's disks: the client chose it, and libvirt keeps to that.

    `path` of a unix socket; else a port of the front's loopback address, 0 for any, which the cookie then names.
    """

    path: Path | None = None
    port: int = 0


@dataclass(slots=True)
class Conversation:
    """The calls of one migration, from its Prepare to its Finish, between a caller and the destination's libvirtd.

    `uris`: where this host's hypervisor is to send, by port. `loopback`: the front's address for callers that know tcp
    only. `was_answered` and `was_told`: whether the caller has had an answer to its Prepare, and to its Finish;
    `was_prepared`: whether the first was a good one. `finishing`: a Finish that the destination has not answered.
    `is_given_away`: in post-copy, whatever the answer to Finish will be; `is_whole_there`: it was a good one. `cause`:
    why the session `broke`.
    """

    caller: Caller
    prepare_call: Packet
    prepare: Prepare
    loopback: str
    disks: DisksInlet | None
    seconds: float
    uris: dict[Literal["memory", "disks"], str] = field(default_factory=dict)
    was_answered: bool = False
    was_prepared: bool = False
    was_told: bool = False
    finishing: Packet | None = None
    is_given_away: bool = False
    is_whole_there: bool = False
    cause: str = ""
    finished: trio.Event = field(default_factory=trio.Event)
    broke: trio.Event = field(default_factory=trio.Event)

    @property
    def is_offline(self) -> bool:
        """Only a definition moves; no guest runs."""
        return bool(self.prepare.flags & MigrateFlag.OFFLINE)

    async def carry(
        self,
        lane: trio.SocketStream,
        give_away: Callable[[], Awaitable[bool]],
        accepted: Callable[[], Awaitable[None]],
    ) -> None:
        """Until the caller has been told that the destination has all of the guest.

        `give_away`: called before a Finish of post-copy; whether the guest can run at the destination only. `accepted`:
        of any other, before its good reply is passed on.

        `LocalBroken` if it ends in any other way: the destination refused or failed, the caller gave up or left.
        """
        remote = _Remote(lane, self.seconds)
        try:
            await self._compare_features(remote)
            await self._prepare(remote)
            await self._finish(remote, give_away, accepted)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise LocalBroken("the libvirt channel broke") from None
        finally:
            self.finished.set()

    async def tell_cause(self) -> None:
        """Answer the call with which libvirt gives up, once its hypervisor has noticed, by what broke the session."""
        await self.broke.wait()
        if self.finishing is not None:
            await self.caller.reply(self.finishing.failure(f"Sealane: {self.cause}"))
            return
        while (call := await self.caller.next_call()) is not None:
            if call.procedure == Procedure.MIGRATE_FINISH3_PARAMS:
                await self.caller.reply(call.failure(f"Sealane: {self.cause}"))
                return
            await self.caller.answer(call)

    async def _compare_features(self, remote: _Remote) -> None:
        """What was said in the destination's name must be so."""
        for feature in sorted(FEATURES - {Feature.KEEPALIVE}):
            reply = await remote.ask(Procedure.CONNECT_SUPPORTS_FEATURE, feature_call(feature))
            if reply.status is Status.ERROR or not is_supported(reply.body):
                raise LocalBroken(f"the destination's libvirt lacks {feature.name}: it is too old for this front")

    async def _prepare(self, remote: _Remote) -> None:
        reply = await remote.ask(Procedure.MIGRATE_PREPARE3_PARAMS, self.prepare.encode())
        if reply.status is Status.ERROR:
            await self._pass_on(self.prepare_call, reply)
            raise LocalBroken(f"the destination's libvirt refuses the VM: {decode_error(reply.body)[1]!a}")
        prepared = PrepareReply.decode(reply.body)
        cookie = prepared.cookie
        if self.disks is not None and self.disks.path is None:
            cookie = with_nbd_port(cookie, int(self.uris["disks"].rpartition(":")[2]))
        body = replace(prepared, uri=self.uris["memory"], cookie=cookie).encode()
        self.was_prepared = True
        await self._pass_on(self.prepare_call, replace(reply, body=body))

    async def _finish(
        self,
        remote: _Remote,
        give_away: Callable[[], Awaitable[bool]],
        accepted: Callable[[], Awaitable[None]],
    ) -> None:
        while True:
            call = await self._next_call(remote)
            if call.procedure == Procedure.MIGRATE_FINISH3_PARAMS:
                break
            await self.caller.answer(call)
        finish = Finish.decode(call.body)
        if finish.flags & MigrateFlag.POSTCOPY and not finish.cancelled:
            self.is_given_away = await give_away()
        self.finishing = call
        reply = await remote.ask(Procedure.MIGRATE_FINISH3_PARAMS, call.body)
        self.finishing = None
        if reply.status is Status.OK and self.is_given_away:
            self.is_whole_there = True
        elif reply.status is Status.OK and not finish.cancelled:
            # From the next line on libvirt may end its guest at any moment, or never hear of it.
            await accepted()
        await self._pass_on(call, reply)
        self.was_told = True
        if finish.cancelled:
            raise LocalBroken("libvirt gave the migration up")
        if reply.status is Status.ERROR:
            raise LocalBroken(f"the destination's libvirt did not take the guest: {decode_error(reply.body)[1]!a}")

    async def _next_call(self, remote: _Remote) -> Packet:
        """The caller's next call; the destination has nothing to say meanwhile but that it is gone."""
        calls: list[Packet | None] = []
        async with trio.open_nursery() as nursery:

            async def wait_call() -> None:
                calls.append(await self.caller.next_call())
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait_call)
            nursery.start_soon(remote.watch)
        call = calls[0]
        if call is None:
            raise LocalBroken("the client of libvirt has left")
        return call

    async def _pass_on(self, call: Packet, reply: Packet) -> None:
        """The destination's reply as the reply to the caller's own call."""
        self.was_answered = True
        await self.caller.reply(replace(reply, serial=call.serial, procedure=call.procedure))


def answer_locally(call: Packet) -> Packet:
    """The answer to a call that needs no destination. `CallRefused` for one that does not pass."""
    answer = opening_answer(call)
    if answer is None:
        raise CallRefused(
            f"Sealane lets only a migration pass: procedure {call.procedure} is refused and logged",
            ErrorCode.ACCESS_DENIED,
        )
    return answer


def with_nbd_port(cookie: bytes, port: int) -> bytes:
    """The destination's cookie with this host's own port for disks: where its QEMU listens is no matter of ours."""
    return _NBD.sub(f"<nbd port='{port}'".encode(), cookie, count=1)


async def _ended() -> NoReturn:
    """Why the channel ended is said on the control connection, and that word may come a moment later."""
    await trio.sleep(_LAST_WORD_SECONDS)
    raise LocalBroken("the destination ended the libvirt channel")


class _Remote:
    """The filtered RPC at the other end of the libvirt channel; one call at a time."""

    def __init__(self, lane: trio.SocketStream, seconds: float) -> None:
        self._lane = lane
        self._seconds = seconds
        self._reader = PacketReader()
        self._serial = 0

    async def ask(self, procedure: int, body: bytes) -> Packet:
        self._serial += 1
        call = Packet(REMOTE_PROGRAM, procedure, MessageType.CALL, self._serial, Status.OK, body)
        with trio.move_on_after(self._seconds):
            await self._lane.send_all(call.encode())
            while True:
                data = await self._lane.receive_some(_CHUNK)
                if not data:
                    await _ended()
                packets = self._reader.feed(bytes(data))
                if packets:
                    return self._check(packets, procedure)
        raise LocalBroken(f"the destination's libvirt did not answer procedure {procedure} in time")

    async def watch(self) -> None:
        """Raises when the channel ends or speaks out of turn."""
        data = await self._lane.receive_some(_CHUNK)
        if data:
            raise RpcMalformed("a reply that nobody asked for")
        await _ended()

    def _check(self, packets: list[Packet], procedure: int) -> Packet:
        reply = packets[0]
        is_good = reply.type is MessageType.REPLY and (reply.serial, reply.procedure) == (self._serial, procedure)
        if len(packets) > 1 or not is_good or reply.status is Status.CONTINUE or not self._reader.is_between_packets:
            raise RpcMalformed("a reply to another call")
        return reply
