"""Key schedule of a connection (docs/wire-protocol.md section 4): HKDF-SHA-384, secrets of 48 bytes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from transport.errors import Misuse

SECRET_BYTES = 48
FRAMES_PER_EPOCH = 1 << 16  # 64 GiB under one key at 1 MiB a frame, far below the AES-GCM bounds
_HASH_BYTES = 48


class Direction(IntEnum):
    """Which way a lane's frames go; part of the key, so that a reflected frame fails to open."""

    SOURCE_TO_DESTINATION = 0
    DESTINATION_TO_SOURCE = 1


def expand(secret: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand (RFC 5869) with SHA-384; `secret` is a 48-byte pseudorandom key."""
    if len(secret) != SECRET_BYTES or not 0 < length <= 255 * _HASH_BYTES:
        raise Misuse("HKDF-Expand takes a 48-byte secret and a length that it can give")
    output = block = b""
    counter = 1
    while len(output) < length:
        block = hmac.digest(secret, block + info + bytes([counter]), "sha384")
        output += block
        counter += 1
    return output[:length]


def exporter_context(
    permits: Sequence[str], source_leaf: bytes, destination_leaf: bytes, session_id: bytes, attempt: int
) -> bytes:
    """The TLS exporter's context: all that both ends must agree on before a lane opens. 32 bytes.

    `source_leaf` and `destination_leaf` are SHA-256 of the certificates' DER: the exporter itself binds only the
    server's, and a client certificate presented to another server must not give the same keys.

        SHA-256(u32 length ‖ permits, each u32 length ‖ text ‖ S leaf[32] ‖ D leaf[32] ‖ session id[16] ‖ u32 attempt)
    """
    if len(source_leaf) != 32 or len(destination_leaf) != 32 or len(session_id) != 16:
        raise Misuse("leaf hashes are 32 bytes and a session id is 16")
    listed = b"".join(len(p := permit.encode()).to_bytes(4, "big") + p for permit in permits)
    return hashlib.sha256(
        len(listed).to_bytes(4, "big")
        + listed
        + source_leaf
        + destination_leaf
        + session_id
        + attempt.to_bytes(4, "big")
    ).digest()


@dataclass(frozen=True, slots=True)
class ConnectionKeys:
    """All keys of one connection, from the 48 exported bytes. Never logged: repr shows the connection id alone."""

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise Misuse("a connection's secret is 48 bytes")

    def __repr__(self) -> str:
        return f"ConnectionKeys({self.connection_id.hex()})"

    @property
    def connection_id(self) -> bytes:
        """16 bytes, public: they stand in every preface."""
        return expand(self.secret, b"sealane 1 connection", 16)

    def preface_key(self, channel: int) -> bytes:
        return expand(self.secret, b"sealane 1 preface" + channel.to_bytes(2, "big"), SECRET_BYTES)

    def lane_secret(self, channel: int, direction: Direction) -> bytes:
        info = b"sealane 1 lane" + channel.to_bytes(2, "big") + bytes([direction])
        return expand(self.secret, info, SECRET_BYTES)


@dataclass(frozen=True, slots=True)
class EpochKey:
    """AES-256-GCM key and IV of one epoch of one lane direction."""

    key: bytes
    iv: int

    def __repr__(self) -> str:
        return "EpochKey(…)"


def epoch_key(lane_secret: bytes) -> EpochKey:
    return EpochKey(expand(lane_secret, b"key", 32), int.from_bytes(expand(lane_secret, b"iv", 12), "big"))


def next_lane_secret(lane_secret: bytes) -> bytes:
    return expand(lane_secret, b"next", SECRET_BYTES)
