"""Whoever reads stderr is told whom a command waits for, and what Ctrl-C left behind."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import interruption, waiting
from gateway.cli.interruption import interrupted_line
from tests.gateway.cli.conftest import ALLOWED, MIGRATION, CannedGateway

PROGRAM = "from gateway.cli import waiting; waiting.NOTICE_SECONDS = 0.05; from gateway.cli.main import run; run()"
PATIENCE_SECONDS = 60


class AtATerminal:
    """A command whose stderr is a terminal of 40 columns."""

    def __init__(self, home: Path, *arguments: object) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            env={"HOME": str(home), "COLUMNS": "40", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
        )
        os.close(theirs)
        self.said = ""

    def read_until(self, words: str) -> str:
        while words not in self.said:
            part = self._read()
            assert part, self.said
        return self.said

    def _read(self) -> str:
        assert select.select([self._ours], [], [], PATIENCE_SECONDS)[0], self.said
        try:
            part = os.read(self._ours, 4096).decode()
        except OSError:  # EIO: the last one at the other side is gone
            return ""
        self.said += part
        return part

    def end(self) -> tuple[int, str]:
        while self._read():
            pass
        return self.process.wait(PATIENCE_SECONDS), self.said

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_SECONDS)
        os.close(self._ours)


@pytest.fixture
def at_a_terminal(home: Path) -> Iterator[Callable[..., AtATerminal]]:
    begun: list[AtATerminal] = []

    def begin(*arguments: object) -> AtATerminal:
        begun.append(AtATerminal(home, *arguments))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """Takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_who_waits_for_a_mute_gateway_is_told_so_and_may_leave(
    logged_in: CannedGateway, mute: socket.socket, home: Path, at_a_terminal: Callable[..., AtATerminal]
) -> None:
    url = f"https://127.0.0.1:{mute.getsockname()[1]}"
    token = home / ".config" / "sealane" / "token.json"
    token.write_text(token.read_text().replace(logged_in.url, url))
    command = at_a_terminal("whoami", "--gateway", url, "--ca", logged_in.ca)
    assert f"waiting for {url}, until " in command.read_until("at the latest")
    command.process.send_signal(signal.SIGINT)
    code, said = command.end()
    assert code == 130
    assert said.splitlines()[-1] == "sealane: interrupted before its end; no file is left half-written"


def test_who_waits_for_a_mute_relay_is_told_so(tmp_path: Path, at_a_terminal: Callable[..., AtATerminal]) -> None:
    with socket.socket(socket.AF_UNIX) as relay:
        relay.bind(str(tmp_path / "control.sock"))
        relay.listen()
        command = at_a_terminal("relay", "status", "--socket", tmp_path / "control.sock")
        command.read_until("waiting for this host's relay, until ")
        command.process.send_signal(signal.SIGINT)
        assert command.end()[0] == 130


def test_what_answers_at_once_is_not_waited_for(capsys: Any) -> None:
    with waiting.waiting_for("it", 5):
        pass
    assert capsys.readouterr().err == ""


def test_a_change_that_was_asked_for_may_have_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_asked", [])
    assert "no file is left half-written" in interrupted_line()
    interruption.note_change_asked("the gateway")
    assert "the gateway may have done what it was asked for" in interrupted_line()


def test_a_migration_into_a_pipe_says_how_far_it_is(logged_in: CannedGateway, home: Path) -> None:
    logged_in.answer(
        "POST", "/v1/migrations", (201, {"migration_id": MIGRATION, "record_index": 9, "decision": ALLOWED})
    )
    running = {"migration_id": MIGRATION, "state": "running", "progress": {"remaining_bytes": 50, "total_bytes": 100}}
    done = {"migration_id": MIGRATION, "state": "failed", "message": "the guest has gone"}
    logged_in.answer("GET", f"/v1/migrations/{MIGRATION}", *[(200, running)] * 8, (200, done))
    program = f"from gateway.cli import waiting; waiting.AGAIN_SECONDS = 0.05; {PROGRAM}"
    ended = subprocess.run(
        [sys.executable, "-c", program, "migrate", "web-1", "--to", "host-b", "--json"],
        env={"HOME": str(home), "TZ": "UTC"}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert json.loads(ended.stdout)["outcome"] == "failed"
    assert "the migration is under way …\n" in ended.stderr
    assert "running  50 B remaining\n" in ended.stderr
    assert ended.stderr.replace("\n", "").isprintable()
