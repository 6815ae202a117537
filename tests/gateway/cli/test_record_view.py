"""Records in a terminal of any width."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from gateway.cli import record_view
from gateway.cli.record_view import show_records

MOVE: dict[str, Any] = {
    "time": "2026-11-26T17:48:08.123456Z",
    "kind": "migration.decision",
    "outcome": "denied",
    "actor": {"name": "Alice Production"},
    "vm": {"name": "far"},
    "source": "spiffe://bank.example/host/fra1",
    "destination": None,
    "reason": "CHG-1: \x1b[2J",
}
REVOKED = {**MOVE, "kind": "host.revoked", "vm": None, "outcome": "allowed", "reason": None}


def test_a_narrow_terminal_gets_each_record_on_lines_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(record_view, "console", lambda: Console(file=out, width=40))
    show_records([(7, MOVE), (12, REVOKED)])
    assert out.getvalue().splitlines() == [
        "7  2026-11-26 17:48:08  denied",
        "  migration.decision",
        "  Alice Production  far  fra1 → ?",
        "  CHG-1: \\x1b[2J",
        "12  2026-11-26 17:48:08  allowed",
        "  host.revoked",
        "  Alice Production  fra1",
    ]


def test_a_pipe_gets_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    show_records([(7, MOVE), (12, REVOKED)])
    heading, move, revoked = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["#", "time"]
    assert "fra1 → ?" in move
    assert revoked.split()[-3:] == ["Alice", "Production", "fra1"]
