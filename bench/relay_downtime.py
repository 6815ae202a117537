"""What relays and handover add to the time for which a guest stands still, everything included.

Counted by QEMU's own events: from STOP at the source to RESUME at the destination, both by this machine's clock. Once
from QEMU to QEMU by a unix socket, where the destination starts the guest as soon as it has it; once as users do it,
`sealane migrate` with gateway, log and two relays, where it starts after both have durably noted whose guest it is.
"""

from __future__ import annotations

import json
import socket
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import trio

from bench.harness import BenchError, Plan
from bench.qemus import ASLEEP_TICKS
from gateway.demo.guest import PAGE_BYTES, GuestLayout, build_boot_image
from gateway.demo.machines import Qemu, start_qemu, stop_qemu, wait_passes
from gateway.demo.processes import Commands
from gateway.demo.site import DESTINATION, OPERATOR, SOURCE, lay_out
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.qemu import QemuMachine

VM_NAME, VM = "standing-still", "5ea1a4e0-0000-4000-8000-00000000d0e7"
MEMORY_MIB = 128
# A guest that sleeps, and the shortest limit: nothing is left for the last pass, so that what is added stands out.
# (With QEMU's own limit of 300 ms the whole memory of a small guest may be sent while it stands still.)
WHOLE = GuestLayout.for_memory(MEMORY_MIB, 1)
LAYOUT = GuestLayout(start=WHOLE.start, hot=WHOLE.end - PAGE_BYTES, end=WHOLE.end, ticks=ASLEEP_TICKS)
DOWNTIME_LIMIT_MS = 1
PAIRS, QUICK_PAIRS = 3, 1  # in each round
DEADLINE_SECONDS = 60.0

Move = Callable[[Path, Path], Awaitable[float]]


def measure(plan: Plan) -> dict[str, float]:
    """`downtime_direct_ms`, `downtime_sealane_ms`, and `added_downtime_ms`, the median of differences within a pair."""
    pairs = QUICK_PAIRS if plan.quick else PAIRS * plan.rounds
    direct, ours = [], []
    for _ in range(pairs):
        direct.append(_in_folder(_directly))
        ours.append(_in_folder(_by_sealane))
    return {
        "downtime_direct_ms": statistics.median(direct),
        "downtime_sealane_ms": statistics.median(ours),
        "added_downtime_ms": statistics.median(mine - theirs for mine, theirs in zip(ours, direct, strict=True)),
    }


def _in_folder(move: Move) -> float:
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        folder = Path(name)
        return trio.run(move, folder, build_boot_image(LAYOUT, folder))


async def _directly(folder: Path, image: Path) -> float:
    async with AsyncExitStack() as stack:
        source, destination = await _machines(stack, folder / "s", folder / "d", image)
        sender = await stack.enter_async_context(await QemuMachine.connect(source.qmp_socket))
        receiver = await stack.enter_async_context(await QemuMachine.connect(destination.qmp_socket))
        settings = MigrationSettings(downtime_limit_ms=DOWNTIME_LIMIT_MS)
        await sender.prepare_source(settings)
        await receiver.prepare_destination(settings)

        async def move() -> None:
            way = folder / "way.sock"
            await receiver.listen_incoming(way)
            await sender.start_migration(way)
            await sender.wait_migration(deadline_seconds=DEADLINE_SECONDS)

        return await _downtime_ms(source, destination, move)


async def _by_sealane(folder: Path, image: Path) -> float:
    commands = Commands(folder)
    site = lay_out(folder / "site", VM_NAME, VM)
    config = site.site.gateway_config
    limited = f"[permits]\ndowntime_limit_ms = {DOWNTIME_LIMIT_MS}\n"
    config.write_text(config.read_text().replace("[permits]\n", limited))
    async with AsyncExitStack() as stack:
        gateway = ("gateway", "serve", "--config", str(site.site.gateway_config))
        await stack.enter_async_context(commands.serve("gateway", *gateway))
        for host in (SOURCE, DESTINATION):
            relay = ("relay", "serve", "--config", str(site.site.relay_config(host)))
            await stack.enter_async_context(commands.serve(f"relay-{host}", *relay))
        source, destination = await _machines(stack, site.machine(SOURCE), site.machine(DESTINATION), image)
        token = folder / "token"
        where = ("--gateway", f"https://{site.gateway_listen}", "--ca", str(site.site.ca), "--token-file", str(token))
        password = ("--user", OPERATOR.username, "--password-file", str(site.password(OPERATOR)))
        await commands.run("login", *password, *where)

        async def move() -> None:
            code, answer = await commands.run("migrate", VM_NAME, "--to", DESTINATION, "--reason", "BENCH-1", *where)
            if code != 0:
                raise BenchError(f"the migration failed: {answer}")

        return await _downtime_ms(source, destination, move)


async def _machines(stack: AsyncExitStack, at_source: Path, at_destination: Path, image: Path) -> tuple[Qemu, Qemu]:
    source = await start_qemu(at_source, VM, memory_mib=MEMORY_MIB, image=image)
    stack.push_async_callback(stop_qemu, source)
    destination = await start_qemu(at_destination, VM, memory_mib=MEMORY_MIB, image=image, incoming=True)
    stack.push_async_callback(stop_qemu, destination)
    await wait_passes(source, 1)
    return source, destination


async def _downtime_ms(source: Qemu, destination: Qemu, move: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds from the last STOP at the source to RESUME at the destination."""
    at: dict[str, float] = {}

    async def note(machine: Qemu, event: str, task_status: trio.TaskStatus[None]) -> None:
        at[event] = await trio.to_thread.run_sync(
            partial(_event_time, machine.observer_socket, event, trio.from_thread.run_sync, task_status.started),
            abandon_on_cancel=True,
        )

    async with trio.open_nursery() as nursery:
        await nursery.start(note, source, "STOP")
        await nursery.start(note, destination, "RESUME")
        await move()
    return 1000 * (at["RESUME"] - at["STOP"])


def _event_time(monitor: Path, event: str, from_thread: Callable[..., Any], listening: Callable[[], None]) -> float:
    """Wait in a thread for an event of a QEMU; seconds since the epoch by its own time stamp."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_SECONDS)
        connection.connect(str(monitor))
        with connection.makefile("rwb") as lines:
            lines.readline()
            lines.write(b'{"execute": "qmp_capabilities"}\n')
            lines.flush()
            lines.readline()
            from_thread(listening)
            for line in lines:
                said = json.loads(line)
                if said.get("event") == event:
                    return float(said["timestamp"]["seconds"]) + float(said["timestamp"]["microseconds"]) / 1e6
    raise BenchError(f"QEMU ended without {event}")
