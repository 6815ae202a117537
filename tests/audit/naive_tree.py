"""RFC 6962 section 2.1 written down literally and slowly: what the real tree is compared with."""

import hashlib
from collections.abc import Sequence


def leaf(entry: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + entry).digest()


def root(entries: Sequence[bytes]) -> bytes:
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return leaf(entries[0])
    split = _split(len(entries))
    return hashlib.sha256(b"\x01" + root(entries[:split]) + root(entries[split:])).digest()


def path(index: int, entries: Sequence[bytes]) -> list[bytes]:
    if len(entries) == 1:
        return []
    split = _split(len(entries))
    if index < split:
        return [*path(index, entries[:split]), root(entries[split:])]
    return [*path(index - split, entries[split:]), root(entries[:split])]


def proof(old_size: int, entries: Sequence[bytes]) -> list[bytes]:
    return _subproof(old_size, entries, whole=True)


def _subproof(old_size: int, entries: Sequence[bytes], *, whole: bool) -> list[bytes]:
    if old_size == len(entries):
        return [] if whole else [root(entries)]
    split = _split(len(entries))
    if old_size <= split:
        return [*_subproof(old_size, entries[:split], whole=whole), root(entries[split:])]
    return [*_subproof(old_size - split, entries[split:], whole=False), root(entries[:split])]


def _split(count: int) -> int:
    """The largest power of two smaller than count."""
    return int(1 << ((count - 1).bit_length() - 1))
