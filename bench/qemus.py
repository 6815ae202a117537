"""Two QEMUs for the migration bench: a source that is used again and again, and a new destination for each run.

The guest fills nearly all of its memory with random words, then sleeps: all of it must be sent, and once. Memory is
preallocated on both sides, so that no run pays for the kernel's page faults.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from bench.harness import BenchError, wait_until
from bench.peers import VM, running
from gateway.demo.guest import PAGE_BYTES, READY, GuestLayout, build_boot_image
from transport.hypervisors.qemu import QemuMachine
from transport.hypervisors.qmp import QmpConnection

QEMU = "qemu-system-x86_64"
ANSWER_SECONDS = 30.0
FILL_SECONDS = 120.0
ASLEEP_TICKS = 2**31 - 1  # of 10 ms: the guest writes its one hot page once and then sleeps for most of a year


@dataclass(frozen=True, slots=True)
class QemuProcess:
    """A running QEMU, and the monitor that it listens on."""

    pid: int
    monitor: Path


@dataclass(frozen=True, slots=True)
class Conversation:
    """One open monitor in two forms: what relays ask of a QEMU, and QEMU's own commands."""

    machine: QemuMachine
    raw: QmpConnection

    async def tell(self, command: str, **arguments: str) -> None:
        """One QMP command; underscores in the names of its arguments stand for QEMU's dashes."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        await self.raw.execute(command, named, deadline_seconds=ANSWER_SECONDS)


@contextmanager
def source_qemu(folder: Path, memory_mib: int, certificates: Path) -> Iterator[QemuProcess]:
    """A QEMU whose guest has filled its memory and sleeps."""
    whole = GuestLayout.for_memory(memory_mib, 1)
    asleep = GuestLayout(start=whole.start, hot=whole.end - PAGE_BYTES, end=whole.end, ticks=ASLEEP_TICKS)
    image = build_boot_image(asleep, folder)
    boot = ["-drive", f"if=floppy,format=raw,readonly=on,file={image}"]
    with _qemu(folder, memory_mib, certificates, "client", boot) as process:
        serial = folder / "serial.txt"
        asleep_says = READY + b"1\n"
        wait_until(lambda: serial.read_bytes().startswith(asleep_says), "the filling of memory", FILL_SECONDS)
        yield process


@contextmanager
def destination_qemu(folder: Path, memory_mib: int, certificates: Path) -> Iterator[QemuProcess]:
    """A QEMU that can be told to wait for a migration."""
    with _qemu(folder, memory_mib, certificates, "server", ["-incoming", "defer"]) as process:
        yield process


@contextmanager
def _qemu(folder: Path, memory_mib: int, certificates: Path, tls_end: str, more: list[str]) -> Iterator[QemuProcess]:
    monitor = folder / "qmp.sock"
    command = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-uuid", VM]
    command += ["-machine", "pc,memory-backend=ram", "-m", f"{memory_mib}M"]
    command += ["-object", f"memory-backend-ram,id=ram,size={memory_mib}M,prealloc=on"]
    command += ["-object", f"tls-creds-x509,id=tls0,dir={certificates / 'qemu'},endpoint={tls_end},verify-peer=yes"]
    command += ["-serial", f"file:{folder / 'serial.txt'}", "-qmp", f"unix:{monitor},server=on,wait=off", *more]
    with running(command, folder / "qemu.log") as process:
        wait_until(lambda: _answers(monitor, process), "QEMU's start")
        yield QemuProcess(process.pid, monitor)


def _answers(monitor: Path, process: subprocess.Popen[bytes]) -> bool:
    """Whether QEMU greets, which it does when all of its start is over."""
    if process.poll() is not None:
        raise BenchError(f"QEMU ended with exit code {process.returncode}")
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(monitor))
        except OSError:
            return False
        client.settimeout(ANSWER_SECONDS)
        return bool(client.recv(1))


@asynccontextmanager
async def conversation(qemu: QemuProcess) -> AsyncIterator[Conversation]:
    """The monitor of a QEMU. QMP allows one at a time."""
    with trio.fail_after(ANSWER_SECONDS):
        connection = await QmpConnection.connect(qemu.monitor, deadline_seconds=ANSWER_SECONDS)
    async with connection:
        yield Conversation(QemuMachine(connection, ANSWER_SECONDS), connection)
