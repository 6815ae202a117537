"""Real guests, moved over a network that is cut again and again: they count on, and their memory is what it was."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest
import trio

from tests.transport.cuts import cuts_survived
from tests.transport.kinds import KINDS

pytestmark = pytest.mark.real
NAMED = {kind.name: kind for kind in KINDS}


@pytest.mark.parametrize("name", ["pre-copy, return path", "multifd 2", "post-copy"])
async def test_a_guest_moves_unharmed_however_often_the_network_is_cut(short_path: Path, name: str) -> None:
    survived = await cuts_survived(short_path, NAMED[name], 10, random.Random(1))
    assert survived.cuts == 10
    assert survived.holes == 2
    assert survived.resumptions >= 5, "few cuts met a connection that was used"


async def test_a_guest_outlasts_a_network_that_is_gone_without_a_word() -> None:
    """In a namespace of its own, whose link goes down; `make silence` does the same for 30 s."""
    command = ["unshare", "-n", sys.executable, "-m", "tests.transport.relay.silence", "guest", "5"]
    with trio.fail_after(180):
        ran = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["resumptions"] == 1
    assert told["silent_seconds"] >= 5
