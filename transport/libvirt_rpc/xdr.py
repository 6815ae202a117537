"""XDR (RFC 4506) as libvirt uses it: four-byte units, padding of zeros, booleans of 0 and 1. Strict and bounded."""

from __future__ import annotations

import struct
from typing import Final

from transport.libvirt_rpc.errors import RpcMalformed

_U32: Final = struct.Struct(">I")
_I32: Final = struct.Struct(">i")
_U64: Final = struct.Struct(">Q")
_I64: Final = struct.Struct(">q")


class XdrReader:
    """Takes values from the front of `data`; `RpcMalformed` for whatever is not there, not padded or too long."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def unsigned(self) -> int:
        return int(_U32.unpack(self._take(4))[0])

    def integer(self) -> int:
        return int(_I32.unpack(self._take(4))[0])

    def hyper(self) -> int:
        return int(_I64.unpack(self._take(8))[0])

    def unsigned_hyper(self) -> int:
        return int(_U64.unpack(self._take(8))[0])

    def boolean(self) -> bool:
        value = self.unsigned()
        if value > 1:
            raise RpcMalformed("a boolean that is neither 0 nor 1")
        return value == 1

    def fixed(self, size: int) -> bytes:
        """Opaque of fixed size, a multiple of four."""
        return self._take(size)

    def opaque(self, limit: int) -> bytes:
        size = self.unsigned()
        if size > limit:
            raise RpcMalformed(f"a value of more than {limit} bytes")
        value = self._take(size)
        if any(self._take(-size % 4)):
            raise RpcMalformed("padding that is not zero")
        return value

    def text(self, limit: int) -> str:
        """UTF-8 without NUL: what libvirt, in C, would cut off there must not mean more to us."""
        data = self.opaque(limit)
        if b"\0" in data:
            raise RpcMalformed("a NUL in a string")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise RpcMalformed("a string that is not UTF-8") from None

    def optional_text(self, limit: int) -> str | None:
        return self.text(limit) if self.boolean() else None

    def end(self) -> None:
        if self._at != len(self._data):
            raise RpcMalformed("bytes after the last value")

    def _take(self, size: int) -> bytes:
        value = self._data[self._at : self._at + size]
        if len(value) != size:
            raise RpcMalformed("values cut short")
        self._at += size
        return value


class XdrWriter:
    """Appends values; `data` is all of them."""

    def __init__(self) -> None:
        self.data = bytearray()

    def unsigned(self, value: int) -> XdrWriter:
        self.data += _U32.pack(value)
        return self

    def integer(self, value: int) -> XdrWriter:
        self.data += _I32.pack(value)
        return self

    def hyper(self, value: int) -> XdrWriter:
        self.data += _I64.pack(value)
        return self

    def unsigned_hyper(self, value: int) -> XdrWriter:
        self.data += _U64.pack(value)
        return self

    def fixed(self, value: bytes) -> XdrWriter:
        self.data += value
        return self

    def opaque(self, value: bytes) -> XdrWriter:
        self.unsigned(len(value))
        self.data += value + bytes(-len(value) % 4)
        return self

    def text(self, value: str) -> XdrWriter:
        return self.opaque(value.encode())

    def optional_text(self, value: str | None) -> XdrWriter:
        if value is None:
            return self.unsigned(0)
        return self.unsigned(1).text(value)
