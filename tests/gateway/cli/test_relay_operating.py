"""Commands on a relay's host: why its control socket says nothing, in words."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gateway.cli import relay_operating
from tests.gateway.cli.conftest import Sealane, only_error_line
from tests.gateway.cli.test_evacuation import a_relay
from tests.processes import killed_after


@pytest.mark.parametrize("command", [("relay", "status"), ("evacuation", "status")])
def test_no_socket_there(sealane: Sealane, tmp_path: Path, command: tuple[str, ...]) -> None:
    result = sealane(*command, "--socket", tmp_path / "control.sock")
    assert result.exit_code == 3
    assert "control.sock: No such file or directory; the operator must act" in only_error_line(result)


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"hello\n", "what it says is no answer of a relay"), (None, "no answer within 0 s")],
)
def test_something_else_there(
    sealane: Sealane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None, words: str
) -> None:
    path, over = tmp_path / "s", threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            if answer is not None:
                connection.sendall(answer)
            over.wait(60)

    if answer is None:
        monkeypatch.setattr(relay_operating, "_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        served = threading.Thread(target=serve)
        served.start()
        result = sealane("relay", "status", "--socket", path)
        over.set()
        served.join()
    assert result.exit_code == 3
    assert words in only_error_line(result)


def test_what_is_no_socket_and_where_nobody_listens(sealane: Sealane, tmp_path: Path) -> None:
    assert "that is no socket" in only_error_line(sealane("relay", "status", "--socket", tmp_path))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
        assert "no relay listens there" in only_error_line(sealane("relay", "status", "--socket", tmp_path / "s"))


SESSION = {
    "migration_id": "0f905d7278d41dd8ba732ef3eb2a8444", "vm": "5ea1a9e0-0000-4000-8000-000000000003", "role": "source",
    "peer": "spiffe://bank.example/host/host-b", "state": "running", "kind": "active", "pass": 2,
    "rate_bytes_per_second": 3_565_158, "carried_bytes": 27_682_406, "remaining_bytes": 105_906_176,
    "dirty_bytes_per_second": 0, "seconds_left": 29, "channels": [{}, {}],
}  # fmt: skip
STATUS = {"sessions": [SESSION], "queue": [{"migration_id": "ab" * 16, "vm": "v", "seconds": 3.2}], "draining": True}


def shown(width: int) -> list[str]:
    out = Console(file=io.StringIO(), width=width)
    out.print(relay_operating._shown(STATUS, width))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


def test_a_wide_terminal_gets_a_table() -> None:
    head, row, *_ = shown(150)
    assert " ".join(head.split()) == "migration VM to or from state rate carried left pass dirties time left lanes"
    assert "→ host-b" in row
    assert row.split()[-1] == "2"


def test_a_narrow_one_gets_each_session_on_lines_of_its_own() -> None:
    assert shown(60) == [
        "→ host-b  running",
        "  0f905d7278d41dd8ba732ef3eb2a8444",
        "  VM 5ea1a9e0-0000-4000-8000-000000000003",
        "  3.4 MiB/s, 26.4 MiB carried",
        "  left 101.0 MiB, pass 2, dirties 0 B/s",
        "  time left 29 s, lanes 2",
        f"waits, place 1: {'ab' * 16} (VM v, 3 s)",
        "draining: takes nothing new, ends with its last session",
    ]


def test_what_is_in_the_way_of_a_session_stands_below_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "the peer said '[red]no[/red]'; see that the relay of b runs"
    monkeypatch.setitem(SESSION, "message", words)
    for width in (60, 150):
        assert words in " ".join(line.strip() for line in shown(width))


def always(_: dict[str, Any]) -> dict[str, Any]:
    return STATUS


@contextmanager
def command(path: Path, *more: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    code = "from gateway.cli.main import run; run()"
    words = [sys.executable, "-c", code, "relay", "status", "--socket", str(path), *more]
    with subprocess.Popen(words, stderr=subprocess.PIPE, **options) as started, killed_after(started):
        yield started


def test_who_watches_into_a_pipe_gets_one_state_after_the_other(tmp_path: Path) -> None:
    with a_relay(tmp_path / "s", always), command(tmp_path / "s", "--watch", stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        states = (line for line in watching.stdout if b"waits, place 1" in line)
        assert len(list(islice(states, 2))) == 2
        watching.send_signal(signal.SIGINT)
        watching.stdout.read()
        assert watching.wait() == 0


def test_closed_streams_are_no_reason_for_a_traceback(tmp_path: Path) -> None:
    def close() -> None:
        os.close(0)
        os.close(1)

    with a_relay(tmp_path / "s", always), command(tmp_path / "s", preexec_fn=close) as deaf:
        assert deaf.communicate()[1] == b""
        assert deaf.returncode == 0
