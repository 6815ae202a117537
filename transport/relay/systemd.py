"""Telling systemd that the service is ready and alive (sd_notify(3), Type=notify, WatchdogSec=); elsewhere, nothing."""

from __future__ import annotations

import os
import socket

import trio

from transport.errors import ConfigurationError

_FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


def notify(message: str) -> None:
    """Send one message, such as "READY=1". Does nothing without NOTIFY_SOCKET, and never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(message.encode(), "\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        pass  # the service does its work; systemd ends what it believes dead


def inherited_socket() -> socket.socket | None:
    """The listening socket that systemd holds for us (sd_listen_fds(3), sealane-relay.socket), if it does.

    It outlives this process: what connects while a new one starts waits instead of being refused.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)  # not for our children
    os.set_inheritable(_FIRST_DESCRIPTOR, False)
    inherited = socket.socket(fileno=_FIRST_DESCRIPTOR)
    if not inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigurationError("systemd handed over a socket that does not listen: see ListenStream= of the unit")
    return inherited


async def keep_alive() -> None:
    """Ping at half of the time that systemd gives, from the event loop: one that hangs does not ping. Runs for ever."""
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        microseconds = 0
    if microseconds <= 0:
        return
    while True:
        notify("WATCHDOG=1")
        await trio.sleep(microseconds / 2_000_000)
