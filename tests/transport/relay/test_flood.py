"""Thousands of strangers at the one port, and a migration that starts meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from bench.harness import peak_rss_bytes
from tests.transport.relay.conftest import until
from tests.transport.relay.test_carriage import VM, dial, listen
from tests.transport.relay.test_handover import RelayProcess, relay
from tests.transport.site import Site, write_toml
from transport.relay.address_book import AddressBook
from transport.relay.config import RelayConfig, split_address
from transport.relay.host import open_host
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source

pytestmark = pytest.mark.whole

MIB = 1 << 20
# Who had to take turns with 400 strangers would not have had theirs when the handshake's deadline is over.
LIMITS = {"handshakes_per_second": 10, "handshake_seconds": 10.0}


@asynccontextmanager
async def flooded(running: RelayProcess, count: int, addresses: int, folder: Path) -> AsyncIterator[None]:
    """Inside the block `count` strangers are at the relay's port, and come again whenever they are put out."""
    host, port = split_address(running.address, "relay")
    said = folder / "flood.log"
    command = [sys.executable, "-m", "tests.transport.relay.flood", host, str(port), str(count), str(addresses)]
    with said.open("wb") as log:
        flood = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        await until(lambda: said.read_bytes().startswith(b"open ") or flood.poll() is not None, 60)
        assert flood.poll() is None, said.read_text()
        assert int(said.read_text().split()[1]) >= 0.9 * count, said.read_text()
        yield
    finally:
        flood.kill()
        flood.communicate()


def config_of(site: Site, name: str) -> RelayConfig:
    config = site.relay_config(name)
    return msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, **LIMITS))


def names_in(folder: Path) -> set[str]:
    """Also while some of it goes."""
    return {name for _, folders, files in os.walk(folder) for name in (*folders, *files)}


@pytest.mark.parametrize("addresses", [1, 20, 400], ids=lambda n: f"from {n} addresses")
async def test_a_migration_starts_among_five_thousand_strangers(site: Site, short_path: Path, addresses: int) -> None:
    book = {
        "spiffe_id": site.spiffe("a"),
        "name": "a",
        "libvirt_name": "a",
        "addresses": [{"address": "127.0.0.1:7443"}],
    }
    document = msgspec.json.encode({"version": "0" * 64, "hosts": [book]})
    open_host(config_of(site, "b")).addresses.keep(AddressBook.decode(document, 1))
    async with listen(site) as listener:
        source = open_host(config_of(site, "a"))
        news: list[News] = []

        async def tell(one: News) -> None:
            news.append(one)

        async with relay(write_toml(config_of(site, "b"), short_path / "b.toml")) as running:
            state = names_in(site.folder / "relay-b")
            async with flooded(running, 5000, addresses, short_path), trio.open_nursery() as nursery:
                order = MigrationOrder(site.permit(vm=VM), running.address)
                began = trio.current_time()
                nursery.start_soon(carry_as_source, source, order, tell, trio.Event(), short_path / "in.sock")
                await until(lambda: (short_path / "in.sock").is_socket() or bool(news), 60)
                async with await dial(short_path / "in.sock") as sending, await listener.accept() as receiving:
                    await sending.send_all(b"guest")
                    assert await receiving.receive_some(10) == b"guest"
                    seconds = trio.current_time() - began
                await until(lambda: bool(news) and news[-1].state == "completed", 60)
            print(f"{seconds:.2f} s")  # a fraction of one where nobody else uses the machine
            assert seconds < 15
            assert peak_rss_bytes(running.process.pid) < 150 * MIB
            lines = running.output.read_text().splitlines()
            assert len(lines) < 20, lines  # an unauthenticated peer fills neither log
            # Nor disk: what is left once the destination has ended it, too, is the migration's.
            await until(lambda: all(".json" in name for name in names_in(site.folder / "relay-b") - state), 60)
