"""One guest, in one place: real QEMUs, and relay processes that are killed while a move that has failed is undone.

`test_handover` has those of a move that succeeds, `test_every_death` each death of one relay with each of the other,
whose hypervisors are a model.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from policy.permit import Limits
from tests.transport.relay.conftest import until
from tests.transport.relay.test_handover import (
    VM,
    Machines,
    RelayProcess,
    machines,
    relay,
    require_one_guest,
    wait_one_place,
    wait_states,
    write_config,
)
from tests.transport.site import Site

pytestmark = pytest.mark.real
__all__ = ["machines"]  # a fixture
GIVEN_UP = '{"converge_within_seconds": 1, "downtime_limit_ms": 1}'
SLOW = Limits(max_channels=16, bandwidth_bytes_per_second=1 << 20)
# Who dies when, and the run states at the source and the destination while it is dead.
UNDER_WAY, KEPT, NOWHERE = ("running", "inmigrate"), ("running", "gone"), ("postmigrate", "gone")
OF_ONE_THAT_IS_GIVEN_UP = [
    ("a", "before:abandoned", UNDER_WAY),
    ("a", "after:abandoned", UNDER_WAY),
    ("a", "before:resumed", UNDER_WAY),
    ("a", "after:resumed", UNDER_WAY),
    ("a", "before:ended", KEPT),
    ("b", "before:discarded", KEPT),
    ("b", "after:discarded", KEPT),
]
OF_ONE_THAT_IS_LOST_AT_THE_DESTINATION = [
    ("a", "before:outcome-discarded", NOWHERE),
    ("a", "after:outcome-discarded", NOWHERE),
    ("b", "before:discarded", NOWHERE),
    ("b", "after:discarded", NOWHERE),
]


@pytest.mark.parametrize(("who", "moment", "at_once"), OF_ONE_THAT_IS_GIVEN_UP)
async def test_a_relay_is_killed_when_a_move_is_given_up(
    site: Site, machines: Machines, who: str, moment: str, at_once: tuple[str, str]
) -> None:
    permit = site.folder / "permit"
    permit.write_text(site.permit(vm=VM, limits=SLOW))
    moments = {"a": "never", "b": "never"} | {who: moment}
    async with relay(write_config(site, "b"), moments["b"]) as destination:
        begin = str(permit), destination.address, GIVEN_UP
        async with relay(write_config(site, "a"), moments["a"], *begin) as source:
            await goes_on_at_the_source(site, machines, {"a": source, "b": destination}, who, at_once)


@pytest.mark.parametrize(("who", "moment", "at_once"), OF_ONE_THAT_IS_LOST_AT_THE_DESTINATION)
async def test_a_relay_is_killed_when_the_destination_has_lost_the_guest(
    site: Site, machines: Machines, who: str, moment: str, at_once: tuple[str, str]
) -> None:
    """It was whole there, and then its QEMU has died."""
    permit = site.folder / "permit"
    permit.write_text(site.permit(vm=VM))
    moments = {"a": "never", "b": "never"} | {who: moment}
    async with relay(write_config(site, "b"), moments["b"]) as destination:
        begin = str(permit), destination.address
        async with relay(write_config(site, "a"), f"stop-before:handed-over,{moments['a']}", *begin) as source:
            await until(lambda: is_stopped(source.process.pid), 90)
            machines.destination.process.kill()
            os.kill(source.process.pid, signal.SIGCONT)
            await goes_on_at_the_source(site, machines, {"a": source, "b": destination}, who, at_once)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def goes_on_at_the_source(
    site: Site, machines: Machines, relays: dict[str, RelayProcess], who: str, at_once: tuple[str, str]
) -> None:
    address = relays["b"].address
    await until(lambda: relays[who].process.poll() is not None, 90)
    await wait_states(machines, at_once)
    async with relay(write_config(site, who, address if who == "b" else "127.0.0.1:0"), "anew"):
        assert await wait_one_place(site, machines) == "source"
        await wait_states(machines, KEPT)
        await require_one_guest(machines, "source")
