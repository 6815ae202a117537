"""A bar for a person who waits at a terminal, and lines for whoever reads a pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.cli import waiting
from gateway.cli.progress import counted_on, progress_bar
from gateway.starter import EXAMPLE_BUNDLE
from tests.processes import killed_after


def test_everything_passes_and_the_bar_ends_full() -> None:
    told: list[tuple[int, int]] = []
    assert list(counted_on(range(150), lambda done, total: told.append((done, total)), 150)) == list(range(150))
    assert told == [(0, 150), (64, 150), (128, 150), (150, 150)]


@pytest.mark.parametrize("quiet", [False, True])
def test_a_pipe_gets_a_line_at_the_start_and_then_how_far_it_is(
    quiet: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "NOTICE_SECONDS", 0.0)
    monkeypatch.setattr(waiting, "AGAIN_SECONDS", 0.01)
    said = ""
    with progress_bar("verifying the log", quiet=quiet) as progress:  # stderr is no terminal here
        assert progress is not None
        progress(1024, 5000)
        end = time.monotonic() + 60
        while "5000\n" not in said:  # a line without a number may come before
            assert time.monotonic() < end
            time.sleep(0.001)
            said += capsys.readouterr().err
    first, *_ = said.splitlines()
    assert first == "verifying the log …"
    assert re.search(r"^verifying the log: \d+ s so far, 1024 of 5000$", said, re.MULTILINE)
    assert said.replace("\n", "").isprintable()


def test_what_is_done_at_once_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("verifying the log", quiet=False):
        pass
    assert capsys.readouterr().err == ""


def test_somebody_who_waits_for_a_diff_at_a_terminal_sees_how_far_it_is(tmp_path: Path) -> None:
    bundle = str(EXAMPLE_BUNDLE)
    leader, terminal = os.openpty()
    code = "import sys; from gateway.cli.main import run; sys.argv[0] = 'sealane'; run()"
    words = [sys.executable, "-c", code, "policy", "diff", bundle, bundle]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[3])}
    shown, said = b"", tmp_path / "said"
    with said.open("wb") as output, subprocess.Popen(words, stdout=output, stderr=terminal, env=environment) as process:
        os.close(terminal)
        with killed_after(process, 120), suppress(OSError):  # nobody holds the terminal any more
            while piece := os.read(leader, 65536):  # while it runs: a terminal holds little that nobody reads
                shown += piece
        with killed_after(process):
            process.wait()
    os.close(leader)
    assert process.returncode == 0
    asked = int(said.read_bytes().split(b" requests")[0].split()[-1])
    assert f"{asked}/{asked}".encode() in shown, shown[-300:]
    assert b"deciding requests" in shown
    assert b"0/100" not in shown, "nobody had counted yet"
