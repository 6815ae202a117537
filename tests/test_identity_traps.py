"""docs/identity-traps.md names a test for each trap: each of them must exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "identity-traps.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)?::(test_\w+)`")
ROW = re.compile(r"^\| (?!trap \||---)(.+) \| (.+) \|$", re.MULTILINE)


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_trap_has_a_test_that_exists() -> None:
    rows = ROW.findall(PAGE.read_text(encoding="utf-8").replace("|---|---|\n", ""))
    assert len(rows) > 40
    missing = []
    for trap, tests in rows:
        named = NAMED.findall(tests)
        assert named, f"no test is named for: {trap}"
        file = ""
        for where, name in named:
            file = where or file
            if name not in names_in(file):
                missing.append(f"{file}::{name}")
    assert missing == []


def test_no_test_takes_a_mock_directory_for_evidence() -> None:
    mock = "MOCK_" + "SYNC"
    users = [file for file in (ROOT / "tests").rglob("*.py") if mock in file.read_text(encoding="utf-8")]
    assert [file for file in users if "node_modules" not in file.parts and file.name != Path(__file__).name] == []
