"""Security identifiers and GUIDs as Active Directory stores them; pure, and strict in both directions.

A SID ([MS-DTYP] 2.4.2.2), all of it or nothing:

    +----------+-------+---------------------------+----------------------------------+
    | revision | count | identifier authority      | count sub-authorities            |
    | 1 byte=1 | 1..15 | 6 bytes, big-endian       | 4 bytes each, little-endian      |
    +----------+-------+---------------------------+----------------------------------+
"""

from __future__ import annotations

import re
import struct
from typing import Final
from uuid import UUID

MAX_SUB_AUTHORITIES: Final = 15
_HEADER_BYTES: Final = 8
_SID: Final = re.compile(r"S-1-(0|[1-9][0-9]{0,14})((?:-(?:0|[1-9][0-9]{0,9})){1,15})")
_GUID: Final = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")


def decode_sid(data: bytes) -> str:
    """`S-1-5-21-…`. Raises ValueError for anything but one whole SID."""
    if len(data) < _HEADER_BYTES or data[0] != 1:
        raise ValueError("a SID of an unknown revision, or cut short")
    count = data[1]
    if not 1 <= count <= MAX_SUB_AUTHORITIES or len(data) != _HEADER_BYTES + 4 * count:
        raise ValueError("a SID whose length does not fit its count of sub-authorities")
    authority = int.from_bytes(data[2:8], "big")
    return "-".join(["S-1", str(authority), *map(str, struct.unpack(f"<{count}I", data[8:]))])


def encode_sid(text: str) -> bytes:
    """The bytes of a canonical SID. Raises ValueError."""
    match = _SID.fullmatch(text)
    if match is None:
        raise ValueError("not a SID, S-1-…")
    authority, parts = int(match[1]), [int(part) for part in match[2][1:].split("-")]
    if authority >= 1 << 48 or any(part >= 1 << 32 for part in parts):
        raise ValueError("a number in the SID is too large")
    return bytes([1, len(parts)]) + authority.to_bytes(6, "big") + struct.pack(f"<{len(parts)}I", *parts)


def decode_guid(data: bytes) -> str:
    """Lower-case text of an `objectGUID` (its first three fields are little-endian). Raises ValueError."""
    if len(data) != 16:
        raise ValueError("a GUID has 16 bytes")
    return str(UUID(bytes_le=data))


def encode_guid(text: str) -> bytes:
    """The bytes of a GUID with hyphens, no braces. Raises ValueError."""
    if _GUID.fullmatch(text) is None:
        raise ValueError("not a GUID")
    return UUID(text).bytes_le


def filter_octets(data: bytes) -> str:
    r"""Bytes as a value in an LDAP filter, each escaped (`\xx`): nothing in them can be syntax. RFC 4515."""
    return "".join(f"\\{byte:02x}" for byte in data)
