"""Pages of docs, block by block as a reader would run them.

A block of `sh` is run line by line, and the last line ends with the exit code that the block names; one that is to run
in the `background` is a gateway, and waited for; one of `cedar` or `yaml` is written to the file that it names; one of
`output` stands in what the block before it printed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.peers import free_port

DOCS = Path(__file__).parents[3] / "docs"
BLOCK = re.compile(r"^```(\S+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Reader:
    """Somebody at a shell, in an empty folder that is their home."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(folder)}
        self.started: list[subprocess.Popen[bytes]] = []

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", line]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=240, check=False
        )

    def serve(self, line: str) -> None:
        with (self.folder / "out").open("wb") as out, (self.folder / "errors").open("wb") as errors:
            command = ["bash", "-c", f"exec {line}"]
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=errors)
        self.started.append(process)
        deadline = time.monotonic() + 120
        while b'"ready": true' not in (self.folder / "out").read_bytes():
            assert process.poll() is None, (self.folder / "errors").read_text()
            assert time.monotonic() < deadline, "it does not get ready"
            time.sleep(0.05)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    for process in reader.started:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("page", "begins", "at_least"),
    [("policy-guide.md", "# ", 24), ("certificates.md", "## To practise it", 7)],
)
def test_every_block_of_a_page_does_what_it_says(reader: Reader, page: str, begins: str, at_least: int) -> None:
    whole = (DOCS / page).read_text(encoding="utf-8")
    text = whole[whole.index(begins) :]
    blocks = BLOCK.findall(text.replace("127.0.0.1:8443", f"127.0.0.1:{free_port()}"))
    assert len(blocks) == text.count("\n```") // 2 >= at_least
    printed = ""
    for kind, argument, body in blocks:
        if kind == "output":
            assert all(line.strip() in printed for line in body.splitlines()), (body, printed)
        elif argument == "background":
            reader.serve(body.strip())
        elif kind == "sh":
            *before, last = body.splitlines()
            for line in before:
                done = reader.run(line)
                assert done.returncode == 0, (line, done.stdout, done.stderr)
            ended = reader.run(last)
            assert ended.returncode == int(argument.removeprefix("exit=") or "0"), (last, ended.stdout, ended.stderr)
            printed = ended.stdout
        else:
            assert kind in {"cedar", "yaml"}
            (reader.folder / argument).write_text(body, encoding="utf-8")
