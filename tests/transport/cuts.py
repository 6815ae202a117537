"""One real migration, its network cut at random moments: `python -m bench relay --only cuts`."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.transport.kinds import Kind, move
from tests.transport.relay.conftest import until
from tests.transport.relay.cutter import Network
from tests.transport.stages import Stage, stage_over_network

MIB = 1 << 20
LIMITS = {"resume_seconds": 30.0, "silence_seconds": 2.0}
KINDS: list[tuple[Any, ...]] = [("lane",), ("control",), ("lane", "control")]
HOLE_SECONDS = (0.5, 4.0)  # some shorter than LIMITS' silence_seconds, most longer
_BYTES_BETWEEN = 100_000
_SECONDS_BETWEEN = 20.0
_SECONDS_A_CUT = 12  # a hole takes some 30: then the kernel gives up a connection on which nothing is taken


@dataclass(frozen=True, slots=True)
class Survived:
    """Of one migration that came to its end with the guest unharmed. A cut may meet a connection that is being made,
    so there are fewer resumptions than cuts. `holes`: of the cuts, those that were silence alone."""

    cuts: int
    holes: int
    resumptions: int
    evidence: str


async def cuts_survived(folder: Path, kind: Kind, cuts: int, chance: random.Random, *, every_hole: int = 5) -> Survived:
    """Move a guest as `kind` says, slowly, with so many cuts. Raises `WrongGuest` if it is harmed, or not moved.

    Every so many cuts is a hole: packets are dropped for a while, with no reset, and connections that are made wait.
    """
    seconds = 60 + _SECONDS_A_CUT * cuts
    until_then = int(time.time()) + seconds
    times = {"session_until": until_then, "recover_until": until_then}
    slow = replace(
        kind, bandwidth=24 * MIB, memory_mib=96, hot_mib=min(kind.hot_mib, 4), claims=dict(kind.claims) | times
    )
    network: list[Network] = []
    made = holes = 0

    async def cut(_: Stage) -> None:
        nonlocal made, holes
        between = network[0]
        while made < cuts:
            enough = between.forwarded + chance.randrange(1, _BYTES_BETWEEN)
            with trio.move_on_after(_SECONDS_BETWEEN):
                await until(lambda enough=enough: between.forwarded >= enough, 2 * _SECONDS_BETWEEN)  # type: ignore[misc]
            if (made + 1) % every_hole == 0:
                met = bool(between.open_hole())
                made, holes = made + met, holes + met
                await trio.sleep(chance.uniform(*HOLE_SECONDS))
                between.close_hole()
                continue
            made += bool(chance.choice([between.cut, between.cut_near])(*chance.choice(KINDS)))

    evidence = await move(
        slow, folder, meddle=cut, within=partial(stage_over_network, network, LIMITS), seconds=seconds
    )
    return Survived(made, holes, resumptions(folder), evidence)


def resumptions(folder: Path) -> int:
    """How often the one session was resumed, by the source's receipt."""
    (receipt,) = (folder / "relay-a" / "receipts").glob("*-source*")
    return int(json.loads(json.loads(receipt.read_bytes())["receipt"]["body"])["resumptions"])
