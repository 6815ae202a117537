"""Whose process is at the other end of a TCP connection within this host: the kernel's table says (proc_pid_net(5))."""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

import trio

_UID, _INODE = 7, 9  # columns, the number of a line being the first
_ORIGINAL_DESTINATION = 80  # SO_ORIGINAL_DST of linux/netfilter_ipv4.h
_SOCKADDR_IN = struct.Struct("!2xH4s8x")


def peer_uid(local: socket.socket) -> int | None:
    """The user id of the peer's socket; None if the table has no such connection, or nobody holds its end any more.
    Blocking. OSError.

    A socket that its owner has closed stands there as root's, without an inode, while what it sent can still be read.
    Where a rule of this host's packet filter led the peer here (docs/libvirt.md), its socket has the address that it
    dialled.
    """
    theirs, ours = _column(local.getpeername()), (_column(local.getsockname()), _dialled(local))
    table = Path("/proc/net/tcp6" if local.family == socket.AF_INET6 else "/proc/net/tcp").read_bytes()
    for name in filter(None, ours):
        if (at := table.find(f": {theirs} {name} ".encode())) >= 0:
            columns = table[at : table.index(b"\n", at)].split()
            return int(columns[_UID]) if columns[_INODE] != b"0" else None
    return None


async def find_peer_uid(local: socket.socket, turns: trio.CapacityLimiter) -> int | None:
    """`peer_uid`, in a thread: the kernel takes a fifth of a second where the host has some thousand connections, and
    any user of it can make them."""
    return await trio.to_thread.run_sync(peer_uid, local, limiter=turns)


def _dialled(local: socket.socket) -> str:
    """What the peer dialled, if it was led here from another address; "" if not."""
    if local.family != socket.AF_INET:
        return ""
    try:
        port, address = _SOCKADDR_IN.unpack(local.getsockopt(socket.SOL_IP, _ORIGINAL_DESTINATION, _SOCKADDR_IN.size))
    except OSError:  # it was not
        return ""
    return _column((socket.inet_ntoa(address), port))


def _column(name: tuple[str, int]) -> str:
    """An address as the table writes it: 32-bit words in the machine's byte order."""
    address, port = name[0], name[1]
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    words = [packed[at : at + 4] for at in range(0, len(packed), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    return f"{b''.join(words).hex().upper()}:{port:04X}"
