"""Recovery of a post-copy one of whose relays dies. Not in `make test`: where QEMU hangs on a missing page then, it
may not come to its end within the deadline (docs/failures.md); whether it does is chance. `make recovery` runs it.
"""

from __future__ import annotations

import signal
from contextlib import AsyncExitStack
from functools import partial

import pytest

from gateway.demo.guest import build_boot_image, count_passes, memory_problems
from gateway.demo.machines import dump_region, let_run, start_qemu, stop_qemu, wait_passes
from policy.permit import Limits
from tests.transport.kinds import NEWEST
from tests.transport.recoveries import MIB
from tests.transport.relay.conftest import until
from tests.transport.relay.test_handover import (
    LAYOUT,
    MEMORY_MIB,
    VM,
    Machines,
    machines,
    relay,
    require_one_guest,
    wait_one_place,
    write_config,
)
from tests.transport.relay.test_post_copy_recovery import HOW, recovers_after_a_death
from tests.transport.site import Site

pytestmark = pytest.mark.real
__all__ = ["machines"]  # a fixture
ANY = "127.0.0.1:0"


async def test_a_guest_is_recovered_whose_destination_relay_died_and_came_back(site: Site, machines: Machines) -> None:
    await recovers_after_a_death(site, machines, "destination")


async def test_a_source_relay_that_dies_as_it_gives_the_guest_away_recovers_it(site: Site, machines: Machines) -> None:
    permit = site.folder / "permit.jwt"
    permit.write_text(site.permit(vm=VM, limits=Limits(max_channels=16, bandwidth_bytes_per_second=40 * MIB)))
    async with relay(write_config(site, "b")) as at_b:
        config = write_config(site, "a")
        async with relay(config, "before:outcome-running", str(permit), at_b.address, HOW) as at_a:
            await until(lambda: at_a.process.poll() is not None, 40)
            assert at_a.process.returncode == -signal.SIGKILL
        async with relay(config):
            assert await wait_one_place(site, machines, 150) == "destination"
            await require_one_guest(machines, "destination")


@pytest.mark.parametrize(
    ("who", "moment"),
    [
        *(("a", moment) for moment in ("before:handed-over", "after:handed-over")),
        *(("a", moment) for moment in ("before:outcome-running", "after:outcome-running")),
        *(("b", moment) for moment in ("before:running", "after:running", "before:started", "after:started")),
    ],
)
async def test_the_newest_qemu_outlasts_the_death_of_either_relay_at_each_moment(
    site: Site, who: str, moment: str
) -> None:
    image = build_boot_image(LAYOUT, site.folder)
    start = partial(start_qemu, uuid=VM, memory_mib=MEMORY_MIB, image=image, program=str(NEWEST))
    before, after = site.folder / "before", site.folder / "after"
    async with AsyncExitStack() as stack:
        source = await start(site.folder / "qa" / VM)
        stack.push_async_callback(stop_qemu, source)
        destination = await start(site.folder / "qb" / VM, incoming=True)
        stack.push_async_callback(stop_qemu, destination)
        newest = Machines(source, destination)
        await wait_passes(source, 3)
        await dump_region(source, before, LAYOUT)
        await let_run(source)
        permit = site.folder / "permit.jwt"
        permit.write_text(site.permit(vm=VM, limits=Limits(max_channels=16, bandwidth_bytes_per_second=40 * MIB)))
        moments = {"a": "never", "b": "never"} | {who: moment}
        at_b = await stack.enter_async_context(relay(write_config(site, "b"), moments["b"]))
        begin = str(permit), (address := at_b.address), HOW
        at_a = await stack.enter_async_context(relay(write_config(site, "a"), moments["a"], *begin))
        victim = {"a": at_a, "b": at_b}[who].process
        await until(lambda: victim.poll() is not None, 60)
        assert victim.returncode == -signal.SIGKILL
        await stack.enter_async_context(relay(write_config(site, who, address if who == "b" else ANY), "anew"))
        assert await wait_one_place(site, newest, 150) == "destination"
        await require_one_guest(newest, "destination")
        printed = source.printed() + await dump_region(destination, after, LAYOUT)
    assert not memory_problems(before, after, LAYOUT, count_passes(printed))
