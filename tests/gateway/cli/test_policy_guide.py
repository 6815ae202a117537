"""docs/policy-guide.md, block by block as a reader would run it.

A block of `sh` is run line by line, and the last line ends with the exit code that the block names; one of `cedar` or
`yaml` is written to the file that it names; one of `output` stands in what the block before it printed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[3] / "docs" / "policy-guide.md"
BLOCK = re.compile(r"^```(\S+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", "-c", line]
    environment = {"PATH": path, "HOME": str(folder)}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False, env=environment
    )


@pytest.mark.whole
def test_every_block_of_the_guide_does_what_it_says(tmp_path: Path) -> None:
    blocks = BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    assert len(blocks) == GUIDE.read_text(encoding="utf-8").count("\n```") // 2 >= 12
    printed = ""
    for kind, argument, body in blocks:
        if kind == "sh":
            *before, last = body.splitlines()
            assert [run(line, tmp_path).returncode for line in before] == [0] * len(before)
            ended = run(last, tmp_path)
            assert ended.returncode == int(argument.removeprefix("exit=") or "0"), (last, ended.stdout, ended.stderr)
            printed = ended.stdout
        elif kind == "output":
            assert all(line in printed for line in body.splitlines()), (body, printed)
        else:
            assert kind in {"cedar", "yaml"}
            (tmp_path / argument).write_text(body, encoding="utf-8")
