"""Real guests, moved over a network that is cut again and again: they count on, and their memory is what it was."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.transport.cuts import cuts_survived, resumptions
from tests.transport.kinds import KINDS, move
from tests.transport.relay.conftest import serving, until
from tests.transport.relay.cutter import Network
from tests.transport.relay.meddler import Frames, Meddler, meddling
from tests.transport.relay.test_network import MEDDLING
from tests.transport.site import Site
from tests.transport.stages import Stage, qmp_host, stage_over_network
from transport.relay import spool
from transport.relay.config import split_address

pytestmark = pytest.mark.real
NAMED = {kind.name: kind for kind in KINDS}


def _unchanged(_number: int, frame: bytes, /) -> Frames:
    return [frame]


@pytest.mark.parametrize("name", ["pre-copy, return path", "multifd 2", "post-copy", "multifd 4, lanes of TLS"])
async def test_a_guest_moves_unharmed_however_often_the_network_is_cut(short_path: Path, name: str) -> None:
    survived = await cuts_survived(short_path, NAMED[name], 10, random.Random(1))
    assert survived.cuts == 10
    assert survived.holes == 2
    assert survived.resumptions >= 5, "few cuts met a connection that was used"


async def test_a_guest_moves_unharmed_whose_frames_are_changed_on_the_way(short_path: Path) -> None:
    """Each lane that comes instead of another meets the next who changes, keeps, repeats or swaps its frames."""
    left = [MEDDLING[what] for what in MEDDLING if "fin" not in what]
    faults = len(left)
    meddle: Callable[[int, bytes], Frames] = _unchanged

    def change(number: int, frame: bytes) -> Frames:
        nonlocal meddle
        if number == 0:
            meddle = left.pop() if left else _unchanged
        return meddle(number, frame)

    @asynccontextmanager
    async def meddled(folder: Path) -> AsyncIterator[Stage]:
        site = Site.lay_out(folder)
        source, destination = (qmp_host(site, name, {"resume_seconds": 30.0}) for name in ("a", "b"))
        async with (
            serving(destination) as (_, address),
            meddling(Meddler(split_address(address, "relay"), change)) as between,
        ):
            yield Stage(site, source, between.address)

    await move(NAMED["pre-copy, return path"], short_path, within=meddled)
    assert not left
    assert resumptions(short_path) == faults


async def test_a_guest_in_post_copy_outlasts_an_answer_that_is_lost_without_a_word(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The destination starts it, and what it says of that is dropped on the way, like all else for a while."""
    limits = {"resume_seconds": 30.0, "silence_seconds": 2.0, "message_seconds": 2.0}
    network: list[Network] = []
    durable = spool._append_line

    def append_line(path: Path, entry: dict[str, Any]) -> None:
        if entry["state"] == "running":
            assert trio.from_thread.run_sync(network[0].open_hole) > 0
        durable(path, entry)

    async def come_back(here: Stage) -> None:
        await until(lambda: network[0].is_hole, 60)
        await until(lambda: any(each.is_reconnecting() for each in here.source.board.entries), 60)
        network[0].close_hole()

    monkeypatch.setattr(spool, "_append_line", append_line)
    assert await move(
        NAMED["post-copy"], short_path, meddle=come_back, within=partial(stage_over_network, network, limits)
    )


async def test_a_guest_outlasts_a_network_that_is_gone_without_a_word() -> None:
    """In a namespace of its own, whose link goes down; `make silence` does the same for 30 s."""
    command = ["unshare", "-n", sys.executable, "-m", "tests.transport.relay.silence", "guest", "5"]
    with trio.fail_after(180):
        ran = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["resumptions"] == 1
    assert told["silent_seconds"] >= 5
