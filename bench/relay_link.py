"""How full a long link gets, and what sessions cost that do nothing.

`link_fill_percent`: one stream through two relays over 1 Gb/s with 50 ms of round trip, delayed in user space
(`bench.slow_link`), against what the link could carry. `idle_sessions_percent`: the CPU, in percent of one core, of
the dearer of two relays that hold 50 sessions with an open channel each and nothing to carry.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio
from msgspec.structs import replace

from bench import peers
from bench.harness import GB, MB, BenchError, Plan, cpu_seconds, wait_until
from bench.peers import free_port, running
from bench.permit_latency import vm_uuid
from bench.relay_stream import carry
from bench.sealane_peer import destination_relay, mint_permit, sealane, source_config
from transport.relay.config import load_relay_config
from transport.relay.host import open_host
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source

ROUND_TRIP_MS, MEGABITS = 50, 1000
LINK_BYTES, QUICK_LINK_BYTES = 1 * GB, GB // 5
SESSIONS, QUICK_SESSIONS = 50, 10
IDLE_SECONDS, QUICK_IDLE_SECONDS = 30.0, 5.0


def measure(plan: Plan) -> dict[str, float]:
    """Both figures."""
    return _link(plan) | _idle(plan)


def _link(plan: Plan) -> dict[str, float]:
    size_bytes = QUICK_LINK_BYTES if plan.quick else LINK_BYTES
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        run = carry(sealane(folder / "sealane", _slow_link), folder, size_bytes)
    return {"link_fill_percent": 100 * run.mb_per_second * MB * 8 / (MEGABITS * 1_000_000)}


@contextmanager
def _slow_link(folder: Path, port: int) -> Iterator[int]:
    near, log = free_port(), folder / "link.log"
    command = [sys.executable, "-m", "bench.slow_link", *map(str, (near, port, ROUND_TRIP_MS, MEGABITS))]
    with running(command, log):
        wait_until(lambda: log.read_bytes() == b"ready\n", "the link's start")
        yield near


def _idle(plan: Plan) -> dict[str, float]:
    count, seconds = (QUICK_SESSIONS, QUICK_IDLE_SECONDS) if plan.quick else (SESSIONS, IDLE_SECONDS)
    with tempfile.TemporaryDirectory(prefix="sl") as name:
        folder = Path(name)
        site = folder / "site"
        sealane(site)  # makes its keys
        with destination_relay(site, folder, folder / peers.VM / "leave.sock") as (port, pid):
            try:
                percent = trio.run(_hold, site, folder, port, pid, count, seconds)
            except trio.TooSlowError as error:
                raise BenchError("the sessions did not come up") from error
    return {"idle_sessions_percent": percent, "idle_sessions": float(count)}


async def _hold(site: Path, folder: Path, port: int, pid: int, count: int, seconds: float) -> float:
    """CPU percent of the dearer relay: the one at `pid`, or this process, which is the source of all sessions."""
    config = load_relay_config(source_config(site, folder, port))
    host = open_host(replace(config, limits=replace(config.limits, max_moves=count)))
    running_now = 0

    async def tell(news: News) -> None:
        nonlocal running_now
        running_now += news.state == "running"

    async with trio.open_nursery() as nursery:
        for number in range(count):
            vm = vm_uuid(number)
            leave = folder / vm / "leave.sock"
            leave.parent.mkdir()
            listening = trio.socket.socket(trio.socket.AF_UNIX)
            await listening.bind(str(leave))
            listening.listen(1)
            permit = mint_permit(site, int(time.time()), vm)
            enter = folder / f"{number}.sock"
            order = MigrationOrder(permit, f"127.0.0.1:{port}")
            nursery.start_soon(partial(carry_as_source, host, order, tell, trio.Event(), enter))
            with trio.fail_after(30):
                while not enter.is_socket():
                    await trio.sleep(0.01)
                await trio.open_unix_socket(str(enter))
                await listening.accept()
        await trio.sleep(1)
        before, own, began = cpu_seconds(pid), time.process_time(), time.perf_counter()
        await trio.sleep(seconds)
        elapsed = time.perf_counter() - began
        used = max(cpu_seconds(pid) - before, time.process_time() - own)
        nursery.cancel_scope.cancel()
    if running_now < count:
        raise BenchError(f"{running_now} of {count} sessions came up")
    return 100 * used / elapsed
