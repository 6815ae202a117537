"""Recovery of a post-copy one of whose relays dies. Not in `make test`: where QEMU hangs on a missing page then, it
may not come to its end within the deadline (docs/failures.md); whether it does is chance. `make recovery` runs it.

And what an operator is told to do where the destination has lost its state folder.
"""

from __future__ import annotations

import shutil
import signal
from contextlib import AsyncExitStack
from functools import partial

import pytest

from gateway.demo.guest import build_boot_image
from gateway.demo.machines import let_run, run_state, start_qemu, stop_qemu, wait_passes
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


async def test_a_source_relay_that_dies_before_it_has_noted_the_switch_hands_the_guest_over(site: Site) -> None:
    image = build_boot_image(LAYOUT, site.folder)
    start = partial(start_qemu, uuid=VM, memory_mib=MEMORY_MIB, image=image, program=str(NEWEST))
    async with AsyncExitStack() as stack:
        source = await start(site.folder / "qa" / VM)
        stack.push_async_callback(stop_qemu, source)
        destination = await start(site.folder / "qb" / VM, incoming=True)
        stack.push_async_callback(stop_qemu, destination)
        newest = Machines(source, destination)
        await wait_passes(source, 3)
        permit = site.folder / "permit.jwt"
        permit.write_text(site.permit(vm=VM, limits=Limits(max_channels=16, bandwidth_bytes_per_second=40 * MIB)))
        at_b = await stack.enter_async_context(relay(write_config(site, "b")))
        config = write_config(site, "a")
        async with relay(config, "before:handed-over", str(permit), at_b.address, HOW) as at_a:
            await until(lambda: at_a.process.poll() is not None, 40)
            assert at_a.process.returncode == -signal.SIGKILL
        async with relay(config):
            assert await wait_one_place(site, newest, 150) == "destination"
            await require_one_guest(newest, "destination")


async def test_a_guest_whose_destination_has_lost_its_state_folder_waits_for_its_operator(
    site: Site, machines: Machines
) -> None:
    """It was handed over, and the destination does not know it any more: only the operator knows who may run."""
    permit = site.folder / "permit"
    permit.write_text(site.permit(vm=VM))
    config = write_config(site, "a")
    async with relay(write_config(site, "b"), "before:running") as destination:
        address = destination.address
        async with relay(config, "never", str(permit), address) as source:
            await until(lambda: destination.process.poll() is not None, 30)
            shutil.rmtree(site.folder / "relay-b")
            async with relay(write_config(site, "b", listen=address)):
                await until(lambda: "session_unknown" in source.output.read_text(errors="replace"), 30)
                assert await run_state(machines.source) == "postmigrate"
                assert machines.destination.printed() == b""
    # As docs/failures.md says: the destination's QEMU ends, then the source's journal goes, then the guest goes on.
    machines.destination.process.kill()
    for journal in (site.folder / "relay-a" / "journals").glob("source-*.jsonl"):
        journal.unlink()
    async with relay(config):
        await let_run(machines.source)
        assert await wait_one_place(site, machines) == "source"
        await require_one_guest(machines, "source")
