"""One real post-copy migration whose network goes away for longer than sessions resume: it goes on in a new session."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from gateway.demo.machines import QEMU
from tests.transport.kinds import Kind, Seen, move
from tests.transport.relay.conftest import until
from tests.transport.relay.cutter import Network
from tests.transport.stages import Stage, stage_over_network
from transport.hypervisors.moving import How

MIB = 1 << 20
LIMITS = {"resume_seconds": 0.5, "silence_seconds": 2.0}


def _recovered(seen: Seen) -> str:
    """The source certifies the end once all of the memory has gone, and not before."""
    *interrupted, last = seen.certified
    is_told = last == "completed" and set(interrupted) == {"handed-over"}
    return "recovered" if "postcopy-paused" in seen.states() and is_told else ""


def interrupted(*, preempt: bool = False) -> Kind:
    """Slow enough to be interrupted before all of the memory has come."""
    how = How(post_copy_after_seconds=0, preempt=preempt, post_copy_bytes_per_second=4 * MIB)
    name = "post-copy, no network for too long, recovered"
    return Kind(name + (", preempt" if preempt else ""), how, _recovered, 40 * MIB, 32, 16)


async def recovered(moved: Kind, folder: Path, program: str = QEMU, *, times: int = 1) -> str:
    """Move a guest as `moved` says, interrupted so often. Raises `WrongGuest` if it is harmed, or not moved."""
    network: list[Network] = []

    async def interrupt(here: Stage) -> None:
        between = network[0]
        for each in range(1, times + 1):
            if each == 1:
                await until(lambda: any(news.state == "handing_over" for news in here.news), 60)
            enough = between.forwarded + MIB
            await until(lambda enough=enough: between.forwarded >= enough, 60)  # type: ignore[misc]
            between.is_down = True
            between.cut("lane", "control")
            await until(lambda each=each: _interruptions(here) >= each, 60)  # type: ignore[misc]
            between.is_down = False

    return await move(moved, folder, program, interrupt, partial(stage_over_network, network, LIMITS))


def _interruptions(here: Stage) -> int:
    return sum("interrupted" in news.message for news in here.news)
