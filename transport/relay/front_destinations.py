"""Which hosts the front leads to: those of the address book, each with a loopback address of its own.

An address that has led to a host leads to no other for ever, also after restarts and when that host has left: a client
whose settings are old must not move its VM to a stranger. So what was given is kept, in
`state_dir/front-loopbacks.json`. The address follows from the host's name, so that most relays give a host the same.
"""

from __future__ import annotations

import hashlib
import ipaddress
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from certs.files import write_atomically
from transport.errors import ConfigurationError
from transport.relay.address_book import MAX_HOSTS, AddressBook, Entry
from transport.relay.config_sections import FrontDestination, FrontSection

log = structlog.get_logger("sealane.relay")
FILE_NAME: Final = "front-loopbacks.json"
HOSTS_NAME: Final = "hosts"
_MAX_GIVEN: Final = 4 * MAX_HOSTS
_Given = dict[Annotated[str, Meta(min_length=1, max_length=63)], str]


def write_hosts(folder: Path, destinations: list[FrontDestination], book: AddressBook) -> None:
    """`folder`/hosts, in the form of /etc/hosts: which address leads to which host. Blocking. OSError."""
    lines = ["# written by the relay: addresses of this host that lead to other hosts\n"]
    for each in destinations:
        if each.loopback:
            entry = book.host(each.host)
            names = dict.fromkeys([entry.libvirt_name, each.host] if entry is not None else [each.host])
            lines.append(f"{each.loopback} {' '.join(names)}\n")
    write_atomically(folder / HOSTS_NAME, "".join(lines).encode(), 0o644)


class Loopbacks:
    """Addresses that were given to hosts, on the disk before they are used."""

    def __init__(self, state_dir: Path, network: str) -> None:
        """`ConfigurationError` if what is kept cannot be read: a new file would give addresses to other hosts."""
        self._path = state_dir / FILE_NAME
        self._network = ipaddress.IPv4Network(network) if network else None
        self._given: dict[str, ipaddress.IPv4Address] = {}
        try:
            kept = msgspec.json.decode(self._path.read_bytes(), type=_Given)
            self._given = {host: ipaddress.IPv4Address(address) for host, address in kept.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"{self._path}: {error}; restore it, or remove it and correct what names the front's loopback addresses"
            ) from None

    def of(self, hosts: list[str], taken: set[str]) -> dict[str, str]:
        """An address for each host; "" where the network has none left. `taken`: those that are written by hand.

        Blocking. OSError if a new one cannot be kept: then it is not used.
        """
        if self._network is None:
            return dict.fromkeys(hosts, "")
        given = dict(self._given)
        used = {str(address) for address in given.values()} | taken
        for host in hosts:
            kept = given.get(host)
            if (kept is None or kept not in self._network or str(kept) in taken) and len(given) < _MAX_GIVEN:
                given.pop(host, None)
                if (address := _free(self._network, host, used)) is not None:
                    given[host] = address
                    used.add(str(address))
        if given != self._given:
            kept_now = msgspec.json.encode({name: str(address) for name, address in given.items()}, order="sorted")
            write_atomically(self._path, msgspec.json.format(kept_now), 0o600)
            self._given = given
        return {host: str(given.get(host, "")) for host in hosts}


def wanted_destinations(
    section: FrontSection, book: AddressBook, own_id: str, loopbacks: Loopbacks
) -> list[FrontDestination]:
    """All that the front leads to now: those written by hand, then the book's. Blocking. OSError."""
    by_hand = {each.host: each for each in section.destinations}
    if not section.from_address_book:
        return section.destinations
    room = section.max_destinations - len(by_hand)
    others = sorted(entry.name for entry in book.hosts if _is_led_to(entry, own_id) and entry.name not in by_hand)
    if len(others) > room:
        log.error(
            "the front leads to some hosts of the address book only: see front.max_destinations", left=others[room:][:8]
        )
        others = others[: max(0, room)]
    addresses = loopbacks.of(others, {each.loopback for each in section.destinations})
    return [*by_hand.values(), *(FrontDestination(host, addresses[host]) for host in others)]


def leads_to(section: FrontSection, book: AddressBook, own_id: str, host: str) -> bool:
    """Whether the front has, or is about to have, this host."""
    if host in {each.host for each in section.destinations}:
        return True
    entry = book.host(host) if section.from_address_book else None
    return entry is not None and entry.name == host and _is_led_to(entry, own_id)


def _is_led_to(entry: Entry, own_id: str) -> bool:
    # A name becomes a folder's: only what is one label, which the inventory sees to for its own part.
    return entry.spiffe_id != own_id and entry.spiffe_id.rpartition("/")[2] == entry.name and _is_label(entry.name)


def _is_label(name: str) -> bool:
    return name.isascii() and name.replace("-", "a").isalnum() and name == name.lower() and name[0] != "-" != name[-1]


def _free(network: ipaddress.IPv4Network, host: str, used: set[str]) -> ipaddress.IPv4Address | None:
    """From the place that the name gives, the first address that nobody has; neither the first nor the last of all."""
    room = network.num_addresses - 2
    start = int.from_bytes(hashlib.sha256(host.encode()).digest()[:8], "big")
    for step in range(min(room, _MAX_GIVEN)):
        address = network.network_address + 1 + (start + step) % room
        # 127.0.0.1 and its neighbours are other programs' in any network that holds them.
        if str(address) not in used and address not in _HOME:
            return address
    return None


_HOME: Final = ipaddress.IPv4Network("127.0.0.0/24")
