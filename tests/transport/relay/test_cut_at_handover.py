"""The network goes at the handover, and stays away for longer than sessions resume: one guest, in one place."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from certs import layout
from gateway.demo.guest import count_passes
from gateway.demo.machines import run_state, wait_passes
from tests.transport.relay.conftest import serving, unheard, until
from tests.transport.relay.cutter import network_to
from tests.transport.relay.test_hypervisor_faults import (
    LIMITS,
    VM,
    at_state,
    require_counting,
    require_never_run,
    staged,
)
from tests.transport.site import Site
from tests.transport.stages import qmp_host
from transport.hypervisors.qemu import QemuMachine
from transport.relay.config import split_address
from transport.relay.source import MigrationOrder, carry_as_source

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


async def test_a_guest_moves_elsewhere_while_its_first_destination_holds_it_whole_and_hears_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.issue_host(site.certs, "c", datetime.now(UTC))
    wait_migration = QemuMachine.wait_migration
    async with (
        staged(site, AWAY) as stage,
        network_to(split_address(stage.address, "relay")) as network,
        serving(qmp_host(site, "c", AWAY)) as (_, other_address),
    ):
        stage.address = network.address
        source, first = await stage.start("a"), await stage.start("b", incoming=True)
        second = await stage.start("c", incoming=True)

        async def never_hears(machine: QemuMachine, **named: Any) -> None:
            """That all was sent: the network goes just then."""
            await wait_migration(machine, **named)
            monkeypatch.setattr(QemuMachine, "wait_migration", wait_migration)
            network.is_down = True
            assert network.cut("lane", "control")
            await trio.sleep_forever()

        monkeypatch.setattr(QemuMachine, "wait_migration", never_hears)
        elsewhere = site.permit(vm=VM, aud=site.spiffe("c"), destination=site.spiffe("c"))
        with capture_logs() as logs, trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage.move, stage.permit())
                await until(lambda: stage.told[-1:] != [] and stage.told[-1].state == "failed", 40)
                await require_counting(source)
                await until(lambda: any("held until its source settles" in log["event"] for log in logs), 20)
                order = MigrationOrder(elsewhere, other_address)
                assert (await carry_as_source(stage.source, order, unheard, trio.Event())).state == "completed"
                await until(lambda: source.ended)
                await wait_passes(second, count_passes(source.printed()) + 3, earlier=source.printed())
                assert await run_state(first) == "paused"
                network.is_down = False
                await until(lambda: first.ended, 30)
        await require_never_run(first)
        await wait_passes(second, count_passes(source.printed() + second.printed()) + 3, earlier=source.printed())
