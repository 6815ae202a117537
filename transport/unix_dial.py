"""Connecting to a unix socket, also to one whose queue of connections is full at the moment."""

from __future__ import annotations

import socket

import trio

_QUEUE_FULL_SECONDS = 0.005


async def connect_unix(sock: socket.socket, path: str) -> None:
    """Connect a non-blocking socket; the caller has the deadline. OSError.

    To a listener whose queue is full no connection begins, and the kernel tells nobody when there is room: trio, which
    waits for the socket to be writable, would take it for connected.
    """
    while True:
        await trio.lowlevel.checkpoint()
        try:
            sock.connect(path)
        except BlockingIOError:
            await trio.sleep(_QUEUE_FULL_SECONDS)
        else:
            return


async def open_unix(path: str) -> trio.SocketStream:
    """As `connect_unix`, of a socket of its own."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        await connect_unix(sock, path)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
