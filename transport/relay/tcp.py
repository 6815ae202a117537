"""TCP between relays: how a dead peer is noticed, and how much the kernel may hold."""

from __future__ import annotations

import fcntl
import socket
import sys
import termios

import trio

from transport.relay.tls_lane import TlsLane

_RTT_AT = 68
_NEAR_US = 500
_NEAR_SEND_BYTES, _NEAR_RECEIVE_BYTES = 1 << 19, 1 << 20  # the lesser is 8 Gb/s over half a millisecond


def tune_tcp(sock: socket.socket | trio.socket.SocketType) -> None:
    """Notice a dead peer within about half a minute; send small messages at once; hold little where little is needed.

    What the kernel buffers at the end of a migration is loaded while the guest stands still: left to grow, the buffers
    of a lane on loopback hold 10 MB, some 10 ms of downtime. On a longer way the kernel finds their size itself.
    """
    options = (
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
    )
    for level, name, value in options:
        sock.setsockopt(level, name, value)
    if _round_trip_us(sock) < _NEAR_US:
        for name, size in ((socket.SO_SNDBUF, _NEAR_SEND_BYTES), (socket.SO_RCVBUF, _NEAR_RECEIVE_BYTES)):
            sock.setsockopt(socket.SOL_SOCKET, name, size)


def notice_silence(sock: socket.socket | trio.socket.SocketType, seconds: float) -> None:
    """Of a control connection, which is never full for long: break it once the peer's kernel has been silent so long.

    The whole connection breaks with it, lanes included, and the session goes on over another.
    """
    probes = 3
    each = max(1, round(seconds / (probes + 1)))
    for name, value in (
        (socket.TCP_KEEPIDLE, each),
        (socket.TCP_KEEPINTVL, each),
        (socket.TCP_KEEPCNT, probes),
        (socket.TCP_USER_TIMEOUT, round(seconds * 1000)),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, name, value)


def _round_trip_us(sock: socket.socket | trio.socket.SocketType) -> int:
    """The kernel's own measure of a connected socket (tcpi_rtt of struct tcp_info, linux/tcp.h), microseconds."""
    information = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT_AT + 4)
    return int.from_bytes(information[_RTT_AT : _RTT_AT + 4], sys.byteorder)


def unsent_bytes(sock: socket.socket | TlsLane) -> int:
    """Of what was sent, so much has not been acknowledged by the peer's kernel."""
    return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def is_broken(sock: socket.socket | TlsLane) -> bool:
    """Whether the connection was reset or timed out, without reading from it or writing to it."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
