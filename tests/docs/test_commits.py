"""Each commit that a page names is in this history: one that was rebased since names nothing that anybody can read."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.docs.pages import PAGES, ROOT, prose

COMMIT = re.compile(r"(?<![\w.-])(?=\d*[a-f])(?=[a-f]*\d)[0-9a-f]{7}(?![\w-])")


def test_each_commit_that_is_named_is_in_the_history() -> None:
    told = subprocess.run(
        ["git", "log", "--format=%H"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    if told.returncode or (ROOT / ".git" / "shallow").exists():
        pytest.skip("no history here")
    history = {line[:7] for line in told.stdout.split()}
    named = {(page.name, commit) for page in PAGES for commit in COMMIT.findall(prose(page))}
    assert len(named) > 15
    assert sorted((page, commit) for page, commit in named if commit not in history) == []
