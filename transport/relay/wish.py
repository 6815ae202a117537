"""What a client of libvirt on this host wants, as the gateway is asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from transport.errors import TransportError


class NotAdmitted(TransportError):
    """The gateway did not permit it, or cannot be asked: the words are for the caller."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A VM of this host, a destination by its name, the ports that it takes; `token` of the person, if one came."""

    vm: str
    destination: str
    ports: tuple[str, ...]
    caller_uid: int
    token: str | None = field(default=None, repr=False)
