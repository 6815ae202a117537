"""Where only an operator can decide: the steps of docs/failures.md do what they say."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack

import pytest

from gateway.demo.machines import Qemu, run_state
from tests.transport.relay.conftest import until
from tests.transport.relay.test_handover import (
    VM,
    Machines,
    RelayProcess,
    machines,
    relay,
    require_one_guest,
    write_config,
)
from tests.transport.site import Site
from transport.hypervisors.errors import HypervisorTimeout
from transport.hypervisors.qemu import QemuMachine

pytestmark = pytest.mark.real
__all__ = ["machines"]  # a fixture


def end(running: RelayProcess) -> None:
    running.process.terminate()
    running.process.wait(30)


def forget(site: Site, host: str, role: str) -> None:
    """The session, which is found by its VM."""
    journals = (site.folder / f"relay-{host}" / "journals").glob(f"{role}-*.jsonl")
    (journal,) = (each for each in journals if VM in each.read_text())
    journal.unlink()


async def go_on(machine: Qemu) -> None:
    """By the monitor that the relay had."""
    async with await QemuMachine.connect(machine.qmp_socket) as monitor:
        await monitor.resume()


async def require_held_by_relay(machine: Qemu) -> None:
    """Its monitor takes one program at a time."""
    with pytest.raises(HypervisorTimeout):
        await QemuMachine.connect(machine.qmp_socket, answer_seconds=1.0)


async def test_a_guest_that_is_held_whole_goes_on_where_it_is_if_its_source_is_gone_for_good(
    site: Site, machines: Machines
) -> None:
    permit = site.folder / "permit"
    permit.write_text(site.permit(vm=VM))
    config = write_config(site, "b", resume_seconds=0.5)
    async with relay(config) as destination:
        begin = str(permit), destination.address
        async with relay(write_config(site, "a"), "before:handed-over", *begin) as source:
            await until(lambda: source.process.poll() is not None, 90)
        machines.source.process.kill()
        await until(lambda: "held until its source settles" in destination.output.read_text(errors="replace"), 60)
        await require_held_by_relay(machines.destination)
        end(destination)
    forget(site, "b", "destination")
    await go_on(machines.destination)
    async with relay(config, "anew"):
        await require_one_guest(machines, "destination")


@pytest.mark.parametrize("has_come_back", [False, True], ids=["gone for good", "back without its state folder"])
async def test_a_guest_goes_on_at_its_source_if_nobody_can_say_what_became_of_it(
    site: Site, machines: Machines, *, has_come_back: bool
) -> None:
    """It was handed over, and only the operator knows who may run."""
    permit = site.folder / "permit"
    permit.write_text(site.permit(vm=VM))
    config = write_config(site, "a", resume_seconds=0.5)
    async with AsyncExitStack() as stack:
        destination = await stack.enter_async_context(relay(write_config(site, "b"), "before:running"))
        address = destination.address
        source = await stack.enter_async_context(relay(config, "never", str(permit), address))
        await until(lambda: destination.process.poll() is not None, 90)
        if has_come_back:
            shutil.rmtree(site.folder / "relay-b")
            await stack.enter_async_context(relay(write_config(site, "b", address), "anew"))
        said = "session_unknown" if has_come_back else "cannot ask for the outcome yet"
        await until(lambda: said in source.output.read_text(errors="replace"), 60)
        assert await run_state(machines.source) == "postmigrate"
        assert machines.destination.printed() == b""
        machines.destination.process.kill()
        await require_held_by_relay(machines.source)
        end(source)
        forget(site, "a", "source")
        await go_on(machines.source)
        await stack.enter_async_context(relay(config, "anew"))
        await require_one_guest(machines, "source")
