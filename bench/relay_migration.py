"""Live migrations of a guest with 1 GiB of random memory between two QEMUs, through each pair in turn.

Measured from the command `migrate` to QEMU's `completed`, which with a return path means that the destination has
loaded everything. CPU time is of the relays and both QEMUs, since QEMU's own TLS has no relay; memory of the relays.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import trio

from bench import peers
from bench.certificates import make_certificates
from bench.harness import BenchError, Meter, Plan, Run, keep_apart, print_rounds, relay_figures, run_interleaved
from bench.peers import Start
from bench.qemus import Conversation, QemuProcess, conversation, destination_qemu, source_qemu
from bench.sealane_peer import sealane
from transport.hypervisors.errors import HypervisorError
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.moving import Movement

MEMORY_MIB = 1024
QUICK_MEMORY_MIB = 256
DEADLINE_SECONDS = 120.0
SETTINGS = MigrationSettings()  # bandwidth unlimited: QEMU's default of 128 MiB/s would hide any relay's speed
QEMU_TLS = "qemu-tls"
MULTIFD_CHANNELS = 2


def measure(plan: Plan) -> dict[str, float]:
    """Run all rounds and return the figures of this part. The kernel chooses who runs on which core."""
    return _measure(plan, "migration", ("haproxy", "socat", "stunnel", QEMU_TLS))


def measure_apart(plan: Plan) -> dict[str, float]:
    """The same, each host on a core of its own, whoever carries: two hosts share none, while here the kernel puts both
    relays on one now and then."""
    return _measure(plan, "migration_apart", ("haproxy", "socat", "stunnel", QEMU_TLS), apart=True)


def measure_multifd(plan: Plan) -> dict[str, float]:
    """The same as `measure` with two multifd channels beside the main one.

    haproxy has one thread here too: with two, the channels overtake one another, and QEMU 7.2, which knows them by
    their order of arrival, refuses the migration (seen in every try).
    """
    settings = MigrationSettings(movement=Movement(multifd_channels=MULTIFD_CHANNELS))
    return _measure(plan, f"multifd{MULTIFD_CHANNELS}", ("haproxy", QEMU_TLS), settings)


def _measure(
    plan: Plan, prefix: str, others: Sequence[str], settings: MigrationSettings = SETTINGS, *, apart: bool = False
) -> dict[str, float]:
    """Figures whose names begin with `prefix`, of Sealane and of those that it is held against."""
    memory_mib = QUICK_MEMORY_MIB if plan.quick else MEMORY_MIB
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        certificates = folder / "certificates"
        make_certificates(certificates)
        starts: dict[str, Start | None] = {
            "direct": peers.direct,
            "socat": peers.socat,
            "haproxy": peers.haproxy(certificates),
            "stunnel": peers.stunnel(certificates),
            QEMU_TLS: None,
            "sealane": sealane(folder / "sealane"),
        }
        with source_qemu(folder, memory_mib, certificates) as source:
            contenders: dict[str, Callable[[], Run]] = {
                name: partial(_run, source, start, memory_mib, certificates, settings, apart=apart)
                for name, start in starts.items()
                if name in plan.peers and name in {"direct", "sealane", *others}
            }
            rounds = run_interleaved(prefix, contenders, plan.rounds_to_run)
    channels = settings.movement.multifd_channels
    how = f" by {channels} multifd channels" if channels else ", each host on its own core" if apart else ""
    title = f"live migration of {memory_mib} MiB{how}, median of {plan.rounds_to_run}; CPU with both QEMUs"
    print_rounds(title, rounds, "sealane")
    figures = relay_figures(prefix, rounds)
    for other in others:
        if {"sealane", other} <= rounds.runs.keys():
            figures[f"{prefix}_vs_{other.replace('-', '_')}"] = rounds.times_as_fast("sealane", other)
    return figures


def _run(
    source: QemuProcess,
    start: Start | None,
    memory_mib: int,
    certificates: Path,
    settings: MigrationSettings,
    *,
    apart: bool,
) -> Run:
    """One migration, through a pair or (without `start`) by QEMU's own TLS, and the source made ready for the next."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with destination_qemu(folder, memory_mib, certificates) as destination:
            try:
                return trio.run(_migrate, source, destination, start, folder, settings, apart)
            except (HypervisorError, trio.TooSlowError) as error:
                raise BenchError(f"the migration failed: {error}") from error


async def _migrate(
    source: QemuProcess,
    destination: QemuProcess,
    start: Start | None,
    folder: Path,
    settings: MigrationSettings,
    apart: bool,
) -> Run:
    leave = folder / peers.VM / "leave.sock"
    leave.parent.mkdir()
    port = peers.free_port()
    async with conversation(source) as sender, conversation(destination) as receiver:
        await sender.machine.prepare_source(settings)
        await receiver.machine.hold_incoming()
        await receiver.machine.prepare_destination(settings)
        for end in (sender, receiver):
            await _use_qemus_tls(end, start is None)
        incoming = f"unix:{leave}" if start else f"tcp:127.0.0.1:{port}"
        await receiver.tell("migrate-incoming", uri=incoming)
        with start(folder, leave) if start else nullcontext() as carrier:
            relays = carrier.pids if carrier else ()
            to = f"unix:{carrier.enter}" if carrier else incoming
            if apart:
                keep_apart((source.pid, *relays[:1]), (destination.pid, *relays[1:]))
            with Meter((source.pid, destination.pid, *relays)) as everyone, Meter(relays) as relaying:
                started = time.monotonic()
                await sender.tell("migrate", uri=to)
                await sender.machine.wait_migration(deadline_seconds=DEADLINE_SECONDS)
                seconds = time.monotonic() - started
            moved = await sender.machine.progress()
            await receiver.machine.wait_incoming(deadline_seconds=DEADLINE_SECONDS)
        await sender.machine.take_back()
    return Run(seconds, moved.transferred_bytes, everyone.cpu_seconds, relaying.peak_rss_bytes)


async def _use_qemus_tls(end: Conversation, tls: bool) -> None:
    """Whether QEMU itself encrypts the next migration, with the certificates that it was started with."""
    name, host = ("tls0", "localhost") if tls else ("", "")
    await end.tell("migrate-set-parameters", tls_creds=name, tls_hostname=host)
