"""CRIU moves a process: its memory goes from `criu dump` through a named port to `criu page-server`.

Not in `make test`: Debian 12's CRIU does not start on kernels of today. `make criu` fetches a newer one and runs this.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from tests.transport.relay.conftest import serving, unheard, until
from tests.transport.site import Site
from transport.relay.host import RelayHost, open_host
from transport.relay.named_ports import PortSection
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source

pytestmark = pytest.mark.real
CRIU = str(Path(__file__).parents[3] / ".criu" / "criu")
VM = "5ea1a4e0-0000-4000-8000-0000000000ac"
MIB = 1 << 20
COUNTS = f"""
import hashlib, os, sys, time
memory, number = os.urandom({32 * MIB}), 0
while True:
    number += 1
    with open(sys.argv[1], "a") as file:
        file.write(f"{{number}} {{hashlib.sha256(memory).hexdigest()}}\\n")
    time.sleep(0.05)
"""


class Counting:
    """A process without a terminal that counts, and says each time what is in its memory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "counted"
        command = [sys.executable, "-c", COUNTS, str(self.path)]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=null, stdout=null, stderr=null, start_new_session=True)

    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.path.read_text().splitlines()] if self.path.exists() else []


@pytest.fixture
def counting(short_path: Path) -> Iterator[Counting]:
    made = Counting(short_path)
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            os.kill(made.process.pid, signal.SIGKILL)  # restored, it has the same number
        made.process.wait(10)


def host_of(site: Site, name: str, port: PortSection) -> RelayHost:
    return open_host(msgspec.structs.replace(site.relay_config(name), ports={"pages": port}))


async def criu(*arguments: str | Path, keep: tuple[int, ...] = ()) -> None:
    """It must end well. It dies with the test's deadline."""
    await trio.run_process([CRIU, *map(str, arguments)], pass_fds=keep, capture_stdout=True, capture_stderr=True)


async def test_the_memory_of_a_process_goes_through_a_named_port_and_it_counts_on(
    site: Site, short_path: Path, counting: Counting
) -> None:
    here, there = short_path / "here", short_path / "there"
    here.mkdir()
    there.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    source = host_of(site, "a", PortSection(listen=f"{short_path}/{{uuid}}"))
    destination = host_of(site, "b", PortSection(connect=f"127.0.0.1:{port}"))
    told: list[News] = []
    with trio.fail_after(120):
        await until(lambda: len(counting.lines()) > 5, 30)
        async with serving(destination) as (_, address), trio.open_nursery() as nursery:
            nursery.start_soon(partial(criu, "page-server", "-D", there, "--address", "127.0.0.1", "--port", str(port)))
            await until(lambda: is_listening(port), 30)  # it takes one connection: it must not be a try of ours

            async def carry() -> None:
                order = MigrationOrder(site.permit(vm=VM, ports=("pages",)), address)
                told.append(await carry_as_source(source, order, unheard, trio.Event()))

            nursery.start_soon(carry)
            at = short_path / VM
            await until(at.is_socket, 30)
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(str(at))
                number = str(line.fileno())
                tree = ("--tree", str(counting.process.pid))
                await criu("dump", *tree, "-D", here, "--page-server", "--ps-socket", number, keep=(line.fileno(),))
        before = counting.lines()
        assert [(news.state, news.message) for news in told] == [("completed", "")]
        assert sum(file.stat().st_size for file in there.glob("pages-*.img")) > 32 * MIB
        assert not list(here.glob("pages-*.img"))
        for image in here.glob("*.img"):  # some kilobytes: of what, but not what was in it
            shutil.copy(image, there)
        counting.process.wait(10)
        await criu("restore", "-D", there, "--restore-detached")
        await until(lambda: len(counting.lines()) > len(before) + 5, 30)
    numbers = [int(number) for number, _ in counting.lines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len({memory for _, memory in counting.lines()}) == 1


def is_listening(port: int) -> bool:
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(line[1].endswith(f":{port:04X}") and line[3] == "0A" for line in lines)
