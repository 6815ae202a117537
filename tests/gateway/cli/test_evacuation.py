"""`sealane evacuation status` and `sealane migrate --evacuation`, beside a relay that says what a test wants it to."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import evacuation
from tests.gateway.cli.conftest import CannedGateway, Sealane, only_error_line

HOST_B, HOST_C = "spiffe://bank.example/host/b", "spiffe://bank.example/host/c"
MOVE = {
    "migration_id": "ab" * 16, "vm": "v", "destination": HOST_B, "state": "running", "message": "", "downtime_ms": None,
    "transferred_bytes": 0, "remaining_bytes": 0,
}  # fmt: skip
Answer = Callable[[dict[str, Any]], dict[str, Any]]


@contextmanager
def a_relay(path: Path, answer: Answer) -> Iterator[list[str]]:
    """Its control socket; what it was asked."""
    asked: list[str] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    line = connection.recv(4096)
                    if line == b"end":
                        return
                    question = json.loads(line)
                    asked.append(question["ask"])
                    connection.sendall(json.dumps(answer(question)).encode() + b"\n")

        served = threading.Thread(target=serve)
        served.start()
        try:
            yield asked
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
                last.sendall(b"end")
            served.join()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evacuation, "_LOOK_SECONDS", 0.01)


def test_ctrl_c_has_the_relay_give_it_up_and_waits_for_the_outcome(sealane: Sealane, tmp_path: Path) -> None:
    """As it does where a gateway moves a VM; the command ended at once, and the guest left."""

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        if question["ask"] == "cancel":
            return {"cancelled": True}
        if question["ask"] == "evacuated" and "cancel" in relay:
            return {**MOVE, "state": "cancelled", "message": "the migration was cancelled on request."}
        if question["ask"] == "evacuated":
            os.kill(os.getpid(), signal.SIGINT)
        return MOVE

    with a_relay(tmp_path / "s", answer) as relay:
        result = sealane("migrate", "web-1", "--evacuation", "--socket", tmp_path / "s")
    assert result.exit_code == 1
    assert relay.count("cancel") == 1
    assert result.stdout.splitlines() == [
        "web-1 leaves for b by an evacuation permit",
        f"  migration   {'ab' * 16}",
        "cancelled: the migration was cancelled on request",
        "  receipts    go to the log when a gateway is back",
        "  next        the same without --to tries the next destination that a permit is left for",
    ]
    assert "Asked the relay to give it up" in result.stderr


def test_a_move_that_is_followed_no_longer_is_told_to_go_on(sealane: Sealane, tmp_path: Path) -> None:
    with a_relay(tmp_path / "s", lambda _: MOVE):
        result = sealane("migrate", "web-1", "--evacuation", "--socket", tmp_path / "s", "--wait-seconds", "1")
    assert result.exit_code == 1
    line = only_error_line(result)
    assert f"migration {'ab' * 16} is not followed to its end, and goes on as far as it can: it has not ended" in line
    assert "see `sealane relay status`" in line


def test_a_relay_that_was_restarted_meanwhile_leaves_the_id_and_where_to_look(sealane: Sealane, tmp_path: Path) -> None:
    def answer(question: dict[str, Any]) -> dict[str, Any]:
        return MOVE if question["ask"] == "evacuate" else {"refused": "this relay knows of no such move"}

    with a_relay(tmp_path / "s", answer):
        result = sealane("migrate", "web-1", "--evacuation", "--socket", tmp_path / "s", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout.splitlines()[-1])["error"]
    assert "ab" * 16 in error["message"]
    assert "this relay knows of no such move" in error["message"]


@pytest.mark.parametrize("more", [("--reason", "CHG-1"), ("--auto-converge",), ("--downtime-limit-ms", "50")])
def test_what_was_decided_beforehand_is_not_asked_for_in_vain(
    sealane: Sealane, tmp_path: Path, more: tuple[str, ...]
) -> None:
    with a_relay(tmp_path / "s", lambda _: MOVE) as asked:
        result = sealane("migrate", "web-1", "--evacuation", "--socket", tmp_path / "s", *more)
    assert result.exit_code == 2
    assert "--evacuation was decided beforehand" in only_error_line(result)
    assert asked == []


def test_status_says_what_was_used_in_vain_and_what_is_over(sealane: Sealane, tmp_path: Path) -> None:
    vm = {"vm": "v", "name": "web-1", "destinations": [HOST_B, HOST_C], "sent_to": HOST_C, "spent": [HOST_B]}
    held = [
        {"evacuation_id": "e", "seconds_left": 30, "vms": [vm]},
        {"evacuation_id": "f", "seconds_left": 0, "vms": []},
    ]
    with a_relay(tmp_path / "s", lambda _: {"evacuations": held}):
        result = sealane("evacuation", "status", "--socket", tmp_path / "s")
    assert result.stdout.splitlines() == [
        "evacuation e, 1 minute left",
        "  web-1 (v) to b (used in vain), c; sent to c",
        "evacuation f, its hours are over",
    ]


def test_a_gateway_that_waits_for_the_relay_is_heard_out(
    sealane: Sealane, home: Path, logged_in: CannedGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a relay that hung it said after 30 s that it holds no permits: the command had given it up by then."""
    file = home / ".config" / "sealane" / "client.toml"
    file.write_text(file.read_text() + "timeout_seconds = 1\n")
    refusal = {
        "error": {"code": "relay_unreachable", "message": "a does not hold the permits", "who_must_act": "operator"}
    }
    logged_in.answer("POST", "/v1/evacuations", (503, refusal))
    answer = logged_in.take

    def late(method: str, path: str) -> tuple[int, Any]:
        time.sleep(1.5)
        return answer(method, path)

    monkeypatch.setattr(logged_in, "take", late)
    assert "a does not hold the permits" in only_error_line(sealane("evacuation", "prepare", "a"))
