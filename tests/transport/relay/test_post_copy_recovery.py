"""Post-copy that was interrupted for good, by the network or a relay's death: it goes on in a new session, and the
guest is unharmed."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.demo.guest import count_passes, memory_problems
from gateway.demo.machines import dump_region, let_run
from policy.permit import Limits
from tests.transport.kinds import KINDS, move
from tests.transport.recoveries import MIB, interrupted, recovered
from tests.transport.relay.conftest import until
from tests.transport.relay.test_handover import (
    LAYOUT,
    VM,
    Machines,
    RelayProcess,
    machines,
    relay,
    require_one_guest,
    wait_one_place,
    write_config,
)
from tests.transport.site import Site

pytestmark = pytest.mark.real
__all__ = ["machines"]  # a fixture
NAMED = {kind.name: kind for kind in KINDS}
HOW = '{"post_copy_after_seconds": 0, "post_copy_bytes_per_second": 4194304}'


@pytest.mark.parametrize("preempt", [False, True], ids=["one connection", "preempt"])
async def test_a_guest_is_recovered_whose_network_was_away_for_too_long(short_path: Path, preempt: bool) -> None:
    assert (await recovered(interrupted(preempt=preempt), short_path)).startswith("recovered")
    assert certified_at_destination(short_path) == [(False, True), (True, False)]


@pytest.mark.parametrize("name", ["post-copy", "post-copy, preempt, capped", "post-copy, lanes of TLS"])
async def test_a_destination_certifies_that_memory_is_lacking_only_where_it_is(short_path: Path, name: str) -> None:
    await move(NAMED[name], short_path)
    assert certified_at_destination(short_path) == [(False, False)]


def certified_at_destination(folder: Path) -> list[tuple[bool, bool]]:
    """Of each receipt: whether it is of a recovery, and whether memory had not come."""
    files = (folder / "relay-b" / "receipts").glob("*-destination*")
    bodies = [json.loads(json.loads(each.read_bytes())["receipt"]["body"]) for each in files]
    assert all(body["outcome"] == "running" for body in bodies)
    return sorted((body.get("recovery", False), body.get("lacks_memory", False)) for body in bodies)


async def _told(running: RelayProcess, state: str) -> None:
    await until(lambda: any(line.startswith(state) for line in running.lines("news")), 40)


async def test_a_guest_is_recovered_whose_source_relay_died_and_came_back(site: Site, machines: Machines) -> None:
    await recovers_after_a_death(site, machines, "source")


async def recovers_after_a_death(site: Site, machines: Machines, who: str) -> None:
    permit = site.folder / "permit.jwt"
    permit.write_text(site.permit(vm=VM, limits=Limits(max_channels=16, bandwidth_bytes_per_second=40 * MIB)))
    configs = {name: write_config(site, name) for name in ("a", "b")}
    before, after = site.folder / "before", site.folder / "after"
    await dump_region(machines.source, before, LAYOUT)
    await let_run(machines.source)
    async with AsyncExitStack() as running:
        at_b = await running.enter_async_context(relay(configs["b"]))
        address = at_b.address
        at_a = await running.enter_async_context(relay(configs["a"], "never", str(permit), address, HOW))
        await _told(at_a, "handing_over")
        # Before it counts there, the devices' state may die with the relay, and the guest with it (docs/failures.md).
        await until(lambda: bool(machines.destination.printed()), 40)
        victim, config = (at_a, configs["a"]) if who == "source" else (at_b, write_config(site, "b", address))
        victim.process.kill()
        victim.process.wait()
        await running.enter_async_context(relay(config, "never"))
        assert await wait_one_place(site, machines, 150) == "destination"
        await require_one_guest(machines, "destination")
        printed = machines.source.printed()
        printed += await dump_region(machines.destination, after, LAYOUT)
    assert not memory_problems(before, after, LAYOUT, count_passes(printed))
