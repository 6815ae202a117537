"""Lanes of plain TLS (`seal: tls`), for sites that may only use a validated module: slower, and only where the permit
says so. After the preface the same TCP connection carries TLS 1.3, with the certificates and the rules of the control
connection; inside it first the preface again, so that no one on the way can put one channel's TLS in another's place,
and then frames without a seal of their own (docs/wire-protocol.md section 5).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

import trio
from OpenSSL import SSL
from OpenSSL._util import lib

from certs.errors import PeerRefused
from certs.tls import HostCredentials, accept_peer, client_context
from transport.errors import ConnectionBroken
from transport.wire.keys import ConnectionKeys
from transport.wire.preface import PREFACE_BYTES, make_preface

_RECORD_BYTES = 16 * 1024  # what one read can give; pyOpenSSL allocates what it is asked for
# AES-GCM may seal 2^24.5 full records under one key (RFC 8446, section 5.5); OpenSSL changes none by itself.
_MOST_RECORDS = 1 << 24


class TlsLane:
    """A socket that is TLS: what the pump of a lane asks of a non-blocking socket, and no more."""

    def __init__(self, tls: SSL.Connection, sock: socket.socket) -> None:
        self._tls = tls
        self._sock = sock
        self._sealed_records = 0
        # Else one read goes on for as long as the peer sends what is no data, new keys again and again, and nothing
        # else of this relay. pyOpenSSL sets it for each connection anew, and has no public way to clear it.
        lib.SSL_clear_mode(tls._ssl, lib.SSL_MODE_AUTO_RETRY)

    def recv_into(self, buffer: memoryview) -> int:
        try:
            return int(self._tls.recv_into(buffer, min(len(buffer), _RECORD_BYTES)))
        except SSL.WantReadError:
            raise BlockingIOError from None
        except SSL.WantWriteError:  # it would be answered with new keys of ours, and takes nothing: there is no waiting
            raise ConnectionResetError(errno.ECONNRESET, "a lane's peer asks for keys that it does not take") from None
        except SSL.ZeroReturnError:
            return 0
        except SSL.Error:
            raise ConnectionResetError(errno.ECONNRESET, "TLS of a lane broke") from None

    def send(self, data: memoryview | bytes) -> int:
        """As a socket's; after what one key may seal (256 GiB) the lane counts as lost, and the next has new keys."""
        if self._sealed_records >= _MOST_RECORDS:
            raise ConnectionResetError(errno.ECONNRESET, "a lane of TLS has sealed what one key may")
        try:
            sent = int(self._tls.send(data))
            self._sealed_records += -(-sent // _RECORD_BYTES)
            return sent
        except (SSL.WantReadError, SSL.WantWriteError):
            raise BlockingIOError from None
        except SSL.Error:
            raise ConnectionResetError(errno.ECONNRESET, "TLS of a lane broke") from None

    def shutdown(self, how: int) -> None:
        """Half-close: close_notify, then TCP's own. What the peer sends is read on."""
        try:
            self._tls.shutdown()
        except SSL.Error:
            pass  # fin was sent and counts; this is manners
        self._sock.shutdown(how)

    def getsockopt(self, level: int, name: int) -> int:
        return self._sock.getsockopt(level, name)

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Lane = socket.socket | TlsLane


@dataclass(frozen=True, slots=True)
class LaneEnds:
    """Who must be at the ends of a lane: the hosts, by the very certificates, of its control connection."""

    credentials: HostCredentials
    peer_leaf_sha256: bytes
    keys: ConnectionKeys
    moment: datetime
    seconds: float


async def as_client(sock: socket.socket, channel: int, ends: LaneEnds) -> TlsLane:
    """S's end of a lane whose preface was sent. `sock` is closed if it fails: `ConnectionBroken`."""
    tls = SSL.Connection(client_context(ends.credentials), sock)
    tls.set_connect_state()
    lane = TlsLane(tls, sock)
    with _closing_unless_begun(sock, ends.seconds):
        await _handshake(tls, sock, ends)
        view = memoryview(make_preface(ends.keys, channel))
        while view:
            try:
                view = view[lane.send(view) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
    return lane


async def as_server(sock: socket.socket, context: SSL.Context, channel: int, ends: LaneEnds) -> TlsLane:
    """D's end of a lane whose preface was authentic. `sock` is closed if it fails: `ConnectionBroken`."""
    tls = SSL.Connection(context, sock)
    tls.set_accept_state()
    lane = TlsLane(tls, sock)
    with _closing_unless_begun(sock, ends.seconds):
        await _handshake(tls, sock, ends)
        preface = memoryview(bytearray(PREFACE_BYTES))
        filled = 0
        while filled < PREFACE_BYTES:
            try:
                received = lane.recv_into(preface[filled:])
            except BlockingIOError:
                await trio.lowlevel.wait_readable(sock)
                continue
            if not received:
                raise ConnectionBroken("a lane ended before it began")
            filled += received
        if preface != make_preface(ends.keys, channel):
            raise ConnectionBroken("a lane whose TLS is of another channel")
    return lane


async def _handshake(tls: SSL.Connection, sock: socket.socket, ends: LaneEnds) -> None:
    while True:
        try:
            tls.do_handshake()
            break
        except SSL.WantReadError:
            await trio.lowlevel.wait_readable(sock)
        except SSL.WantWriteError:
            await trio.lowlevel.wait_writable(sock)
    if accept_peer(tls, ends.credentials, ends.moment).leaf_sha256 != ends.peer_leaf_sha256:
        raise ConnectionBroken("a lane's peer shows another certificate than on its control connection")


@contextmanager
def _closing_unless_begun(sock: socket.socket, seconds: float) -> Iterator[None]:
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError:
        sock.close()
        raise ConnectionBroken("a lane did not begin its TLS in time") from None
    except (SSL.Error, PeerRefused, OSError):
        sock.close()
        raise ConnectionBroken("TLS of a lane failed") from None
    except BaseException:
        sock.close()
        raise
