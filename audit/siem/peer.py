"""A receiver at the other end of TLS: its certificate verified for its name by the bundle that the operator gave,
TLS 1.2 or newer, and no way to go without. Certificates and keys are read at each connection: who renews them restarts
nothing.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from audit.siem.secrets import opened_private
from audit.siem.sink import SinkAway
from audit.siem.status import one_line

_ESTABLISHED: Final = 1  # linux/tcp_states.h

Stream = trio.SSLStream[trio.SocketStream]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """How both ends prove who they are. Without `trust_bundle` the system's certificate authorities count.

    `certificate` and `private_key` (PEM; the key's file is private) are ours, for receivers that ask for one.
    """

    trust_bundle: Path | None = None
    certificate: Path | None = None
    private_key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """For one connection. Raises SinkAway naming the file that is at fault."""
        try:
            context = ssl.create_default_context(cafile=None if self.trust_bundle is None else str(self.trust_bundle))
        except (OSError, ssl.SSLError) as error:
            raise SinkAway(f"{self.trust_bundle}: is no bundle of certificates ({_reason(error)})") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None and self.private_key is not None:
            with opened_private(self.private_key) as descriptor:
                try:
                    # What was checked is what is read.
                    context.load_cert_chain(self.certificate, f"/proc/self/fd/{descriptor}", password=_no_passphrase)
                except (OSError, ssl.SSLError, ValueError) as error:
                    cause = _reason(error)
                    raise SinkAway(f"{self.certificate}, {self.private_key}: cannot be used ({cause})") from None
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Where a receiver listens. `server_name`: the name in its certificate, where that is not `host`."""

    host: str
    port: int
    trust: Trust
    server_name: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    async def connect(self) -> Stream:
        """Connected and verified. Raises SinkAway; cancellation leaves nothing open."""
        context = await trio.to_thread.run_sync(self.trust.context)  # reads files
        try:
            transport = await trio.open_tcp_stream(self.host, self.port)
            stream = trio.SSLStream(transport, context, server_hostname=self.server_name or self.host)
            try:
                await stream.do_handshake()
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
        except (*CONNECTION_ERRORS, UnicodeError) as error:  # UnicodeError: a name that DNS cannot have
            raise SinkAway(f"{self}: {cause_of(error)}") from None
        return stream


CONNECTION_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError)


def is_established(stream: Stream) -> bool:
    """Whether neither end has closed. Reading would not tell: what TLS sends unasked lies before the end."""
    plain = stream.transport_stream.socket
    return plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED


def cause_of(error: BaseException) -> str:
    """What went wrong with a connection, in one line."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted ({one_line(seen.verify_message)})"
        if isinstance(seen, ssl.SSLEOFError):
            return "the receiver has closed the connection"
        if isinstance(seen, (OSError, ssl.SSLError)):
            return _reason(seen)
        seen = seen.__cause__ or seen.__context__
    return one_line(str(error) or type(error).__name__)


def _reason(error: Any) -> str:
    said = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return one_line(str(said) or type(error).__name__)


def _no_passphrase() -> str:
    """OpenSSL would ask at the terminal, and the gateway would hang there."""
    raise ValueError("the key needs a passphrase")
