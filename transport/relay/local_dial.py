"""Connecting to a local hypervisor's socket, and seeing that it is the expected process that listens there."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import trio

from transport.errors import LocalBroken, NobodyListens
from transport.relay.inlets import peer_process
from transport.unix_dial import connect_unix

# The kernel's default holds a fifth of a frame: five waits for the hypervisor where two do. What lies here when the
# guest is stopped is loaded while it stands still, so it is no more than this.
_LOCAL_BUFFER_BYTES = 256 * 1024


async def dial_unix(path: Path, seconds: float, is_expected: Callable[[int], bool]) -> socket.socket:
    """A non-blocking socket. `is_expected` is told the listener's process id; `LocalBroken` where it is another's."""
    local = _socket(socket.AF_UNIX)
    try:
        with trio.fail_after(seconds):
            await connect_unix(local, str(path))
        _, pid = peer_process(local)
        if not is_expected(pid):
            raise LocalBroken(f"process {pid} listens on {path} in place of the VM's")
    except (OSError, trio.TooSlowError):
        local.close()
        raise NobodyListens(f"nobody takes a connection on {path}") from None
    except BaseException:
        local.close()
        raise
    local.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOCAL_BUFFER_BYTES)
    return local


async def dial_loopback(address: str, port: int, seconds: float) -> socket.socket:
    """A non-blocking socket of TCP to a program on this host. `NobodyListens`."""
    sock = trio.socket.from_stdlib_socket(_socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
    try:
        with trio.fail_after(seconds):
            await sock.connect((address, port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, trio.TooSlowError):
        sock.close()
        raise NobodyListens(f"nothing takes a connection on {address} port {port}") from None
    except BaseException:  # cancelled
        sock.close()
        raise
    local = socket.socket(fileno=sock.detach())
    local.setblocking(False)
    return local


def _socket(family: int) -> socket.socket:
    """Non-blocking."""
    try:
        local = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:  # out of descriptors, which another peer may have seen to
        raise LocalBroken(f"no socket for the hypervisor or program: {error.strerror}") from None
    local.setblocking(False)
    return local
