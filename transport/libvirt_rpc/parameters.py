"""Typed parameters of the migration calls: an enumerated set, each with its type, its length and its number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from transport.libvirt_rpc.errors import CallRefused, RpcMalformed
from transport.libvirt_rpc.framing import ErrorCode
from transport.libvirt_rpc.xdr import XdrReader, XdrWriter

MAX_XML_BYTES: Final = 1 << 20
_MAX_PARAMETERS: Final = 64  # libvirt's own limit
_MAX_NAME: Final = 80


class ParameterType(IntEnum):
    INT = 1
    UINT = 2
    LLONG = 3
    ULLONG = 4
    BOOLEAN = 6
    STRING = 7


@dataclass(frozen=True, slots=True)
class Parameter:
    field: str
    type: ParameterType
    value: int | str


_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME: Final = re.compile(r"[^\0-\x1f\x7f/]{1,255}")
_URI: Final = re.compile(r"[\x21-\x7e]{1,1024}")
_ANY_XML: Final = re.compile(r"(?s).{1,}")

# What passes. A string must match its expression as a whole.
_STRINGS: Final = {
    "destination_name": _NAME,
    "destination_xml": _ANY_XML,
    "migrate_uri": _URI,
    "disks_uri": _URI,
    "listen_address": _URI,
    "graphics_uri": _URI,
    "migrate_disks": _WORD,
    "migrate_disks_detect_zeroes": _WORD,
    "compression": _WORD,
}
_NUMBERS: Final = {
    "bandwidth": ParameterType.ULLONG,
    "bandwidth.postcopy": ParameterType.ULLONG,
    "bandwidth.avail.switchover": ParameterType.ULLONG,
    "compression.mt.level": ParameterType.INT,
    "compression.mt.threads": ParameterType.INT,
    "compression.mt.dthreads": ParameterType.INT,
    "compression.xbzrle.cache": ParameterType.ULLONG,
    "compression.zlib.level": ParameterType.INT,
    "compression.zstd.level": ParameterType.INT,
    "auto_converge.initial": ParameterType.INT,
    "auto_converge.increment": ParameterType.INT,
    "parallel.connections": ParameterType.INT,
    "disks_port": ParameterType.INT,
}
_SEVERAL: Final = frozenset({"migrate_disks", "migrate_disks_detect_zeroes", "compression"})
MAX_PARALLEL: Final = 255


def read_parameters(reader: XdrReader) -> list[Parameter]:
    """All parameters of a call. `CallRefused` names the one that does not pass."""
    count = reader.unsigned()
    if count > _MAX_PARAMETERS:
        raise RpcMalformed(f"{count} parameters")
    found = [_read(reader) for _ in range(count)]
    for parameter in found:
        _check(parameter)
    names = [parameter.field for parameter in found]
    for name in names:
        if names.count(name) > 1 and name not in _SEVERAL:
            raise CallRefused(f"migration parameter {name} is given twice", ErrorCode.ARGUMENT_UNSUPPORTED)
    return found


def write_parameters(writer: XdrWriter, parameters: list[Parameter]) -> None:
    writer.unsigned(len(parameters))
    for parameter in parameters:
        writer.text(parameter.field).integer(parameter.type)
        match parameter.type, parameter.value:
            case ParameterType.STRING, str(text):
                writer.text(text)
            case ParameterType.ULLONG, int(number):
                writer.unsigned_hyper(number)
            case ParameterType.LLONG, int(number):
                writer.hyper(number)
            case ParameterType.UINT, int(number):
                writer.unsigned(number)
            case _, int(number):
                writer.integer(number)


def text_of(parameters: list[Parameter], field: str) -> str | None:
    return next((str(p.value) for p in parameters if p.field == field), None)


def with_text(parameters: list[Parameter], field: str, value: str | None) -> list[Parameter]:
    """The same, with `field` replaced, added, or (None) left out."""
    others = [p for p in parameters if p.field != field]
    return others if value is None else [*others, Parameter(field, ParameterType.STRING, value)]


def _read(reader: XdrReader) -> Parameter:
    field = reader.text(_MAX_NAME)
    try:
        kind = ParameterType(reader.integer())
    except ValueError:
        raise RpcMalformed("a parameter of an unknown type") from None
    value: int | str
    match kind:
        case ParameterType.INT:
            value = reader.integer()
        case ParameterType.UINT:
            value = reader.unsigned()
        case ParameterType.LLONG:
            value = reader.hyper()
        case ParameterType.ULLONG:
            value = reader.unsigned_hyper()
        case ParameterType.BOOLEAN:
            value = reader.boolean()
        case ParameterType.STRING:
            value = reader.text(MAX_XML_BYTES)
    return Parameter(field, kind, value)


def _check(parameter: Parameter) -> None:
    field = parameter.field
    if field in _STRINGS:
        is_good = parameter.type is ParameterType.STRING and _STRINGS[field].fullmatch(str(parameter.value)) is not None
    elif field in _NUMBERS:
        is_good = parameter.type is _NUMBERS[field] and int(parameter.value) >= 0
        if field == "parallel.connections":
            is_good = is_good and 1 <= int(parameter.value) <= MAX_PARALLEL
    else:
        raise CallRefused(f"migration parameter {field!a} is not carried", ErrorCode.ARGUMENT_UNSUPPORTED)
    if not is_good:
        raise CallRefused(f"migration parameter {field} has an impossible value", ErrorCode.ARGUMENT_UNSUPPORTED)
