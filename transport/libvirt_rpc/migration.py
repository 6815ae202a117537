"""The calls of a migration at the destination, decoded and encoded: Prepare3Params, Finish3Params and their replies."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

from transport.libvirt_rpc.errors import CallRefused, RpcMalformed
from transport.libvirt_rpc.framing import ErrorCode
from transport.libvirt_rpc.parameters import Parameter, read_parameters, text_of, write_parameters
from transport.libvirt_rpc.procedures import KNOWN_FLAGS, REFUSED_FLAGS, RESUMING_FLAGS, MigrateFlag
from transport.libvirt_rpc.xdr import XdrReader, XdrWriter

MAX_COOKIE_BYTES: Final = 1 << 20
_MAX_NAME: Final = 1024
_MAX_URI: Final = 4096


@dataclass(frozen=True, slots=True)
class Domain:
    """libvirt's reference to a domain: `id` is that of a running one, else -1."""

    name: str
    uuid: str
    id: int

    @classmethod
    def read(cls, reader: XdrReader) -> Domain:
        name = reader.text(_MAX_NAME)
        return cls(name, str(uuid.UUID(bytes=reader.fixed(16))), reader.integer())

    def write(self, writer: XdrWriter) -> XdrWriter:
        return writer.text(self.name).fixed(uuid.UUID(self.uuid).bytes).integer(self.id)


@dataclass(frozen=True, slots=True)
class Prepare:
    """Prepare3Params: let the destination's libvirtd define the VM and listen for it."""

    parameters: list[Parameter]
    cookie: bytes
    flags: MigrateFlag

    @classmethod
    def decode(cls, body: bytes) -> Prepare:
        reader = XdrReader(body)
        parameters = read_parameters(reader)
        cookie = reader.opaque(MAX_COOKIE_BYTES)
        flags = reader.unsigned()
        reader.end()
        return cls(parameters, cookie, check_flags(flags))

    def encode(self) -> bytes:
        writer = XdrWriter()
        write_parameters(writer, self.parameters)
        return bytes(writer.opaque(self.cookie).unsigned(self.flags).data)

    @property
    def resumes(self) -> bool:
        """Whether it begins nothing, but goes on with post-copy that was interrupted for good."""
        return bool(self.flags & MigrateFlag.POSTCOPY_RESUME)

    @property
    def xml(self) -> str:
        return _required(self.parameters, "destination_xml")


@dataclass(frozen=True, slots=True)
class PrepareReply:
    """`uri`: where the source is to send, if not where the call said."""

    cookie: bytes
    uri: str | None

    @classmethod
    def decode(cls, body: bytes) -> PrepareReply:
        reader = XdrReader(body)
        reply = cls(reader.opaque(MAX_COOKIE_BYTES), reader.optional_text(_MAX_URI))
        reader.end()
        return reply

    def encode(self) -> bytes:
        return bytes(XdrWriter().opaque(self.cookie).optional_text(self.uri).data)


@dataclass(frozen=True, slots=True)
class Finish:
    """Finish3Params: the source has sent everything, or (`cancelled`) gives up."""

    parameters: list[Parameter]
    cookie: bytes
    flags: MigrateFlag
    cancelled: bool

    @classmethod
    def decode(cls, body: bytes) -> Finish:
        reader = XdrReader(body)
        parameters = read_parameters(reader)
        cookie = reader.opaque(MAX_COOKIE_BYTES)
        flags = reader.unsigned()
        cancelled = reader.integer()
        reader.end()
        return cls(parameters, cookie, check_flags(flags), cancelled != 0)

    def encode(self) -> bytes:
        writer = XdrWriter()
        write_parameters(writer, self.parameters)
        return bytes(writer.opaque(self.cookie).unsigned(self.flags).integer(int(self.cancelled)).data)

    @property
    def name(self) -> str:
        return _required(self.parameters, "destination_name")


@dataclass(frozen=True, slots=True)
class FinishReply:
    domain: Domain
    cookie: bytes

    @classmethod
    def decode(cls, body: bytes) -> FinishReply:
        reader = XdrReader(body)
        reply = cls(Domain.read(reader), reader.opaque(MAX_COOKIE_BYTES))
        reader.end()
        return reply


def check_flags(flags: int) -> MigrateFlag:
    """The flags of a migration that can be carried; `CallRefused` tells the caller which cannot."""
    if flags & ~KNOWN_FLAGS:
        raise CallRefused(f"unknown migration flags {flags & ~KNOWN_FLAGS:#x}", ErrorCode.ARGUMENT_UNSUPPORTED)
    for flag, message in REFUSED_FLAGS.items():
        if flags & flag:
            raise CallRefused(f"Sealane: {message}", ErrorCode.ARGUMENT_UNSUPPORTED)
    if flags & MigrateFlag.POSTCOPY_RESUME and (flags & ~RESUMING_FLAGS or not flags & MigrateFlag.POSTCOPY):
        message = "--postcopy-resume goes with --postcopy, and with nothing that says how a migration begins"
        raise CallRefused(f"Sealane: {message}", ErrorCode.ARGUMENT_UNSUPPORTED)
    return MigrateFlag(flags)


def _required(parameters: list[Parameter], field: str) -> str:
    found = text_of(parameters, field)
    if found is None:
        raise RpcMalformed(f"no {field}")
    return found
