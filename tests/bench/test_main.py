from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import __main__ as bench
from bench.harness import BenchError, Plan


def broken(_: Plan) -> dict[str, float]:
    raise BenchError("it did not come to its end")


def sound(_: Plan) -> dict[str, float]:
    return {"seconds": 2.0}


def test_a_part_that_fails_loses_no_figure_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "PARTS", {"relay": {"cuts": broken, "stream": sound}})
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "relay"])
    assert bench.main() == 1
    assert json.loads((tmp_path / "relay.json").read_text())["figures"] == {"seconds": 2.0}
    assert "relay cuts: it did not come to its end" in capsys.readouterr().err
