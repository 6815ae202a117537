"""One guest, in one place: real QEMUs, real relay processes, killed before and after every durable write.

Whether a guest ever ran twice is read from what it printed: it counts, so a number that stands on both hosts was
counted by two guests. Sampling run states could not tell.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import trio

from gateway.demo.guest import GuestLayout, build_boot_image, count_passes, memory_problems
from gateway.demo.machines import Qemu, dump_region, let_run, run_state, start_qemu, stop_qemu, wait_passes
from policy.permit import Limits
from tests.transport.journals import journals
from tests.transport.relay.conftest import until, with_limits
from tests.transport.site import Site, write_toml
from transport.hypervisors.errors import HypervisorError
from transport.hypervisors.qemu import QemuMachine

pytestmark = pytest.mark.real
VM = "11111111-2222-4333-8444-555555555555"
MEMORY_MIB = 32
LAYOUT = GuestLayout.for_memory(MEMORY_MIB, 2)
START_SECONDS = 90  # of Python and all that it imports, on a machine that does much else


@dataclass
class Machines:
    """A guest that counts at `source`, and a QEMU that waits at `destination`."""

    source: Qemu
    destination: Qemu


@pytest.fixture
async def machines(site: Site) -> AsyncIterator[Machines]:
    image = build_boot_image(LAYOUT, site.folder)
    source = await start_qemu(site.folder / "qa" / VM, VM, memory_mib=MEMORY_MIB, image=image)
    destination = await start_qemu(site.folder / "qb" / VM, VM, memory_mib=MEMORY_MIB, incoming=True, image=image)
    try:
        await wait_passes(source, 3)
        yield Machines(source, destination)
    finally:
        await stop_qemu(source)
        await stop_qemu(destination)


def write_config(site: Site, name: str, listen: str = "127.0.0.1:0", *, resume_seconds: float = 60.0) -> Path:
    """The TOML file of a relay that drives QEMU by QMP. `resume_seconds`: as they are by default."""
    config = site.relay_config(name, kind="qmp", qmp_socket=str(site.folder / f"q{name}" / "{uuid}" / "qmp.sock"))
    config = with_limits(config, resume_seconds=resume_seconds)
    config = msgspec.structs.replace(config, relay=msgspec.structs.replace(config.relay, listen=listen))
    return write_toml(config, site.folder / f"relay-{name}.toml")


class RelayProcess:
    """A relay's process, and what it has printed."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process = process
        self.output = output

    def lines(self, word: str) -> list[str]:
        text = self.output.read_text(errors="replace")
        return [line.removeprefix(word + " ") for line in text.splitlines() if line.startswith(word + " ")]

    @property
    def address(self) -> str:
        return self.lines("ready")[0]


@asynccontextmanager
async def relay(config: Path, moment: str = "never", *begin: str) -> AsyncIterator[RelayProcess]:
    """A relay that runs until the end of the block, or until its moment comes."""
    output = config.with_suffix(f".{moment.replace(':', '-')}.{len(begin)}.log")
    with output.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.transport.relay.mortal_relay", str(config), moment, *begin],
            stdout=log,
            stderr=log,
        )
    running = RelayProcess(process, output)
    try:
        await until(lambda: bool(running.lines("ready")) or process.poll() is not None, START_SECONDS)
        yield running
    finally:
        process.kill()
        process.wait()


async def wait_one_place(site: Site, machines: Machines, seconds: float = 90) -> str:
    """Where exactly one guest runs, once the source relay owes the session nothing any more."""

    def is_ended() -> bool:
        owed = journals(site.folder / "relay-a" / "journals", "source-*.jsonl")
        return all(lines and '"ended"' in lines[-1] for lines in owed.values())

    with trio.fail_after(seconds):
        while True:
            ended = is_ended()
            at_source, at_destination = await state_of(machines.source), await state_of(machines.destination)
            if ended and at_destination == "running" and at_source == "gone":
                return "destination"
            if ended and at_source == "running" and at_destination in ("gone", "inmigrate"):
                return "source"
            await trio.sleep(0.05)


async def state_of(machine: Qemu) -> str:
    """The run state; `ending` while its monitor is gone and its process is not yet."""
    try:
        return await run_state(machine)
    except HypervisorError:
        return "ending"


async def require_one_guest(machines: Machines, where: str) -> None:
    """The guest goes on counting there, and no number was ever printed twice or left out."""
    if where == "source":
        assert machines.destination.printed() == b""
        counted = count_passes(machines.source.printed())
        await wait_passes(machines.source, counted + 3)
    else:
        before = machines.source.printed()
        await wait_passes(machines.destination, count_passes(before) + 3, earlier=before)


async def test_a_guest_moves_whole_and_goes_on_counting(site: Site, machines: Machines) -> None:
    before, after = site.folder / "before", site.folder / "after"
    await dump_region(machines.source, before, LAYOUT)
    await let_run(machines.source)
    permit = site.folder / "permit"
    permit.write_text(site.permit(vm=VM))
    async with relay(write_config(site, "b")) as destination:
        start = relay(write_config(site, "a"), "never", str(permit), destination.address)
        async with start as source:
            await until(lambda: any(line.startswith("completed") for line in source.lines("news")), 90)
            assert await wait_one_place(site, machines) == "destination"
            await require_one_guest(machines, "destination")
    printed = machines.source.printed() + await dump_region(machines.destination, after, LAYOUT)
    assert memory_problems(before, after, LAYOUT, count_passes(printed)) == []


