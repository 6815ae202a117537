"""What a client of libvirt on this host wants, as the gateway is asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from transport.errors import TransportError


class NotAdmitted(TransportError):
    """The gateway did not permit it, or cannot be asked: the words are for the caller."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A VM of this host by UUID and name, a destination by its name, the ports that it takes.

    `token` and `reason`: of the person on whose behalf it is, if one has said so.
    """

    vm: str
    vm_name: str
    destination: str
    ports: tuple[str, ...]
    caller_uid: int
    token: str | None = field(default=None, repr=False)
    reason: str | None = None
