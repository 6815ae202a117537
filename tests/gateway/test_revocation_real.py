"""Revocation in flight with everything real: QEMUs, relays as processes, a gateway, and a guest that counts."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from audit.errors import LogLocked
from certs.authority import Authority
from certs.files import read_certificates
from gateway.demo.guest import GuestLayout, build_boot_image
from gateway.demo.machines import Qemu, run_state, wait_passes
from gateway.demo.processes import Commands
from gateway.starter import HostPlan, Site, VmPlan, lay_out_site
from tests.gateway.break_glass.conftest import person
from tests.gateway.conftest import CHEAP, Running, free_address, running_gateway
from tests.gateway.real_site import serve_relays, start_guests
from tests.gateway.test_watch import edit, own_bundle, revoked

pytestmark = [pytest.mark.real, pytest.mark.whole]

MEMORY_MIB = 64
UUID = "5ea1a4e0-0000-4000-8000-0000000000aa"
HYPERVISOR = 'kind = "qmp"\nqmp_socket = "vm-{name}/{{uuid}}/qmp.sock"\n\n[limits]\nmigration_deadline_seconds = 60'


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    whole = GuestLayout.for_memory(MEMORY_MIB, 1)
    # One pass a second: 1 MiB/s is dirtied, so that the migration ends if it is let.
    layout = GuestLayout(whole.start, whole.hot, whole.end, ticks=100)
    return build_boot_image(layout, tmp_path_factory.mktemp("guest"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short: unix sockets live in it."""
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        yield Path(name) / "s"


def lay_out(folder: Path, megabytes_per_second: int) -> Site:
    """Two hosts and a VM, moved slowly enough to be met on its way."""
    hosts = [
        HostPlan(name, free_address(address), hypervisor=HYPERVISOR.format(name=name))
        for name, address in (("a", "127.0.0.2"), ("b", "127.0.0.3"))
    ]
    site = lay_out_site(
        folder,
        hosts=hosts,
        vms=[VmPlan("counter", UUID, "a")],
        gateway_listen=free_address("127.0.0.1"),
        now=datetime.now(UTC),
        password_cost=CHEAP,
    )
    limit = f"session_seconds = 3600\nbandwidth_bytes_per_second = {megabytes_per_second * 1_000_000}"
    edit(site.gateway_config, lambda text: text.replace("session_seconds = 3600", limit))
    return site


@dataclass
class Flight:
    """A migration on its way, and what can be seen of it."""

    running: Running
    source: Qemu
    destination: Qemu
    migration_id: str
    auditor: httpx.AsyncClient

    async def shown(self) -> dict[str, Any]:
        answer = await self.auditor.get(f"/v1/migrations/{self.migration_id}")
        return answer.json()  # type: ignore[no-any-return]

    async def until(self, *states: str, seconds: float = 40) -> dict[str, Any]:
        with trio.fail_after(seconds):
            while (shown := await self.shown())["state"] not in states:
                await trio.sleep(0.05)
        return shown

    async def receipts(self, count: int = 2) -> dict[str, str]:
        with trio.fail_after(20):
            while len(found := (await self.shown())["receipts"]) < count:
                await trio.sleep(0.05)
        return {each["role"]: each["outcome"] for each in found}

    async def guest_goes_on_at_its_source(self) -> None:
        assert await run_state(self.source) == "running"
        counted = await wait_passes(self.source, 1)
        await wait_passes(self.source, counted + 1, deadline_seconds=20)


async def ordinary(_: Running) -> tuple[str, dict[str, Any]]:
    return "alice", {"vm": "counter", "destination": "b"}


Ask = Callable[[Running], Awaitable[tuple[str, dict[str, Any]]]]


@asynccontextmanager
async def flight(site: Site, image: Path, ask: Ask = ordinary) -> AsyncIterator[Flight]:
    """The migration from a to b that `ask` says who asks for, and how; seen running with memory under way."""
    commands = Commands(site.directory)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(running_gateway(site))
        await serve_relays(commands, stack, site)
        source, destination = await start_guests(site, stack, UUID, image, MEMORY_MIB)
        await wait_passes(source, 1)
        who, body = await ask(running)
        with trio.fail_after(20):
            requester = running.person(who)
            while (answer := await requester.post("/v1/migrations", json=body)).status_code == 503:
                await trio.sleep(0.1)
        assert answer.status_code == 201, answer.text
        on_its_way = Flight(running, source, destination, answer.json()["migration_id"], running.person("carol"))
        with trio.fail_after(20):
            while not ((await on_its_way.shown())["progress"] or {}).get("transferred_bytes", 0) > 1_000_000:
                await trio.sleep(0.02)
        yield on_its_way


def lose_group(site: Site) -> None:
    edit(site.people, lambda text: text.replace('["operators"]', '["guests"]'))


async def test_a_lost_group_cancels_within_a_second_and_the_guest_goes_on(folder: Path, image: Path) -> None:
    async with flight(lay_out(folder, 4), image) as moving:
        lose_group(moving.running.site)
        await moving.running.gateway.reload()
        (record,) = await revoked(moving.running)
        assert record["outcome"] == "cancel_requested"
        asked = trio.current_time()
        shown = await moving.until("cancelled", seconds=5)
        took = trio.current_time() - asked
        print(f"cancelled {took:.2f} s after it was asked for")
        assert shown["revoked"]["obligation"] == "cancel"
        await moving.guest_goes_on_at_its_source()
        receipts = await moving.receipts()
        assert receipts["source"] == "cancelled"
        assert receipts["destination"] not in {"running", "completed"}
        assert moving.destination.ended or await run_state(moving.destination) != "running"
        assert took < 3, "the relay's long poll brings it at once; the rest is a machine under load"