# By the moment at which a relay dies: the run states at the source and the destination while it is dead, and where the
# guest runs in the end. The rows of docs/failures.md.
WAITS, WHOLE = ("running", "inmigrate"), ("postmigrate", "paused")
BOTH_KNOW, MOVED = ("postmigrate", "running"), ("gone", "running")
SOURCE_DIES = {
    "before:begun": (WAITS, "source"),
    "after:begun": (WAITS, "source"),
    "before:handed-over": (WHOLE, "source"),
    "after:handed-over": (WHOLE, "destination"),
    "before:outcome-running": (BOTH_KNOW, "destination"),
    "after:outcome-running": (BOTH_KNOW, "destination"),
    "before:ended": (MOVED, "destination"),
    "after:ended": (MOVED, "destination"),
}
DESTINATION_DIES = {
    "before:admitted": (WAITS, "source"),
    "after:admitted": (WAITS, "source"),
    "before:prepared": (WAITS, "source"),
    "after:prepared": (WAITS, "source"),
    "before:running": (WHOLE, "destination"),
    "after:running": (WHOLE, "destination"),
    "before:started": (BOTH_KNOW, "destination"),
    "after:started": (BOTH_KNOW, "destination"),
    "before:ended": (MOVED, "destination"),
    "after:ended": (MOVED, "destination"),
}
LEFT_ALONE = {"before:begun", "after:begun", "before:admitted", "after:admitted", "before:prepared"}


async def wait_states(machines: Machines, expected: tuple[str, str]) -> None:
    """Until the guests' run states are these. While a relay is dead they stay so."""
    with trio.fail_after(20):
        while (found := (await state_of(machines.source), await state_of(machines.destination))) != expected:
            await trio.sleep(0.05)
    assert found == expected


@pytest.mark.parametrize("moment", SOURCE_DIES)
async def test_source_relay_killed(site: Site, machines: Machines, moment: str) -> None:
    permit = site.folder / "permit"
    permit.write_text(site.permit(vm=VM))
    config = write_config(site, "a")
    at_once, where = SOURCE_DIES[moment]
    async with relay(write_config(site, "b")) as destination:
        async with relay(config, moment, str(permit), destination.address) as source:
            await until(lambda: source.process.poll() is not None, 90)
        await wait_states(machines, at_once)
        if moment == "before:begun":
            return  # nothing was begun: nobody is owed anything
        async with relay(config):
            assert await wait_one_place(site, machines) == where
            await require_one_guest(machines, where)
            await require_discarded(machines, where, moment)


@pytest.mark.parametrize("moment", DESTINATION_DIES)
async def test_destination_relay_killed(site: Site, machines: Machines, moment: str) -> None:
    permit = site.folder / "permit"
    permit.write_text(site.permit(vm=VM))
    at_once, where = DESTINATION_DIES[moment]
    async with relay(write_config(site, "b"), moment) as destination:
        address = destination.address
        async with relay(write_config(site, "a"), "never", str(permit), address) as source:
            await until(lambda: destination.process.poll() is not None, 90)
            await wait_states(machines, at_once)
            async with relay(write_config(site, "b", listen=address)):
                assert await wait_one_place(site, machines) == where
                await require_one_guest(machines, where)
                await require_discarded(machines, where, moment)
                ended = ("completed",) if where == "destination" else ("failed",)
                await until(lambda: any(line.startswith(ended) for line in source.lines("news")), 90)


async def require_discarded(machines: Machines, where: str, moment: str) -> None:
    """A QEMU in which a guest may have been is ended; one that the dead relay did not know as its own waits on."""
    if where == "source":
        await wait_states(machines, WAITS if moment in LEFT_ALONE else ("running", "gone"))


@pytest.mark.parametrize("who", ["source", "destination"])
async def test_a_relay_killed_while_memory_is_on_its_way(site: Site, machines: Machines, who: str) -> None:
    permit = site.folder / "permit"
    slow = Limits(max_channels=16, bandwidth_bytes_per_second=1 << 20)
    permit.write_text(site.permit(vm=VM, limits=slow))
    config = write_config(site, "a")
    async with AsyncExitStack() as stack:
        at_destination = await stack.enter_async_context(relay(write_config(site, "b")))
        address = at_destination.address
        at_source = await stack.enter_async_context(relay(config, "never", str(permit), address))
        await wait_sent(machines.source, 1 << 20)
        victim = at_source if who == "source" else at_destination
        victim.process.kill()
        victim.process.wait()
        await require_one_guest(machines, "source")
        await stack.enter_async_context(relay(config if who == "source" else write_config(site, "b", address), "anew"))
        assert await wait_one_place(site, machines) == "source"
        await wait_states(machines, ("running", "gone"))
        await require_one_guest(machines, "source")


async def wait_sent(machine: Qemu, size_bytes: int) -> None:
    """Until QEMU has sent so much."""
    async with await QemuMachine.connect(machine.observer_socket) as observer:
        await observer.status()
        with trio.fail_after(60):
            while (await observer.progress()).transferred_bytes < size_bytes:
                await trio.sleep(0.05)
