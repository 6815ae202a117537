"""BLAKE3 over all that a channel carries, in each direction, where the permit asks for it: both receipts then say the
same of the content, and whoever has it can be held against them.

Each byte is hashed once at each end, as it was read from one hypervisor and as it was written to the other, however
often the network had it sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, Self

from policy.permit import PermitClaims
from transport.wire.control import Role
from transport.wire.preface import MAX_CHANNELS

MAX_DIGESTED_CHANNELS: Final = 128  # whose digests fit a receipt of 48 KiB


def most_channels(claims: PermitClaims) -> int:
    """That a session may have by its permit: its receipt must hold the counts and the digests of each."""
    most = MAX_DIGESTED_CHANNELS if claims.requirements.content_digest else MAX_CHANNELS
    return min(claims.limits.max_channels, most)


class Hasher(Protocol):
    def update(self, data: memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ContentDigests:
    """Of one channel. `sent`: of this end's hypervisor; `received`: of the peer's."""

    sent: Hasher
    received: Hasher

    @classmethod
    def new(cls) -> Self:
        from blake3 import blake3  # noqa: PLC0415 - relays whose permits never ask for it do without

        return cls(blake3(), blake3())


def document(digests: Mapping[int, ContentDigests], role: Role) -> dict[str, str]:
    """As receipts have them, by channel and direction: both ends' are equal."""
    found = {}
    for channel, each in digests.items():
        there, back = (each.sent, each.received) if role is Role.SOURCE else (each.received, each.sent)
        found[f"{channel}/source-to-destination"] = there.hexdigest()
        found[f"{channel}/destination-to-source"] = back.hexdigest()
    return found
