"""Outgoing TCP connections of a relay: which of the destination's addresses, and by which address, device and mark.

The relay's `[network]` decides; what it leaves open, the address book's entry of this very host says.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

import trio

from transport.errors import ConnectionBroken
from transport.relay.address_book import AddressBook, Entry
from transport.relay.config import split_address
from transport.relay.config_sections import NetworkSection
from transport.relay.tcp import tune_tcp

MAX_ROUTES = 8


@dataclass(frozen=True, slots=True)
class Leaving:
    """How a connection leaves this host. Empty texts and None: as the kernel chooses."""

    bind_ipv4: str = ""
    bind_ipv6: str = ""
    device: str = ""
    dscp: int | None = None

    def mark(self, sock: socket.socket | trio.socket.SocketType) -> None:
        """Mark what the socket sends. OSError."""
        if self.dscp is not None:
            mark_packets(sock, self.dscp)

    def bind(self, sock: trio.socket.SocketType) -> None:
        """Before connecting. OSError where the device or the address is not this host's."""
        self.mark(sock)
        if self.device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.device.encode() + b"\0")

    def address_for(self, family: int) -> str:
        return self.bind_ipv6 if family == socket.AF_INET6 else self.bind_ipv4


def leaving_of(network: NetworkSection, own: Entry | None) -> Leaving:
    """What the configuration says, else what the address book says of this host."""
    chosen = Leaving(network.bind_ipv4, network.bind_ipv6, network.bind_device, network.dscp)
    if own is None:
        return chosen
    marked = next((each.dscp for each in own.addresses if each.dscp is not None), None)
    device = next((each.device for each in own.addresses if each.device is not None), "")
    return replace(
        chosen,
        device=chosen.device or device or "",
        dscp=chosen.dscp if chosen.dscp is not None else marked,
    )


def routes(address: str, destination: str, book: AddressBook) -> tuple[tuple[str, int], ...]:
    """Where to try, in this order: `address` as ordered, then what the book knows of `destination` (a SPIFFE id)."""
    entry = book.host(destination)
    texts = dict.fromkeys((address, *(each.address for each in (entry.addresses if entry else ()))))
    return tuple(split_address(text, "destination address") for text in texts)[:MAX_ROUTES]


async def connect_first(
    addresses: Sequence[tuple[str, int]], leaving: Leaving, seconds: float
) -> tuple[trio.socket.SocketType, tuple[str, int]]:
    """The first of `addresses` that answers within `seconds`, each; ConnectionBroken if none does."""
    causes = []
    for address in addresses:
        try:
            return await connect(address, leaving, seconds), address
        except ConnectionBroken as broken:
            causes.append(str(broken))
    raise ConnectionBroken("; ".join(causes))


async def connect(address: tuple[str, int], leaving: Leaving, seconds: float) -> trio.socket.SocketType:
    """A connected and tuned socket; ConnectionBroken otherwise."""
    name = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    try:
        with trio.fail_after(seconds):
            found = await trio.socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
            family, kind, protocol, _, target = found[0]
            sock = trio.socket.socket(family, kind, protocol)
            try:
                await _leave(sock, family, leaving)
                await sock.connect(target)
                tune_tcp(sock)
            except BaseException:
                sock.close()
                raise
    except (OSError, UnicodeError, trio.TooSlowError) as error:  # UnicodeError: a host name that is none
        if isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}:
            raise ConnectionBroken("this host has no descriptor left: raise LimitNOFILE of its relay") from None
        raise ConnectionBroken(f"nobody answers at {name}") from None
    return sock


async def _leave(sock: trio.socket.SocketType, family: int, leaving: Leaving) -> None:
    try:
        leaving.bind(sock)
        if own := leaving.address_for(family):
            await sock.bind((own, 0))
    except OSError as error:
        by = " ".join(filter(None, (leaving.address_for(family), leaving.device)))
        raise ConnectionBroken(f"this host cannot leave by {by}: {error.strerror}; see [network]") from None


def mark_packets(sock: socket.socket | trio.socket.SocketType, dscp: int) -> None:
    """Set the six upper bits of the traffic class (RFC 2474). A listening socket hands them on. OSError."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, dscp << 2)
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2)
