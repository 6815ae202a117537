"""One connection to a QEMU monitor, pulled by whoever waits for something, so that it needs no task of its own.

Events that arrive while a command waits for its reply are kept in a bounded queue. The messages themselves
are in `qmp_messages`.
"""

import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
import trio

from transport.hypervisors.errors import (
    HypervisorError,
    HypervisorGarbled,
    HypervisorGone,
    HypervisorRefused,
    HypervisorTimeout,
    HypervisorUnreachable,
)
from transport.hypervisors.qmp_messages import Event, Failure, Greeting, LineBuffer, Message, Reply, decode_message
from transport.unix_dial import open_unix

MAX_EVENTS = 256  # events are hints, states are always asked for: the oldest may be dropped
_RECEIVE_BYTES = 16 * 1024
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))

T = TypeVar("T")

_EVENTS_BEFORE_GREETING = 16


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """Who opened the socket for listening, by the kernel's word (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Bound what is done inside. Raises HypervisorTimeout when the time is over."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        raise HypervisorTimeout(f"no answer within {seconds:g} s to: {what}") from None


def left(end: float, whole_seconds: float) -> float:
    """Seconds until `end` by trio's clock. Raises HypervisorTimeout when there are none."""
    left = end - trio.current_time()
    if left <= 0:
        raise HypervisorTimeout(f"the migration did not end within {whole_seconds:g} s")
    return left


