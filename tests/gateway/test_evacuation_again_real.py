"""An evacuation that is given up midway, with the gateway dead, and begun again: real relays, QEMUs and a guest."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from gateway.demo.machines import run_state, start_qemu, stop_qemu, wait_passes
from gateway.demo.processes import Commands, end_process
from gateway.starter import HostPlan, Site, VmPlan, lay_out_site
from tests.gateway.conftest import CHEAP, free_address, running_gateway
from tests.gateway.real_site import serve
from tests.gateway.test_evacuation_real import token_of
from tests.gateway.test_revocation_real import HYPERVISOR, MEMORY_MIB, UUID, image
from tests.gateway.test_watch import edit

__all__ = ["image"]  # the fixture
pytestmark = [pytest.mark.real, pytest.mark.whole]

ADDRESSES = {"a": "127.0.0.2", "b": "127.0.0.3", "c": "127.0.0.4"}


@pytest.fixture
def site() -> Iterator[Site]:
    """Short: unix sockets live in it. Slow enough for a Ctrl-C on the way."""
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        made = lay_out_site(
            Path(name) / "s",
            hosts=[
                HostPlan(name, free_address(address), hypervisor=HYPERVISOR.format(name=name))
                for name, address in ADDRESSES.items()
            ],
            vms=[VmPlan("counter", UUID, "a")],
            gateway_listen=free_address("127.0.0.1"),
            now=datetime.now(UTC),
            password_cost=CHEAP,
        )
        edit(made.people, lambda text: text.replace('["operators"]', '["operators", "production-operators"]'))
        limit = "session_seconds = 3600\nbandwidth_bytes_per_second = 8000000"
        edit(made.gateway_config, lambda text: text.replace("session_seconds = 3600", limit) + "\n[evacuation]\n")
        yield made


async def test_ctrl_c_keeps_the_guest_and_the_same_command_takes_it_to_the_next_host(site: Site, image: Path) -> None:
    """It was refused at the first one for ever, and its second receipt took the place of the one that counted bytes."""
    commands = Commands(site.directory)
    by_permit = ["--evacuation", "--socket", str(site.directory / "relay-a" / "control.sock")]
    async with AsyncExitStack() as stack:
        for host in ADDRESSES:
            await serve(commands, stack, f"relay-{host}", site.relay_config(host))
        machines = {}
        for host in ADDRESSES:
            incoming = host != "a"
            machines[host] = await start_qemu(
                site.directory / f"vm-{host}" / UUID,
                UUID,
                memory_mib=MEMORY_MIB,
                image=None if incoming else image,
                incoming=incoming,
            )
            stack.push_async_callback(stop_qemu, machines[host])
        counted = await wait_passes(machines["a"], 1)
        await _prepare_and_kill(site, commands, stack)

        line = commands.line(["migrate", "counter", *by_permit])
        leaving = await trio.lowlevel.open_process(line, stdout=subprocess.PIPE, env=commands.environment())
        stack.push_async_callback(end_process, leaving)
        said = b""
        with trio.fail_after(60):
            assert leaving.stdout is not None
            while b"migration   " not in said:
                said += await leaving.stdout.receive_some()
            await _until_under_way(commands, by_permit[1:])
            code, again = await commands.run("migrate", "counter", *by_permit)
            assert (code, "counter is on its way to b" in again["error"]["message"]) == (1, True)
            leaving.send_signal(signal.SIGINT)
            async for more in leaving.stdout:
                said += more
            assert await leaving.wait() == 1
        assert b"cancelled: the migration was cancelled on request" in said
        assert await run_state(machines["a"]) == "running"

        code, moved = await commands.run("migrate", "counter", *by_permit)
        assert (code, moved["state"], moved["destination"]) == (0, "completed", site.spiffe_id("c"))
        assert await run_state(machines["c"]) == "running"
        await wait_passes(machines["c"], counted + 2, earlier=machines["a"].printed())

        async with running_gateway(site) as back:
            with trio.fail_after(60):
                while len(receipts := await back.records("migration.receipt")) < 4:
                    await trio.sleep(0.1)
            assert {each["outcome"] for each in receipts} == {"cancelled", "discarded", "completed", "running"}
            hosts = {"since": "2020-01-01T00:00:00.000000Z"}
            compared = (await back.person("carol").post("/v1/reconcile/hosts", json=hosts)).json()
            assert (compared["findings"], compared["counts"]["matched"]) == ([], 2)


async def _prepare_and_kill(site: Site, commands: Commands, stack: AsyncExitStack) -> None:
    """Permits for b and c, of a gateway that is dead then."""
    running = await serve(commands, stack, "gateway", site.gateway_config)
    token = site.directory / "token"
    token.write_text(token_of(site, "alice"))
    token.chmod(0o600)
    signed_in = ["--gateway", f"https://{running.listen}", "--ca", str(site.ca), "--token-file", str(token)]
    with trio.fail_after(60):
        while (await commands.run("evacuation", "prepare", "a", "--reason", "CHG-9", *signed_in))[0]:
            await trio.sleep(0.5)  # until the relay has polled
    running.process.kill()
    await end_process(running.process)


async def _until_under_way(commands: Commands, socket: list[str]) -> None:
    while True:
        _, status = await commands.run("relay", "status", *socket)
        if any(each["carried_bytes"] for each in status["sessions"]):
            return
