"""From one site to another with everything real: two gateways, relays as processes, QEMUs, a guest that counts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from gateway.demo.machines import run_state, start_qemu, stop_qemu, wait_passes
from gateway.demo.processes import Commands
from gateway.starter import HostPlan, VmPlan
from tests.gateway.conftest import free_address
from tests.gateway.sites_pair import EAST, lay_out
from tests.gateway.test_revocation_real import HYPERVISOR, MEMORY_MIB, image

__all__ = ["image"]  # the fixture
pytestmark = [pytest.mark.real, pytest.mark.whole]

UUID = "5ea1a4e0-0000-4000-8000-0000000000ab"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: unix sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        yield Path(name)


async def test_a_guest_moves_to_another_site_and_both_logs_prove_it(folder: Path, image: Path) -> None:
    hosts = [
        HostPlan(name, free_address(address), hypervisor=HYPERVISOR.format(name=name))
        for name, address in (("a", "127.0.0.2"), ("b", "127.0.0.3"))
    ]
    gateways = (free_address("127.0.0.1"), free_address("127.0.0.1"))
    two = lay_out(folder, hosts[:1], hosts[1:], [VmPlan("counter", UUID, "a")], gateways)
    async with AsyncExitStack() as stack:
        west, east = await stack.enter_async_context(two.running())
        for site, host in ((two.west, "a"), (two.east, "b")):
            config = str(site.relay_config(host))
            serve = Commands(site.directory).serve(f"relay-{host}", "relay", "serve", "--config", config)
            await stack.enter_async_context(serve)
        source = await start_qemu(two.west.directory / "vm-a" / UUID, UUID, memory_mib=MEMORY_MIB, image=image)
        stack.push_async_callback(stop_qemu, source)
        destination = await start_qemu(two.east.directory / "vm-b" / UUID, UUID, memory_mib=MEMORY_MIB, incoming=True)
        stack.push_async_callback(stop_qemu, destination)
        counted = await wait_passes(source, 2)
        alice, carol = west.person("alice"), west.person("carol")
        body = {"vm": "counter", "destination": f"spiffe://{EAST}/host/b", "reason": "CHG-7"}
        with trio.fail_after(30):
            while (answer := await alice.post("/v1/migrations", json=body)).status_code == 503:
                await trio.sleep(0.1)
        assert answer.status_code == 201, answer.text
        migration_id = answer.json()["migration_id"]
        with trio.fail_after(60):
            while (shown := (await carol.get(f"/v1/migrations/{migration_id}")).json())["state"] not in {
                "completed",
                "failed",
            }:
                await trio.sleep(0.1)
        assert shown["state"] == "completed", shown
        assert await run_state(destination) == "running"
        assert source.ended
        printed = source.printed()
        await wait_passes(destination, counted + 2, earlier=printed)  # without a gap or a repetition
        with trio.fail_after(30):
            while not (await east.records("migration.receipt")):
                await trio.sleep(0.1)
        (left,), (came,) = [await each.records("migration.receipt") for each in (west, east)]
        assert (left["outcome"], came["outcome"]) == ("completed", "running")
        span = {"site": "east", "since": "2020-01-01T00:00:00.000000Z"}
        found = (await carol.post("/v1/reconcile/sites", json=span)).json()
        assert found["findings"] == []
        assert found["counts"]["matched"] == 1
        # And with no gateway: what an auditor does who was given both folders.
        logs = ["--log", str(two.west.log), "--other-log", str(two.east.log), "--since", "1d"]
        code, offline = await Commands(folder).run("audit", "reconcile", "sites", *logs)
        assert code == 0
        assert offline["counts"]["matched"] == 1
