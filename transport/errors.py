"""What can go wrong on the way of a stream, split by who must act.

TransportError
├── ProtocolViolation   the peer: it broke the wire protocol; its session ends, nothing of the message is used
├── OfferRefused        the requester: the destination refused the offer (code, message)
├── PeerCancelled       the requester or the peer's operator: the peer ended the session in order
├── ConnectionBroken    the network, or a peer that died: the session may be settled later, never taken for an end
├── LocalBroken         the operator of this host: the hypervisor's connection failed
│   ├── NobodyListens   the operator of the destination: no program is where a port leads
│   └── NotRecoverable  the operator of the destination: no guest there waits for the rest of its memory
├── SpoolFailed         the operator of this host: durable state cannot be read or written
├── ConfigurationError  the operator of this host: configuration file, key or socket folder
└── Misuse              us: a bug of this program
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

# What msgspec raises for bytes that are not what was asked for: UnicodeDecodeError within a text, RecursionError for
# nesting within a member that it passes over. Whoever forgets the latter two is ended by whoever sends them.
UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class RefusalCode(Enum):
    """Why a destination refuses an Offer; the only words that a refused peer gets."""

    PROTOCOL = "protocol"
    PERMIT_SIZE = "permit_size"
    PERMIT_SIGNATURE = "permit_signature"
    PERMIT_FORMAT = "permit_format"
    PERMIT_AUDIENCE = "permit_audience"
    PERMIT_TIMES = "permit_times"
    PERMIT_PARTIES = "permit_parties"
    PERMIT_VM = "permit_vm"
    PERMIT_PORTS = "permit_ports"
    PERMIT_PROOF = "permit_proof"
    PERMIT_REQUIREMENTS = "permit_requirements"
    PERMIT_REPLAYED = "permit_replayed"
    SESSION_UNKNOWN = "session_unknown"
    SESSION_KNOWN = "session_known"
    BUSY = "busy"
    HYPERVISOR = "hypervisor"
    INTERNAL = "internal"


def quoted(words: str) -> str:
    """A peer's words between quotes, printable ASCII alone: an escape sequence in them would rule a terminal."""
    return ascii(words)


class TransportError(Exception):
    """Root of this package's errors."""


class ProtocolViolation(TransportError):
    """The peer broke a rule of the wire protocol. `rule` names it, for our log."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"the peer broke the wire protocol: {rule}")
        self.rule = rule


class OfferRefused(TransportError):
    """An offer was refused: by our own check before it was sent, or by the destination relay.

    `is_told`: whether a peer may read the detail, or the code alone.
    """

    def __init__(self, code: RefusalCode, detail: str, *, is_told: bool = False) -> None:
        super().__init__(f"offer refused ({code.value}): {detail}")
        self.code = code
        self.is_told = is_told or code is RefusalCode.BUSY
        self.detail = detail


class PeerCancelled(TransportError):
    """The peer sent Cancel. `code` and `reason` are the peer's words, escaped: a log or a terminal may show them."""

    def __init__(self, code: str, reason: str) -> None:
        reason = quoted(reason)
        super().__init__(f"the peer relay cancelled the session ({code}): {reason}")
        self.code = code
        self.reason = reason


class ConnectionBroken(TransportError):
    """A TCP or TLS connection of the session ended out of order."""


class LocalBroken(TransportError):
    """The connection to the local hypervisor, or its socket, failed."""


class NobodyListens(LocalBroken):
    """At the destination nobody takes a connection where a port leads. `told`: to S; where that is, is for our log."""

    def __init__(
        self,
        detail: str,
        told: str = "nobody listens at the destination where that port leads; its relay's log says where",
    ) -> None:
        super().__init__(detail)
        self.told = told


class NotRecoverable(LocalBroken):
    """At the destination no guest waits for the rest of its memory; in words that S may read."""


class SpoolFailed(TransportError):
    """Durable state could not be read or written: nothing may be promised on top of it."""


class ConfigurationError(TransportError):
    """The relay's configuration cannot be used; the message names the file, the key and the remedy."""


class Misuse(TransportError):
    """A rule of our own API was broken: a bug in Sealane."""
