"""One run of the guided targets at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import guided


def test_another_run_in_the_same_folder_is_refused_until_the_first_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guided, "KEPT", tmp_path / ".fuzz")
    with guided.alone(), pytest.raises(SystemExit, match="another run goes on"), guided.alone():
        pass
    with guided.alone():
        pass
