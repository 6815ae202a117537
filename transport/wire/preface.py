"""The first 56 bytes of a lane: which connection and channel it belongs to, and proof that S opened it.

     0      4          6        8                   24              56
    ┌──────┬──────────┬────────┬───────────────────┬────────────────┐
    │"SLN1"│ channel  │ zero   │ connection id[16] │ HMAC-SHA-384   │
    │      │ u16      │ u16    │                   │ first 32 bytes │
    └──────┴──────────┴────────┴───────────────────┴────────────────┘

A wrong preface closes its own TCP connection and nothing else, so that an observer can end no session.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import dataclass

from transport.errors import Misuse, ProtocolViolation
from transport.wire.keys import ConnectionKeys

MAGIC = b"SLN1"
PREFACE_BYTES = 56
MAX_CHANNELS = 256  # QEMU's multifd stops at 255, and one is the main channel
_HEAD = struct.Struct(">4sHH16s")


@dataclass(frozen=True, slots=True)
class Preface:
    """A preface as read, not yet authenticated."""

    channel: int
    connection_id: bytes
    head: bytes
    mac: bytes


def make_preface(keys: ConnectionKeys, channel: int) -> bytes:
    if not 0 <= channel < MAX_CHANNELS:
        raise Misuse(f"channel {channel} is out of range")
    head = _HEAD.pack(MAGIC, channel, 0, keys.connection_id)
    return head + _mac(keys, channel, head)


def read_preface(data: bytes) -> Preface:
    """Take 56 bytes apart; `ProtocolViolation` unless every fixed byte is what it must be."""
    if len(data) != PREFACE_BYTES:
        raise ProtocolViolation("a preface of the wrong size")
    magic, channel, zero, connection_id = _HEAD.unpack_from(data)
    if magic != MAGIC or zero != 0 or channel >= MAX_CHANNELS:
        raise ProtocolViolation("a preface with a wrong fixed byte")
    return Preface(channel, connection_id, data[:24], data[24:])


def authenticate_preface(preface: Preface, keys: ConnectionKeys) -> None:
    """`ProtocolViolation` unless the holder of this connection's keys made the preface."""
    if not hmac.compare_digest(preface.mac, _mac(keys, preface.channel, preface.head)):
        raise ProtocolViolation("a preface that does not authenticate")


def _mac(keys: ConnectionKeys, channel: int, head: bytes) -> bytes:
    return hmac.digest(keys.preface_key(channel), head, "sha384")[:32]