class QmpConnection:
    """One conversation with one QEMU.

    Only one program at a time can talk to a monitor. After a garbled message, an end of the stream or a
    command cut off while it was being sent, each later use raises the same error again.
    """

    def __init__(self, stream: trio.SocketStream, peer: PeerCredentials, pidfd: int, address: str) -> None:
        self.peer = peer
        self.address = address
        self.version = ""
        self.events_dropped = 0
        self._stream = stream
        self._pidfd = pidfd
        self._turn = trio.Lock()
        self._lines = LineBuffer()
        self._arrived: deque[Message] = deque()
        self._events: deque[Event] = deque()
        self._last_id = 0
        self._has_oob = False
        self._fault: HypervisorError | None = None

    @classmethod
    async def connect(cls, path: Path, *, deadline_seconds: float) -> Self:
        """Open the monitor at `path` and go into command mode.

        Raises HypervisorUnreachable, HypervisorTimeout (nobody greets: hung, or the monitor is taken),
        HypervisorGone, HypervisorGarbled.
        """
        with within(deadline_seconds, f"connect to the monitor {path}"):
            try:
                stream = await open_unix(str(path))
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else error
                raise HypervisorUnreachable(f"cannot open the monitor {path}: {why}") from None
            try:
                packed = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                peer = PeerCredentials(*_CREDENTIALS.unpack(packed))
                connection = cls(stream, peer, _open_pidfd(peer.pid, path), str(path))
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            try:
                await connection._greet()
            except BaseException:
                await connection.aclose()
                raise
            return connection

    @property
    def is_usable(self) -> bool:
        """Whether another command can be sent; if not, every use raises and only a new connection helps."""
        return self._fault is None

    async def _greet(self) -> None:
        greeting = await self._receive()
        for _ in range(_EVENTS_BEFORE_GREETING):  # a QEMU that is just starting may tell an event first
            if not isinstance(greeting, Event):
                break
            greeting = await self._receive()
        if not isinstance(greeting, Greeting):
            raise HypervisorGarbled("the monitor did not greet")
        self.version = greeting.version
        # This answer comes from a living process after its pidfd was opened, so the pidfd is of that
        # process and of none that took its number later.
        await self._call("qmp_capabilities", {"enable": ["oob"]} if greeting.has_oob else None)
        self._has_oob = greeting.has_oob

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, *, deadline_seconds: float) -> Any:
        """Run one command and return its value.

        Cancelled or timed out, the command may still take effect; its late reply is thrown away. Raises
        HypervisorRefused for an error reply, HypervisorTimeout, HypervisorGone, HypervisorGarbled.
        """
        with within(deadline_seconds, command):
            async with self._turn:
                return await self._call(command, arguments)

    async def execute_at_once(
        self, command: str, arguments: dict[str, Any] | None = None, *, deadline_seconds: float
    ) -> Any:
        """As `execute`, and also while QEMU answers nothing else: out of band, for the few commands that can be.

        QEMU's main thread hangs where it touches a page of the guest that post-copy has not brought yet.
        """
        with within(deadline_seconds, command):
            async with self._turn:
                return await self._call(command, arguments, verb="exec-oob" if self._has_oob else "execute")

    async def query(
        self,
        command: str,
        answer: type[T],
        arguments: dict[str, Any] | None = None,
        *,
        deadline_seconds: float,
    ) -> T:
        """Run one command and decode its value; errors as `execute`, HypervisorGarbled for another shape."""
        value = await self.execute(command, arguments, deadline_seconds=deadline_seconds)
        try:
            return msgspec.convert(value, answer)
        except msgspec.ValidationError as error:
            raise HypervisorGarbled(f"unexpected answer to {command}: {error}") from None

    async def next_event(self, *, patience_seconds: float) -> Event | None:
        """The oldest event that nobody has taken yet, or None if none comes in time."""
        with trio.move_on_after(patience_seconds):
            async with self._turn:
                while not self._events:
                    self._sort(await self._receive())
        return self._events.popleft() if self._events else None

    def forget_events(self) -> None:
        """Drop what nobody has taken yet."""
        self._events.clear()

    async def wait_end(self, *, deadline_seconds: float) -> None:
        """Wait until the process is really gone: end of stream and end of the process.

        The stream alone proves nothing (a process can close a socket and go on running its guest). Raises
        HypervisorTimeout; the process is then still there.
        """
        with within(deadline_seconds, f"process {self.peer.pid} ends"):
            try:
                async with self._turn:
                    while True:
                        self._sort(await self._receive())
            except (HypervisorGone, HypervisorGarbled):
                pass  # a garbled stream cannot be read to its end; the process still tells
            await trio.lowlevel.wait_readable(self._pidfd)

    def signal_process(self, number: int) -> None:
        """Send a signal to exactly this process; nothing happens if it is gone. Raises HypervisorUnreachable."""
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return
        except PermissionError:
            raise HypervisorUnreachable(f"process {self.peer.pid} may not be signalled by this user") from None

    async def aclose(self) -> None:
        """Hang up. QEMU and its guest go on."""
        if self._pidfd >= 0:
            trio.lowlevel.notify_closing(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        await trio.aclose_forcefully(self._stream)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _call(self, command: str, arguments: dict[str, Any] | None, verb: str = "execute") -> Any:
        self._last_id += 1
        request = {verb: command, "id": self._last_id}
        if arguments is not None:
            request["arguments"] = arguments
        await self._send(msgspec.json.encode(request) + b"\n")
        while True:
            match await self._receive():
                case Reply(id, value) if id == self._last_id:
                    return value
                case Failure(id, error_class, description) if id == self._last_id:
                    raise HypervisorRefused(command, error_class, description)
                case other:
                    self._sort(other)

    def _sort(self, message: Message) -> None:
        """Put away what nobody is waiting for right now."""
        match message:
            case Event():
                if len(self._events) == MAX_EVENTS:
                    self._events.popleft()
                    self.events_dropped += 1
                self._events.append(message)
            case Reply(id) | Failure(int(id)) if 0 < id <= self._last_id:
                pass  # of a command that was given up earlier
            case _:
                self._fault = HypervisorGarbled(f"the monitor sent {message} out of turn")
                raise self._fault

    async def _send(self, line: bytes) -> None:
        if self._fault is not None:
            raise self._fault
        # A cancellation that has come already must not spoil a monitor to which nothing was sent yet.
        await trio.lowlevel.checkpoint_if_cancelled()
        self._fault = HypervisorGarbled("an earlier command was cut off while it was being sent")
        try:
            await self._stream.send_all(line)
        except trio.BrokenResourceError:
            self._fault = self._gone()
            raise self._fault from None
        self._fault = None

    async def _receive(self) -> Message:
        if self._fault is not None:
            raise self._fault
        while not self._arrived:
            try:
                data = await self._stream.receive_some(_RECEIVE_BYTES)
            except trio.BrokenResourceError:
                data = b""
            if not data:
                self._fault = self._gone()
                raise self._fault
            try:
                self._arrived.extend(decode_message(line) for line in self._lines.feed(data) if line)
            except HypervisorGarbled as error:
                self._fault = error
                raise
        return self._arrived.popleft()

    def _gone(self) -> HypervisorGone:
        return HypervisorGone(f"QEMU (process {self.peer.pid}) closed its monitor {self.address}")


def _open_pidfd(pid: int, path: Path) -> int:
    if pid <= 0:
        raise HypervisorUnreachable(f"the process behind {path} is not visible from here (pid namespace)")
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        raise HypervisorUnreachable(f"process {pid} behind {path}: {error}") from None
