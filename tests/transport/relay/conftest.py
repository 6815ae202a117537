"""Two relays in this process, on loopback, between plain unix sockets."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.transport.site import Site
from transport.relay.config import RelayConfig
from transport.relay.host import RelayHost, open_host
from transport.relay.news import News
from transport.relay.service import serve_relay
from transport.relay.source import MigrationOrder, carry_as_source


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for unix sockets, which pytest's own does not."""
    with tempfile.TemporaryDirectory(prefix="sl") as folder:
        yield Path(folder)


@pytest.fixture
def site(short_path: Path) -> Site:
    return Site.lay_out(short_path)


@dataclass
class Pair:
    """Source host `a`, and a relay that runs as destination host `b` at `address`."""

    site: Site
    source: RelayHost
    destination: RelayHost
    address: str
    news: list[News] = field(default_factory=list)
    cancelled: trio.Event = field(default_factory=trio.Event)

    async def tell(self, news: News) -> None:
        self.news.append(news)

    async def carry(self, permit: str, path: Path) -> News:
        return await carry_as_source(self.source, MigrationOrder(permit, self.address), self.tell, self.cancelled, path)


@pytest.fixture
async def pair(site: Site) -> AsyncIterator[Pair]:
    async with running_relay(site, "b") as (destination, address):
        yield Pair(site, open_host(site.relay_config("a")), destination, address)


def host_with(site: Site, name: str, limits: dict[str, float], **hypervisor: Any) -> RelayHost:
    """A relay's host whose limits differ from the site's."""
    return open_host(with_limits(site.relay_config(name, **hypervisor), **limits))


def with_limits(config: RelayConfig, **limits: float) -> RelayConfig:
    return msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, **limits))


async def unheard(_: News) -> None:
    """For a source of whose news nobody wants to hear."""


@contextlib.asynccontextmanager
async def running_relay(site: Site, name: str, **hypervisor: Any) -> AsyncIterator[tuple[RelayHost, str]]:
    async with serving(open_host(site.relay_config(name, **hypervisor))) as running:
        yield running


@contextlib.asynccontextmanager
async def serving(host: RelayHost) -> AsyncIterator[tuple[RelayHost, str]]:
    """A relay in this process, and the address at which it listens."""
    addresses: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_relay, host, addresses.append)
        await until(lambda: bool(addresses))
        yield host, addresses[0]
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something to become true, with a deadline."""
    with trio.fail_after(seconds):
        while not holds():
            await trio.sleep(0.005)
