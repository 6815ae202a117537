"""The front within a relay: its callers, those who announce themselves, and the book whose hosts it leads to."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import structlog
import trio

from transport.libvirt_rpc.client import libvirt_client
from transport.relay.announced import Announced, listen_for_announcements
from transport.relay.front import Front, Migrate
from transport.relay.front_destinations import Loopbacks, wanted_destinations, write_hosts
from transport.relay.host import RelayHost

log = structlog.get_logger("sealane.relay")
_LOOK_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 10.0
_FIND_SECONDS: Final = 3.0


def announced_at(host: RelayHost) -> Announced:
    """The desk for tokens, which asks this host's libvirt which VM bears a name."""

    async def find(name: str) -> str | None:
        async with libvirt_client(Path(host.config.hypervisor.libvirt_socket), _FIND_SECONDS) as client:
            found = await client.find_named(name)
        return found.uuid if found is not None else None

    return Announced(host.config.front.token_file, find)


def start_front(host: RelayHost, migrate: Migrate, announced: Announced, nursery: trio.Nursery) -> None:
    """Listen, and serve in `nursery`; nothing where guests are not libvirt's. `ConfigurationError`."""
    section = host.config.front
    if host.config.hypervisor.kind != "libvirt" or not (section.destinations or section.from_address_book):
        return
    front = Front(section, host.config.limits, migrate, nursery, host.refused_calls, host.interrupted)
    front.listen()
    session_socket = listen_for_announcements(Path(section.session_socket))
    nursery.start_soon(announced.serve, session_socket, frozenset(section.peer_uids))
    if section.from_address_book:
        loopbacks = Loopbacks(Path(host.config.relay.state_dir), section.loopback_network)
        nursery.start_soon(_follow_book, host, front, loopbacks)
    nursery.start_soon(front.serve)


async def _follow_book(host: RelayHost, front: Front, loopbacks: Loopbacks) -> None:
    """Lead to the hosts of the address book in force, for ever."""
    section, followed = host.config.front, ""
    while True:
        book = host.addresses.book
        if book.version != followed:
            try:
                wanted = await host.on_disk(wanted_destinations, section, book, host.spiffe_id, loopbacks)
                front.lead_to(wanted)
                await host.on_disk(write_hosts, Path(section.folder), wanted, book)
            except OSError as error:
                log.error("the front cannot follow the address book", cause=str(error))
                await trio.sleep(_RETRY_SECONDS)
                continue
            followed = book.version
        await trio.sleep(_LOOK_SECONDS)
