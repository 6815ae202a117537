"""Lines as a receiver stored them: which entry of which log each one claims to be.

A collector may have put something before our line (a syslog header, a time), but nothing into it: lines of ours are one
line of printable text, ASCII but for CEF and LEEF. What a line says of the entry is not believed: `reconcile` makes the
line of that entry again and compares all of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from audit.errors import UNDECODABLE
from audit.siem.formats.leef import SEPARATOR
from audit.siem.formats.text import printable

MAX_LINE_BYTES: Final = 1024 * 1024

_ID: Final = re.compile(r"[0-9a-f]{16}-(0|[1-9][0-9]{0,18})")
_START: Final = re.compile(rb'\{"|CEF:0\||LEEF:2\.0\|')
_CEF: Final = re.compile(r"CEF:0(?:\|(?:[^\\|]|\\.)*){6}\|rt=-?[0-9]+ externalId=([^ ]+) ")
_ENTRY: Final = re.compile(r'\{"hash":"[0-9a-f]{64}","id":"([^"]+)",')


class LineError(Exception):
    """The line is none of ours. The text is one printable line."""


@dataclass(frozen=True, slots=True)
class HeldLine:
    """A line that a receiver holds: the id that it claims, that id's sequence, and the line itself."""

    id: str
    sequence: int
    line: bytes


class _Event(msgspec.Struct, frozen=True):
    id: str


class _Ecs(msgspec.Struct, frozen=True):
    event: _Event


class _Metadata(msgspec.Struct, frozen=True):
    uid: str


class _Ocsf(msgspec.Struct, frozen=True):
    metadata: _Metadata


_ecs_decoder = msgspec.json.Decoder(_Ecs)
_ocsf_decoder = msgspec.json.Decoder(_Ocsf)


def parse_line(stored: bytes) -> HeldLine:
    """Find our line in a stored one (without its end). Raises LineError."""
    if len(stored) > MAX_LINE_BYTES:
        raise LineError(f"a line of {len(stored)} bytes")
    start = _START.search(stored)
    if start is None:
        raise LineError("neither JSON nor CEF nor LEEF")
    line = stored[start.start() :]
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise LineError("not UTF-8") from None
    claimed = _claimed_id(text, line)
    match = _ID.fullmatch(claimed)
    if match is None:
        raise LineError(f"the id {printable(claimed, 80)!r} is none of ours")
    return HeldLine(claimed, int(match[1]), line)


def _claimed_id(text: str, line: bytes) -> str:
    if text.startswith("LEEF:"):
        attributes = text.split("|", 6)[-1].split(SEPARATOR)
        found = [each[8:] for each in attributes if each.startswith("eventId=")]
        if len(found) != 1:
            raise LineError("a LEEF event without one eventId")
        return found[0]
    match = _CEF.match(text) if text.startswith("CEF:") else _ENTRY.match(text)
    if match is not None:
        return match[1]
    try:
        if text.startswith('{"time":'):
            return _ocsf_decoder.decode(line).metadata.uid
        return _ecs_decoder.decode(line).event.id
    except UNDECODABLE:
        raise LineError("a line without an event id") from None
