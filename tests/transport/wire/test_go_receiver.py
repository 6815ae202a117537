"""Go code written from docs/wire-protocol.md alone (tests/interop) decodes our vectors, and refuses what we refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.go_tools import run_go

SOURCES = Path(__file__).parents[2] / "interop"


@pytest.mark.real
def test_go_decodes_the_vectors_and_the_recorded_session() -> None:
    run_go(SOURCES, "test", "-buildvcs=false", "-count=1", ".")
