"""The demo as a user runs it: the command, its last line, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.telling import Findings

pytestmark = pytest.mark.real

SEALANE = [sys.executable, "-c", "from gateway.cli.main import run; run()", "demo", "--json"]
DEADLINE_SECONDS = 240


@contextmanager
def started_demo(temporary: Path) -> "Iterator[subprocess.Popen[str]]":
    with subprocess.Popen(
        SEALANE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        start_new_session=True,
    ) as demo:
        try:
            yield demo
        finally:
            demo.terminate()  # it ends its own processes then


def outcome_of(demo: "subprocess.Popen[str]") -> tuple[int, dict[str, Any], str]:
    """Exit code, the object on the last line, and all that it said to a person."""
    out, said = demo.communicate(timeout=DEADLINE_SECONDS)
    return demo.returncode, json.loads(out.splitlines()[-1]), said


def processes_in(folder: Path) -> list[str]:
    """Command lines of processes that name a path in `folder`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if str(folder).encode() in line:
            found.append(line.decode(errors="replace"))
    return found


@pytest.fixture
def temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="t-") as folder:  # shorter than tmp_path: unix sockets lie in it
        yield Path(folder)


def test_everything_that_sealane_promises_holds_and_nothing_is_left_behind(temporary: Path) -> None:
    with started_demo(temporary) as demo:
        code, document, said = outcome_of(demo)
    assert code == 0, said
    found = Findings(**document)
    assert found.holds
    assert found.bytes > 100 << 20
    assert 0 < found.downtime_ms < found.seconds * 1000
    assert list(temporary.iterdir()) == []
    assert processes_in(temporary) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_ends_its_processes_and_removes_its_folder(temporary: Path, number: int) -> None:
    with started_demo(temporary) as demo:
        end = time.monotonic() + DEADLINE_SECONDS
        while not any("qemu-system" in line for line in processes_in(temporary)):
            assert demo.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        demo.send_signal(number)
        code, document, said = outcome_of(demo)
    assert (code, document["outcome"]) == (130, "failed"), said
    assert processes_in(temporary) == []
    assert list(temporary.iterdir()) == []


def test_without_qemu_it_says_what_to_install(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = temporary / "bin"
    programs.mkdir()
    for name in ("as", "ld"):
        (programs / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(programs))
    with started_demo(temporary) as demo:
        code, document, said = outcome_of(demo)
    assert (code, document["error"]["who_must_act"]) == (1, "operator"), said
    assert "qemu-system-x86" in document["error"]["message"]
    assert list(temporary.iterdir()) == [programs]
