"""A stream between two relays in a network namespace of its own, which goes silent, or whose addresses change.

`unshare -n python -m tests.transport.relay.silence silent|moved|guest [SECONDS]`: prints one JSON object; SECONDS of
silence. `guest`: a real QEMU is moved meanwhile, and counts on.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import trio

from tests.transport.kinds import KINDS, move
from tests.transport.relay.conftest import Pair, serving, until
from tests.transport.relay.test_resumption import Talk, is_whole, talk
from tests.transport.site import Site
from tests.transport.stages import Stage
from transport.relay.config import RelayConfig
from transport.relay.host import open_host

SILENT_SECONDS = 8.0
LIMITS = {"resume_seconds": 40.0, "silence_seconds": 2.0}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


def at(config: RelayConfig, listen: str) -> RelayConfig:
    limits = msgspec.structs.replace(config.limits, **LIMITS)
    return msgspec.structs.replace(config, limits=limits, relay=msgspec.structs.replace(config.relay, listen=listen))


def goes_through(own: str) -> None:
    """S reaches D from its own address `own`, and has no other."""
    ip("route", "replace", "local", "10.9.0.2", "dev", "lo", "table", "local", "src", own)


class Where:
    """All that `talk` asks of a network."""

    def __init__(self, address: str) -> None:
        self.address = address


@asynccontextmanager
async def apart(folder: Path) -> AsyncIterator[Stage]:
    """The two relays of a guest, each at an address of its own."""
    site = Site.lay_out(folder)
    configs = (
        at(site.relay_config(name, kind="qmp", qmp_socket=str(folder / f"q{name}" / "{uuid}" / "qmp.sock")), listen)
        for name, listen in (("a", "10.9.0.1:0"), ("b", "10.9.0.2:0"))
    )
    source, destination = map(open_host, configs)
    async with serving(destination) as (_, address):
        yield Stage(site, source, address)


async def move_guest(seconds: float) -> dict[str, object]:
    """With the network gone for so long, once some of its memory has been sent."""
    slow = replace(KINDS[0], bandwidth=8 << 20, memory_mib=64, hot_mib=1)
    was_silent: list[float] = []

    async def silence(stage: Stage) -> None:
        await until(lambda: any(each.progress and each.progress.transferred_bytes > 4 << 20 for each in stage.news), 60)
        began = trio.current_time()
        ip("link", "set", "lo", "down")
        await trio.sleep(seconds)
        ip("link", "set", "lo", "up")
        for own in ("10.9.0.1", "10.9.0.2"):
            subprocess.run(["ip", "addr", "add", f"{own}/32", "dev", "lo"], check=False, stderr=subprocess.DEVNULL)
        goes_through("10.9.0.1")
        was_silent.append(trio.current_time() - began)

    with tempfile.TemporaryDirectory(prefix="sl") as name:
        evidence = await move(slow, Path(name), meddle=silence, within=apart, seconds=120 + seconds)
        (receipt,) = (Path(name) / "relay-a" / "receipts").glob("*-source*")
        body = json.loads(json.loads(receipt.read_bytes())["receipt"]["body"])
    return {"evidence": evidence, "resumptions": body["resumptions"], "silent_seconds": round(was_silent[0], 1)}


async def main(what: str, seconds: float = SILENT_SECONDS) -> None:
    ip("link", "set", "lo", "up")
    for own in ("10.9.0.1", "10.9.0.2", "10.9.0.3"):
        ip("addr", "add", f"{own}/32", "dev", "lo")
    goes_through("10.9.0.1")
    if what == "guest":
        print(json.dumps(await move_guest(seconds)))
        return
    said = Talk(random.Random(1).randbytes(60_000_000), random.Random(2).randbytes(1_000_000))

    async def disturb(said: Talk) -> None:
        await until(lambda: said.sizes["forth"] > 8_000_000, 30)
        if what == "silent":
            ip("link", "set", "lo", "down")
            await trio.sleep(seconds)
            ip("link", "set", "lo", "up")
        for own in ("10.9.0.1", "10.9.0.2", "10.9.0.3"):
            subprocess.run(["ip", "addr", "add", f"{own}/32", "dev", "lo"], check=False, stderr=subprocess.DEVNULL)
        goes_through("10.9.0.3")
        ip("addr", "del", "10.9.0.1/32", "dev", "lo")

    with tempfile.TemporaryDirectory(prefix="sl") as name:
        folder = Path(name)
        site = Site.lay_out(folder)
        async with serving(open_host(at(site.relay_config("b"), "10.9.0.2:0"))) as (destination, address):
            pair = Pair(site, open_host(at(site.relay_config("a"), "10.9.0.1:0")), destination, address)
            began = trio.current_time()
            await talk(pair, Where(address), folder / "in.sock", said, disturb)
            (receipt,) = pair.source.spool.receipts()
            body = json.loads(json.loads(receipt.read_bytes())["receipt"]["body"])
    told = {"state": said.state, "is_whole": is_whole(said), "resumptions": body["resumptions"]}
    print(json.dumps(told | {"seconds": round(trio.current_time() - began, 1)}))


if __name__ == "__main__":
    trio.run(partial(main, sys.argv[1], *map(float, sys.argv[2:3])))
