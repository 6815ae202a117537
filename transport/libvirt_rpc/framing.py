"""libvirt's RPC framing.

    u32 length, itself included ‖ u32 program ‖ u32 version ‖ i32 procedure ‖ u32 type ‖ u32 serial ‖ u32 status ‖ body

A call carries its procedure's arguments; a reply its results, or an error; keepalive is a program of its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from transport.libvirt_rpc.errors import RpcMalformed
from transport.libvirt_rpc.xdr import XdrReader, XdrWriter

REMOTE_PROGRAM: Final = 0x20008086
KEEPALIVE_PROGRAM: Final = 0x6B656570
VERSION: Final = 1
LENGTH_BYTES: Final = 4
HEADER_BYTES: Final = 24
# libvirt allows 32 MiB. Domain XML and cookies of a migration are some ten KiB; thousands of devices fit in this.
MAX_MESSAGE_BYTES: Final = 2 << 20
_HEADER: Final = struct.Struct(">IIiIII")
_MAX_TEXT: Final = 64 * 1024


class MessageType(IntEnum):
    CALL = 0
    REPLY = 1
    MESSAGE = 2
    STREAM = 3
    CALL_WITH_FDS = 4
    REPLY_WITH_FDS = 5
    STREAM_HOLE = 6


class Status(IntEnum):
    OK = 0
    ERROR = 1
    CONTINUE = 2


class KeepAlive(IntEnum):
    PING = 1
    PONG = 2


class ErrorCode(IntEnum):
    """Of libvirt's own, those that we answer with or look for."""

    OPERATION_FAILED = 9
    RPC = 39
    NO_DOMAIN = 42
    OPERATION_INVALID = 55
    ARGUMENT_UNSUPPORTED = 74
    ACCESS_DENIED = 88
    MIGRATE_FINISH_OK = 93


_FROM_RPC: Final = 7
_FROM_QEMU: Final = 10
_LEVEL_ERROR: Final = 2


@dataclass(frozen=True, slots=True)
class Packet:
    """One message of the wire, its header decoded."""

    program: int
    procedure: int
    type: MessageType
    serial: int
    status: Status
    body: bytes

    def encode(self) -> bytes:
        header = _HEADER.pack(self.program, VERSION, self.procedure, self.type, self.serial, self.status)
        return (LENGTH_BYTES + HEADER_BYTES + len(self.body)).to_bytes(LENGTH_BYTES, "big") + header + self.body

    @property
    def is_keepalive(self) -> bool:
        return self.program == KEEPALIVE_PROGRAM

    def answer(self, body: bytes) -> Packet:
        """The reply to this call."""
        return Packet(self.program, self.procedure, MessageType.REPLY, self.serial, Status.OK, body)

    def refusal(self, code: int, message: str) -> Packet:
        """The error reply to this call; a client such as virsh prints `message` as it is."""
        body = encode_error(code, message)
        return Packet(self.program, self.procedure, MessageType.REPLY, self.serial, Status.ERROR, body)

    def failure(self, message: str) -> Packet:
        """The error reply to a Finish that gives up. As of the hypervisor's driver: libvirt prefers that to its own."""
        body = encode_error(ErrorCode.OPERATION_FAILED, message, _FROM_QEMU)
        return Packet(self.program, self.procedure, MessageType.REPLY, self.serial, Status.ERROR, body)


PING: Final = Packet(KEEPALIVE_PROGRAM, KeepAlive.PING, MessageType.MESSAGE, 0, Status.OK, b"")
PONG: Final = Packet(KEEPALIVE_PROGRAM, KeepAlive.PONG, MessageType.MESSAGE, 0, Status.OK, b"")


class PacketReader:
    """Cuts received bytes into packets; holds at most one incomplete packet."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Packet]:
        """Packets that `data` completes, in order; `RpcMalformed` at the first that is none."""
        self._buffer += data
        packets: list[Packet] = []
        while len(self._buffer) >= LENGTH_BYTES:
            size = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if not LENGTH_BYTES + HEADER_BYTES <= size <= MAX_MESSAGE_BYTES:
                raise RpcMalformed(f"a message of {size} bytes")
            if len(self._buffer) < size:
                break
            packets.append(_decode(bytes(self._buffer[LENGTH_BYTES:size])))
            del self._buffer[:size]
        return packets

    @property
    def is_between_packets(self) -> bool:
        return not self._buffer


def _decode(data: bytes) -> Packet:
    program, version, procedure, kind, serial, status = _HEADER.unpack(data[:HEADER_BYTES])
    if program not in (REMOTE_PROGRAM, KEEPALIVE_PROGRAM) or version != VERSION:
        raise RpcMalformed(f"program {program:#x} version {version}")
    try:
        packet = Packet(program, procedure, MessageType(kind), serial, Status(status), data[HEADER_BYTES:])
    except ValueError:
        raise RpcMalformed("an unknown type or status") from None
    if packet.is_keepalive:
        is_plain = (packet.type, packet.serial, packet.status, packet.body) == (MessageType.MESSAGE, 0, Status.OK, b"")
        if not is_plain or procedure not in (KeepAlive.PING, KeepAlive.PONG):
            raise RpcMalformed("a keepalive message that is none")
    return packet


def encode_error(code: int, message: str, origin: int = _FROM_RPC) -> bytes:
    """libvirt's error: of its many members a client shows the message and compares the code and the origin."""
    writer = XdrWriter().integer(code).integer(origin).optional_text(message).integer(_LEVEL_ERROR)
    writer.unsigned(0)  # no domain
    writer.optional_text("%s").optional_text(message).optional_text(None)
    writer.integer(-1).integer(-1).unsigned(0)
    return bytes(writer.data)


def decode_error(body: bytes) -> tuple[int, str]:
    """(code, message) of an error reply. What follows them is libvirt's ballast, which nobody reads."""
    reader = XdrReader(body)
    code = reader.integer()
    reader.integer()
    return code, reader.optional_text(_MAX_TEXT) or "no message"
