"""A client of TLS 1.3 that changes its keys as often as it likes (RFC 8446, sections 4.6.3 and 7.2), as OpenSSL's does
not: records made by hand, out of the secret that its log of keys tells."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

from certs.credentials import HostCredentials
from certs.tls import client_context
from transport.wire.keys import expand

_HASH_BYTES = 48
_HANDSHAKE, _APPLICATION_DATA = b"\x16", b"\x17\x03\x03"


@dataclass
class KeyUpdater:
    """Of a host with these credentials. `tls`: to shake hands with, and to say by what comes before."""

    credentials: HostCredentials
    tls: SSL.Connection = field(init=False)
    _lines: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        context = client_context(self.credentials)
        context.set_keylog_callback(lambda _, line: self._lines.append(line))
        self.tls = SSL.Connection(context, None)
        self.tls.set_connect_state()

    def updates(self, count: int, records_said: int, *, asks_back: bool = False) -> bytes:
        """So many in a row. `records_said`: by `tls`, since the handshake. `asks_back`: for new keys of the peer."""
        said = next(line for line in self._lines if line.startswith(b"CLIENT_TRAFFIC_SECRET_0"))
        secret, number, records = bytes.fromhex(said.split()[2].decode()), records_said, bytearray()
        message = b"\x18\0\0\1" + bytes([asks_back]) + _HANDSHAKE
        header = _APPLICATION_DATA + struct.pack(">H", len(message) + 16)
        for _ in range(count):
            key, start = _labelled(secret, b"key", 32), int.from_bytes(_labelled(secret, b"iv", 12), "big")
            records += header + AESGCM(key).encrypt((start ^ number).to_bytes(12, "big"), message, header)
            secret, number = _labelled(secret, b"traffic upd", _HASH_BYTES), 0
        return bytes(records)


def _labelled(secret: bytes, label: bytes, size: int) -> bytes:
    whole = b"tls13 " + label
    return expand(secret, struct.pack(">HB", size, len(whole)) + whole + b"\0", size)