async def test_a_policy_that_lets_it_finish_lets_it_finish(folder: Path, image: Path) -> None:
    site = lay_out(folder, 16)
    policies = own_bundle(site)
    say = '@on_revocation("finish")\n@id("operators-move")'
    edit(policies / "permits.cedar", lambda text: text.replace('@id("operators-move")\n@on_revocation("cancel")', say))
    async with flight(site, image) as moving:
        lose_group(site)
        await moving.running.gateway.reload()
        (record,) = await revoked(moving.running)
        assert record["outcome"] == "left_to_finish"
        await moving.until("completed")
        assert await run_state(moving.destination) == "running"
        assert (await moving.receipts())["source"] == "completed"
        denied = await moving.running.person("alice").post("/v1/migrations", json={"vm": "counter", "destination": "a"})
        assert denied.status_code == 403


async def test_a_host_whose_certificate_is_revoked_is_left_through_the_other(folder: Path, image: Path) -> None:
    """The source's: the gateway hears it no more, so the destination discards what it has."""
    async with flight(lay_out(folder, 4), image) as moving:
        site = moving.running.site
        (leaf, *_) = read_certificates(site.host_folder("a") / "host.pem")
        Authority.load(site.certs).revoke(leaf.serial_number, datetime.now(UTC))
        await moving.running.gateway.reload()
        (record,) = await revoked(moving.running)
        assert record["details"]["because"] == "the certificate of the source host a has been revoked"
        receipts = await moving.receipts(1)
        assert receipts["destination"] not in {"running", "completed"}
        await moving.guest_goes_on_at_its_source()
        with trio.fail_after(10):
            while not moving.destination.ended:
                await trio.sleep(0.05)


async def test_an_end_that_is_asked_for_during_the_handover_changes_nothing(folder: Path, image: Path) -> None:
    """The gateway asks; the relay knows better: the guest is at the destination, in one place, and the log says so."""
    async with flight(lay_out(folder, 16), image) as moving:
        await moving.until("handing_over", "completed")
        lose_group(moving.running.site)
        await moving.running.gateway.reload()
        await moving.until("completed")
        assert await run_state(moving.destination) == "running"
        assert moving.source.ended or await run_state(moving.source) != "running"
        receipts = await moving.receipts()
        assert receipts["source"] == "completed"
        outcomes = {record["outcome"] for record in await moving.running.records("migration.revoked")}
        assert outcomes <= {"too_late"}


async def test_a_gateway_that_was_restarted_still_revokes_what_runs(folder: Path, image: Path) -> None:
    """Nothing of it is in memory any more: the log says what it stands on, the relay that it still runs."""
    async with flight(lay_out(folder, 2), image) as moving:
        site = moving.running.site
        moving.running.gateway.stop()
        with trio.fail_after(10):
            while not has_ended(moving.running):
                await trio.sleep(0.05)
        lose_group(site)
        async with running_gateway(site) as again:
            (record,) = await revoked(again)
            assert record["outcome"] == "cancel_requested"
            later = Flight(again, moving.source, moving.destination, moving.migration_id, again.person("carol"))
            await later.until("cancelled")
            await later.guest_goes_on_at_its_source()


def has_ended(running: Running) -> bool:
    """Whether the gateway has let go of its log, the last that it does."""
    try:
        running.log().close()
    except LogLocked:
        return False
    return True


async def test_a_move_under_broken_glass_ends_with_it(folder: Path, image: Path) -> None:
    """Two persons, a real move, and a third who ends it on its way."""
    site = lay_out(folder, 4)
    with site.people.open("a", encoding="utf-8") as file:
        file.write(person("dora", "Dora Duty", ("duty-officers",)) + person("mona", "Mona Manager", ("duty-managers",)))
    edit(site.gateway_config, lambda text: text + "\n[break_glass]\n")

    async def under_glass(running: Running) -> tuple[str, dict[str, Any]]:
        asked = {"vm": "counter", "destination": "b", "ticket": "INC-1", "minutes": 5, "reason": "host a burns"}
        grant = (await running.person("dora").post("/v1/break-glass", json=asked)).json()["id"]
        answer = await running.person("mona").post(f"/v1/break-glass/{grant}/approve", json={})
        assert answer.status_code == 200, answer.text
        return "dora", {"vm": "counter", "destination": "b", "reason": "INC-1", "break_glass": grant}

    async with flight(site, image, under_glass) as moving:
        (used, *_) = await moving.running.records("breakglass.used")
        grant = used["details"]["break_glass"]["id"]
        ended = await moving.running.person("carol").post(f"/v1/break-glass/{grant}/end", json={"reason": "stop"})
        assert ended.status_code == 200, ended.text
        await moving.until("cancelled", seconds=10)
        await moving.guest_goes_on_at_its_source()
        (record,) = await moving.running.records("migration.revoked")
        assert record["details"]["because"] == "the broken glass is whole again: it was ended"
        assert (await moving.receipts())["source"] == "cancelled"
