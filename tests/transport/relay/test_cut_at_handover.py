"""The network goes at the handover, and stays away for longer than sessions resume: one guest, in one place."""

from __future__ import annotations

import pytest
import trio
from structlog.testing import capture_logs

from gateway.demo.guest import count_passes
from gateway.demo.machines import run_state, wait_passes
from tests.transport.relay.conftest import until
from tests.transport.relay.cutter import network_to
from tests.transport.relay.test_hypervisor_faults import LIMITS, at_state, require_never_run, staged
from tests.transport.site import Site
from transport.relay.config import split_address

pytestmark = pytest.mark.real
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
