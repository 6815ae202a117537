"""Real guests, moved over a network that is cut again and again: they count on, and their memory is what it was."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.transport.cuts import cuts_survived
from tests.transport.kinds import KINDS

pytestmark = pytest.mark.real
NAMED = {kind.name: kind for kind in KINDS}


@pytest.mark.parametrize("name", ["pre-copy, return path", "multifd 2", "post-copy"])
async def test_a_guest_moves_unharmed_however_often_the_network_is_cut(short_path: Path, name: str) -> None:
    survived = await cuts_survived(short_path, NAMED[name], 10, random.Random(1))
    assert survived.cuts == 10
    assert survived.resumptions >= 5, "few cuts met a connection that was used"
