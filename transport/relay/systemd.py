"""Telling systemd that the service is ready and alive (sd_notify(3), Type=notify, WatchdogSec=); elsewhere, nothing."""

from __future__ import annotations

import os
import socket

import trio


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
