"""A real gateway, real relays' watches and real QEMUs: what goes around Sealane is seen, however it is done."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest
import trio

from gateway.demo.machines import Qemu, start_qemu, stop_qemu
from tests.gateway.conftest import UUID_WEB, Running
from tests.transport.hypervisors.libvirtd import running_libvirtd
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.qemu import QemuMachine
from transport.relay.config import load_relay_config
from transport.relay.gateway_link import GatewayLink
from transport.relay.host import open_host
from transport.relay.watching import Watch, sources_of

pytestmark = [pytest.mark.real, pytest.mark.whole]


class Hosts:
    """Hosts a and b with a watch each, and the QEMUs on them."""

    def __init__(self, running: Running, folder: Path, stack: AsyncExitStack) -> None:
        self.running = running
        self.folder = folder
        self.stack = stack
        self.libvirt: dict[str, str] = {}

    def watch(self, name: str) -> Watch:
        config = load_relay_config(self.running.site.relay_config(name))
        config = msgspec.structs.replace(
            config,
            relay=msgspec.structs.replace(config.relay, state_dir=str(self.folder / f"state-{name}")),
            gateway=msgspec.structs.replace(config.gateway, url=self.running.url),
            hypervisor=msgspec.structs.replace(
                config.hypervisor, kind="qmp", qmp_socket=str(self.folder / name / "{uuid}" / "qmp.sock")
            ),
            placement=msgspec.structs.replace(
                config.placement, recheck_seconds=0.05, libvirt_uri=self.libvirt.get(name, "")
            ),
        )
        link = GatewayLink(open_host(config))
        self.stack.push_async_callback(link.close)
        return Watch(sources_of(config), 5, 15, link.report_placement)

    async def qemu(self, name: str, *, incoming: bool = False) -> Qemu:
        machine = await start_qemu(self.folder / name / UUID_WEB, UUID_WEB, memory_mib=16, incoming=incoming)
        self.stack.push_async_callback(stop_qemu, machine)
        return machine

    async def kinds(self) -> list[str]:
        records = [entry["record"] for entry in await self.running.entries() if "record" in entry]
        return [each["kind"] for each in records if each["kind"].startswith("placement.")]


@pytest.fixture
async def hosts(running: Running) -> AsyncIterator[Hosts]:
    with tempfile.TemporaryDirectory(prefix="sl", ignore_cleanup_errors=True) as folder:
        async with AsyncExitStack() as stack:
            yield Hosts(running, Path(folder), stack)


async def test_a_migration_by_monitor_commands_is_seen(hosts: Hosts) -> None:
    here, there = hosts.watch("a"), hosts.watch("b")
    source = await hosts.qemu("a")
    await here.look_and_report()
    destination = await hosts.qemu("b", incoming=True)
    await there.look_and_report()
    assert await hosts.kinds() == []
    async with (
        await QemuMachine.connect(source.observer_socket) as at_source,
        await QemuMachine.connect(destination.observer_socket) as at_destination,
    ):
        await at_source.prepare_source(MigrationSettings())
        await at_destination.prepare_destination(MigrationSettings())
        await at_destination.listen_incoming(hosts.folder / "memory.sock")
        await at_source.start_migration(hosts.folder / "memory.sock")
        await at_source.wait_migration(deadline_seconds=30)
        with trio.fail_after(10):
            while await at_destination.status() != "running":
                await trio.sleep(0.01)
    await there.look_and_report()
    await here.look_and_report(at_once=True)
    assert await hosts.kinds() == ["placement.unpermitted"]
    (record,) = await hosts.running.records("placement.unpermitted")
    assert record["details"]["arrival"] == "migrated"


async def test_a_copied_image_that_is_started_elsewhere_is_seen_twice_over(hosts: Hosts) -> None:
    here, there = hosts.watch("a"), hosts.watch("b")
    await hosts.qemu("a")
    await here.look_and_report()
    await there.look_and_report()
    await hosts.qemu("b")
    await there.look_and_report()
    with trio.fail_after(30):  # two looks at each that overlap by a second
        while "placement.duplicate" not in await hosts.kinds():
            await trio.sleep(0.2)
            await here.look_and_report(at_once=True)
            await there.look_and_report(at_once=True)
    assert set(await hosts.kinds()) == {"placement.unpermitted", "placement.duplicate"}
    answer = await hosts.running.person("alice").post("/v1/migrations", json={"vm": "web", "destination": "c"})
    assert answer.json()["error"]["code"] == "running_on_two_hosts"


async def test_a_save_here_and_a_restore_there_by_libvirt_are_seen(hosts: Hosts) -> None:
    async with running_libvirtd(hosts.folder / "la") as one, running_libvirtd(hosts.folder / "lb") as other:
        hosts.libvirt = {"a": one.read_only_uri, "b": other.read_only_uri}
        here, there = hosts.watch("a"), hosts.watch("b")
        await one.start("web", UUID_WEB)
        await here.look_and_report()
        await there.look_and_report()
        await one.virsh("save", "web", str(hosts.folder / "saved"))
        await other.virsh("restore", str(hosts.folder / "saved"))
        await here.look_and_report()
        await there.look_and_report()
        assert await hosts.kinds() == ["placement.unpermitted"]
        (record,) = await hosts.running.records("placement.unpermitted")
        assert (record["details"]["arrival"], record["details"]["name_on_host"]) == ("restored", "web")
