"""The network goes at the handover, and stays away for longer than sessions resume: one guest, in one place, at last.

And what an operator is told to do where the destination has lost its memory of a guest (docs/failures.md).
"""

from __future__ import annotations

import shutil

import pytest
import trio
from structlog.testing import capture_logs

from gateway.demo.guest import count_passes
from gateway.demo.machines import let_run, run_state, wait_passes
from tests.transport.relay.conftest import until
from tests.transport.relay.cutter import network_to
from tests.transport.relay.test_handover import (
    VM,
    Machines,
    machines,
    relay,
    require_one_guest,
    wait_one_place,
    write_config,
)
from tests.transport.relay.test_hypervisor_faults import LIMITS, at_state, require_never_run, staged
from tests.transport.site import Site
from transport.relay.config import split_address

pytestmark = pytest.mark.real
__all__ = ["machines"]  # a fixture
AWAY = LIMITS | {"resume_seconds": 1.0, "silence_seconds": 2.0}


@pytest.mark.parametrize(("moment", "meanwhile"), [("handed-over", "nowhere"), ("running", "destination")])
async def test_a_guest_stays_paused_at_the_source_until_it_hears_what_became_of_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, moment: str, meanwhile: str
) -> None:
    async with staged(site, AWAY) as stage, network_to(split_address(stage.address, "relay")) as network:
        stage.address = network.address
        source, destination = await stage.start("a"), await stage.start("b", incoming=True)

        def go() -> None:
            network.is_down = True
            assert network.cut("lane", "control")

        at_state(monkeypatch, moment, lambda: None if network.is_down else trio.from_thread.run_sync(go))
        with capture_logs() as logs, trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.move, stage.permit())
                await until(lambda: sum("cannot ask for the outcome yet" in log["event"] for log in logs) > 2, 40)
                assert await run_state(source) == "postmigrate"
                if meanwhile == "nowhere":
                    await until(lambda: any("held until its source settles" in log["event"] for log in logs), 20)
                    await require_never_run(destination)
                else:
                    await wait_passes(destination, count_passes(source.printed()) + 2, earlier=source.printed())
                    assert await run_state(source) == "postmigrate"
                network.is_down = False
        assert stage.told[-1].state == "completed"
        assert source.ended
        before = source.printed()
        await wait_passes(destination, count_passes(before) + 3, earlier=before)


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
