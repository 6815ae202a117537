"""Named ports: `[ports.NAME]`, by which other programs use a lane under a permit of their own (docs/relay.md).

A permit for one opens nothing else. The relay knows nothing of the program, and moves no guest.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from policy.permit import HYPERVISOR_PORTS, PORT_NAME
from policy.settings.allowed import shown
from transport.relay.vm_paths import MAX_UNIX_PATH, has_placeholder, path_of

PortName = Annotated[
    str,
    Meta(
        pattern=PORT_NAME,
        max_length=32,
        description="a port's name: 1 to 32 of a-z, 0-9 and -, a letter first and no - at the end",
    ),
]
_UUID_CHARS: Final = 36


class PortSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`listen`: at the source, the unix socket that each session makes, with `{uuid}` in it once. `peer_uids`: who may
    connect to it.

    `connect`: at the destination, where the stream goes: a unix socket (an absolute path, in which `{uuid}` may stand)
    or a port of loopback. "": this host is no destination for it.
    """

    listen: str = ""
    connect: str = ""
    peer_uids: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1, max_length=64)] = (0,)

    def listens_at(self, name: str, vm: str) -> Path:
        """Of a session for the VM of that canonical UUID."""
        return path_of(self.listen or f"/run/sealane/ports/{name}-{{uuid}}.sock", vm)

    def connects_to(self, vm: str) -> Path | tuple[str, int] | None:
        if not self.connect.startswith("/"):
            return loopback_port(self.connect)
        return path_of(self.connect, vm)


def port_problem(name: str, section: PortSection) -> str:
    """What is wrong with it, for whoever wrote it; "" if nothing is."""
    if name in HYPERVISOR_PORTS:
        return "is a name of the hypervisor's; choose another"
    if section.listen and (not section.listen.startswith("/") or not has_placeholder(section.listen)):
        return "listen must be an absolute path with {uuid} in it once"
    if section.connect.startswith("/"):
        if "{" in section.connect and not has_placeholder(section.connect):
            return "connect: no other placeholder than {uuid}, and that once"
    elif section.connect and loopback_port(section.connect) is None:
        # A relay that dialled on into the network would be a tunnel past its firewalls.
        return f"connect: {shown(section.connect)} is neither an absolute path nor a port of a loopback address"
    for path in (section.listen, section.connect):
        if path.startswith("/") and len(path.replace("{uuid}", "0" * _UUID_CHARS)) > MAX_UNIX_PATH:
            return f"{shown(path)} is too long for a unix socket"
    return ""


def loopback_port(text: str) -> tuple[str, int] | None:
    """("127.0.0.1", 873) of "127.0.0.1:873"; None for whatever is no port of loopback."""
    address, colon, port = text.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    elif ":" in address:
        return None
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        return None
    is_port = bool(colon) and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535
    return (address, int(port)) if is_loopback and is_port else None
