"""Two relays in this process that drive QEMU by QMP, side by side or with a network in between that can be cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.transport.relay.conftest import host_with, serving
from tests.transport.relay.cutter import Network, network_to
from tests.transport.site import Site
from transport.relay.config import split_address
from transport.relay.host import RelayHost
from transport.relay.news import News


@dataclass
class Stage:
    site: Site
    source: RelayHost
    address: str
    news: list[News] = field(default_factory=list)

    async def tell(self, news: News) -> None:
        self.news.append(news)


Limits = dict[str, float]


def qmp_host(site: Site, name: str, limits: Limits) -> RelayHost:
    qmp_socket = str(site.folder / f"q{name}" / "{uuid}" / "qmp.sock")
    return host_with(site, name, limits, kind="qmp", qmp_socket=qmp_socket)


@asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    site = Site.lay_out(folder)
    source, destination = (qmp_host(site, name, {}) for name in ("a", "b"))
    async with serving(destination) as (_, address):
        yield Stage(site, source, address)


@asynccontextmanager
async def stage_over_network(
    network: list[Network], limits: Limits, folder: Path, host: Callable[[Site, str, Limits], RelayHost] = qmp_host
) -> AsyncIterator[Stage]:
    """The network is put into `network`."""
    site = Site.lay_out(folder)
    source, destination = (host(site, name, limits) for name in ("a", "b"))
    async with serving(destination) as (_, address), network_to(split_address(address, "relay")) as between:
        network.append(between)
        yield Stage(site, source, between.address)
