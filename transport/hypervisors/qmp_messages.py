"""QMP's messages: bytes to lines to typed values, and nothing else.

QMP is QEMU's monitor protocol: one JSON object a line, commands answered in order, events in between.
Source: QEMU docs/interop/qmp-spec.
"""

from dataclasses import dataclass
from typing import Any

import msgspec

from transport.errors import UNDECODABLE
from transport.hypervisors.errors import HypervisorGarbled

MAX_LINE_BYTES = 256 * 1024  # the longest answer to any command used here is under 8 KiB


@dataclass(frozen=True, slots=True)
class Greeting:
    """The first message of a monitor. `has_oob`: it can take commands out of band."""

    version: str
    has_oob: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """A command succeeded."""

    id: int
    value: Any


@dataclass(frozen=True, slots=True)
class Failure:
    """A command failed. QEMU leaves the id out if it could not even read the command."""

    id: int | None
    error_class: str
    description: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened in QEMU."""

    name: str
    data: dict[str, Any]


Message = Greeting | Reply | Failure | Event


class LineBuffer:
    """Cuts a byte stream into lines, holding at most one line that is not complete."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what was received and return the lines it completes, without their ends.

        Raises HypervisorGarbled for a line over the limit, however its bytes were split.
        """
        self._held += data
        *lines, rest = bytes(self._held).split(b"\n")
        if any(len(line) > self._max for line in (*lines, rest)):
            raise HypervisorGarbled(f"the monitor sent a line of more than {self._max} bytes")
        self._held = bytearray(rest)
        return [line.rstrip(b"\r") for line in lines]


# QEMU adds members from version to version and clients must ignore those they do not know, so unlike
# our own messages these are not closed. `timestamp` and the like are ignored.
class _Triple(msgspec.Struct, frozen=True):
    major: int
    minor: int
    micro: int


class _QemuVersion(msgspec.Struct, frozen=True):
    qemu: _Triple


class _Welcome(msgspec.Struct, frozen=True):
    version: _QemuVersion
    capabilities: list[str] = []


class _Error(msgspec.Struct, frozen=True, rename={"error_class": "class"}):
    error_class: str
    desc: str


class _Line(msgspec.Struct, frozen=True, rename={"qmp": "QMP", "value": "return"}):
    qmp: _Welcome | msgspec.UnsetType = msgspec.UNSET
    value: Any = msgspec.UNSET
    error: _Error | msgspec.UnsetType = msgspec.UNSET
    event: str | msgspec.UnsetType = msgspec.UNSET
    data: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET
    id: int | None = None


_line_decoder = msgspec.json.Decoder(_Line)


def decode_message(line: bytes) -> Message:
    """Read one line of a monitor. Raises HypervisorGarbled for anything but exactly one kind of message."""
    try:
        read = _line_decoder.decode(line)
    except UNDECODABLE as error:
        raise HypervisorGarbled(f"the monitor sent no QMP message: {error}") from None
    found: list[Message] = []
    if read.qmp is not msgspec.UNSET:
        numbers = read.qmp.version.qemu
        has_oob = "oob" in read.qmp.capabilities
        found.append(Greeting(f"{numbers.major}.{numbers.minor}.{numbers.micro}", has_oob))
    if read.value is not msgspec.UNSET:
        if read.id is None:
            raise HypervisorGarbled("the monitor sent a reply without the id of its command")
        found.append(Reply(read.id, read.value))
    if read.error is not msgspec.UNSET:
        found.append(Failure(read.id, read.error.error_class, read.error.desc))
    if read.event is not msgspec.UNSET:
        found.append(Event(read.event, {} if read.data is msgspec.UNSET else read.data))
    if len(found) != 1:
        raise HypervisorGarbled(f"the monitor sent an object that is {len(found)} kinds of QMP message")
    return found[0]
