"""A relay that is reloaded as its unit does it, in the midst of a guest's move: nothing is interrupted or refused."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from gateway.demo.guest import GuestLayout, build_boot_image, count_passes
from gateway.demo.machines import Qemu, start_qemu, stop_qemu, wait_passes
from policy.permit import Limits
from tests.transport.relay.conftest import until
from tests.transport.relay.test_handover import START_SECONDS, write_config
from tests.transport.site import Site
from tests.transport.stages import qmp_host
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source

pytestmark = pytest.mark.real
FIRST, SECOND = (f"{digit * 8}-2222-4333-8444-555555555555" for digit in "12")
MEMORY_MIB = 32
SERVE = (
    "import sys; from pathlib import Path; from transport.relay.process import run_relay; "
    "sys.exit(run_relay(Path(sys.argv[1])))"
)


@asynccontextmanager
async def served(config: Path, held: socket.socket | None) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A relay as systemd starts it, which may hold its port."""
    command: list[str] = [sys.executable, "-c", SERVE, str(config)]
    descriptors: tuple[int, ...] = ()
    if held is not None:
        descriptors = (held.fileno(),)
        given = f'exec env LISTEN_PID=$$ LISTEN_FDS=1 "$@" 3<&{held.fileno()}'
        command = ["bash", "-c", given, "bash", *command]
    output = config.with_suffix(".log")
    with output.open("wb") as log:
        started = subprocess.Popen(command, pass_fds=descriptors, stdout=log, stderr=log)
    try:
        await until(lambda: '"ready"' in output.read_text() or started.poll() is not None, START_SECONDS)
        yield started
    finally:
        started.kill()
        started.wait()


@dataclass
class Move:
    """A guest on its way from host a to host b."""

    source: Qemu
    destination: Qemu
    news: list[News] = field(default_factory=list)

    async def tell(self, news: News) -> None:
        self.news.append(news)

    @property
    def sent_bytes(self) -> int:
        return max((each.progress.transferred_bytes for each in self.news if each.progress), default=0)


@asynccontextmanager
async def guest(site: Site, vm: str, image: Path) -> AsyncIterator[Move]:
    source = await start_qemu(site.folder / "qa" / vm, vm, memory_mib=MEMORY_MIB, image=image)
    try:
        destination = await start_qemu(site.folder / "qb" / vm, vm, memory_mib=MEMORY_MIB, image=image, incoming=True)
        try:
            await wait_passes(source, 3)
            yield Move(source, destination)
        finally:
            await stop_qemu(destination)
    finally:
        await stop_qemu(source)


@pytest.mark.parametrize("is_held", [True, False], ids=["by a socket unit", "without one"])
async def test_a_guest_that_moves_is_not_interrupted_and_the_next_one_waits_for_the_next_process(
    site: Site, *, is_held: bool
) -> None:
    image = build_boot_image(GuestLayout.for_memory(MEMORY_MIB, 1), site.folder)
    source = qmp_host(site, "a", {"resume_seconds": 60.0, "handshake_seconds": 10.0})
    slow = Limits(max_channels=16, bandwidth_bytes_per_second=4 << 20)
    with trio.fail_after(200), socket.create_server(("127.0.0.1", 0)) as held:
        address = "{}:{}".format(*held.getsockname())
        config = write_config(site, "b", address)
        if not is_held:
            held.close()
        given = held if is_held else None
        async with guest(site, FIRST, image) as first, guest(site, SECOND, image) as second:
            async with trio.open_nursery() as nursery, served(config, given) as reloaded:

                def begin(move: Move, vm: str, limits: Limits) -> None:
                    order = MigrationOrder(site.permit(vm=vm, limits=limits), address)
                    nursery.start_soon(carry_as_source, source, order, move.tell, trio.Event())

                begin(first, FIRST, slow)
                await until(lambda: first.sent_bytes > 1 << 20, 60)
                reloaded.send_signal(signal.SIGHUP)
                await until(lambda: "draining" in config.with_suffix(".log").read_text(), 20)
                begin(second, SECOND, Limits(max_channels=16, bandwidth_bytes_per_second=0))
                await until(lambda: reloaded.poll() is not None, 60)
                assert reloaded.returncode == 0
                await trio.sleep(2)  # RestartSec of the unit
                assert first.news[-1].state == "completed"
                assert not second.news, "it waits, and was told nothing"
                async with served(config, given):
                    await until(lambda: bool(second.news) and second.news[-1].state == "completed", 60)
            for move in (first, second):
                await until(lambda move=move: move.source.ended)  # type: ignore[misc]
                before = move.source.printed()
                await wait_passes(move.destination, count_passes(before) + 3, earlier=before)
