"""Who may be one: an address, or of IPv6 a /64, of which a single machine may have every address."""

from __future__ import annotations

import ipaddress


def crowd_of(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))
