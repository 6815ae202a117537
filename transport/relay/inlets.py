"""Where a source's hypervisor connects, and how each of its connections becomes a channel.

An inlet is one listening socket of one port. Connections of a port are taken one after the other, and announced in that
order: QEMU 7.2 knows its channels by order of arrival alone, and concurrent dialling broke 4 of 6
multifd migrations.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from transport.errors import LocalBroken
from transport.hypervisors.errors import HypervisorUnreachable
from transport.relay.channels import Channels

log = structlog.get_logger("sealane.relay")
Port = str  # memory, disks, libvirt, or a name of [ports]
_PEER_CREDENTIALS = struct.Struct("3i")
_BACKLOG = 16
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Inlet:
    """`allows` says whether a connection that was accepted may be carried."""

    port: Port
    listening: trio.socket.SocketType
    allows: Callable[[socket.socket], Awaitable[bool]]


class SourceLanes:
    """Takes the hypervisor's connections, of all ports, as channels, under the permit's limit."""

    def __init__(self, channels: Channels, most: int) -> None:
        self._channels = channels
        self._most = most

    async def open(self, port: Port, local: socket.socket) -> None:
        """Carry `local`, which is ours from now on, as the next channel of `port`."""
        if len(self._channels.all) >= self._most:
            local.close()
            raise LocalBroken(f"the hypervisor opened more channels than are allowed: {self._most}")
        local.setblocking(False)
        self._channels.add(port, local)

    async def wait_first(self) -> None:
        """Until there is a channel."""
        await self._channels.wait_more(0)

    async def wait_opened(self, port: Port) -> None:
        """Until there is a channel of this port."""
        while all(each.port != port for each in self._channels.counts):
            await self._channels.wait_more(len(self._channels.counts))

    async def wait_ended(self, port: Port) -> None:
        """Until all channels of this port have ended in order."""
        await self._channels.wait_ended(port)

    async def accept_forever(self, inlet: Inlet) -> None:
        refused = 0
        while True:
            try:
                accepted, _ = await inlet.listening.accept()
            except OSError:
                await trio.sleep(_PAUSE_SECONDS)  # out of descriptors: the session has its own deadline
                continue
            local = socket.socket(fileno=accepted.detach())
            if await _is_allowed(inlet, local):
                await self.open(inlet.port, local)
            else:
                local.close()
                refused += 1
                if refused & (refused - 1) == 0:  # the 1st, 2nd, 4th, …: anybody may dial, and none may fill the log
                    log.warning("session socket dialled by another process", port=inlet.port, times=refused)


async def _is_allowed(inlet: Inlet, local: socket.socket) -> bool:
    """Not if nobody can say who it is: anybody on this host may dial, and have left, so it is no reason to end. Closed
    where this is cancelled."""
    try:
        return await inlet.allows(local)
    except (OSError, HypervisorUnreachable):
        return False
    except BaseException:
        local.close()
        raise


def peer_process(local: socket.socket) -> tuple[int, int]:
    """(uid, pid) of the other end of a unix socket, as the kernel knows them."""
    pid, uid, _ = _PEER_CREDENTIALS.unpack(
        local.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    )
    return uid, pid


def peer_uid(accepted: trio.socket.SocketType) -> int:
    """As `peer_process`, of a connection that was accepted."""
    with socket.socket(fileno=os.dup(accepted.fileno())) as raw:
        return peer_process(raw)[0]


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one stream within this process. `LocalBroken` where no descriptor is left."""
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise LocalBroken(f"no socket for libvirt's channel: {error.strerror}") from None


def listen_unix(path: Path, mode: int = 0o600) -> trio.socket.SocketType:
    """A unix socket at `path` that has `mode` from its first moment; the folder is one session's own."""
    try:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Linux takes the mode from the descriptor. The umask is the process's: it would meet other threads' files.
            os.fchmod(listening.fileno(), mode)
            listening.bind(str(path))
            if mode & 0o077:  # of which the umask has taken some
                path.chmod(mode)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise LocalBroken(f"{path}: {error.strerror}") from None
    return trio.socket.from_stdlib_socket(listening)


def listen_tcp(address: str, port: int) -> trio.socket.SocketType:
    """A TCP socket on a loopback address of this host; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise LocalBroken(f"{address}:{port}: {error.strerror}") from None
    return trio.socket.from_stdlib_socket(listening)
