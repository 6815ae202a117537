"""What systemd is told: ready, and alive; and nothing where there is none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from transport.relay import systemd


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with tempfile.TemporaryDirectory(prefix="sl") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{folder}/notify")
        sock.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{folder}/notify")
        yield sock


def test_readiness_is_told(heard: socket.socket) -> None:
    systemd.notify("READY=1")
    assert heard.recv(100) == b"READY=1"


async def test_life_is_told_at_half_the_time(
    heard: socket.socket, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    with trio.move_on_after(100):
        await systemd.keep_alive()
    messages: list[bytes] = []
    while len(messages) < 4:
        messages.append(heard.recv(100))
    assert messages == [b"WATCHDOG=1"] * 4


@pytest.mark.parametrize("address", ["", "relative", "/nobody/listens"])
async def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    systemd.notify("READY=1")
    with trio.fail_after(1):
        await systemd.keep_alive()


def test_a_socket_that_systemd_holds_is_taken_over_with_what_waits_in_it() -> None:
    program = "from transport.relay.systemd import inherited_socket as i; s = i(); print(s.accept()[1][1])"
    with socket.create_server(("127.0.0.1", 0)) as held, socket.create_connection(held.getsockname()) as waiting:
        port = waiting.getsockname()[1]
        descriptor = held.fileno()
        command = f"exec env LISTEN_PID=$$ LISTEN_FDS=1 {sys.executable} -c '{program}' 3<&{descriptor}"
        done = subprocess.run(
            ["bash", "-c", command], pass_fds=(descriptor,), capture_output=True, check=False, timeout=30, text=True
        )
    assert done.stdout.strip() == str(port), done.stderr


@pytest.mark.parametrize(("pid", "count"), [("1", "1"), ("own", "2"), ("own", "x"), ("", "")])
def test_what_is_meant_for_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch, pid: str, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()) if pid == "own" else pid)
    monkeypatch.setenv("LISTEN_FDS", count)
    assert systemd.inherited_socket() is None
