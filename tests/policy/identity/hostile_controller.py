"""A controller that proves its name and then answers what Samba cannot be made to: a few lines of LDAP over TLS."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tests.policy.identity.samba_ad import TestAuthority

NAME: Final = "dc1.hostile.example.test"
_BIND: Final = 0x60
_UNBIND: Final = 0x42

# From message id and tag of a request to the bytes to send, perhaps in parts; None hangs up.
Answer = Callable[[int, int], bytes | Iterable[bytes] | None]


def ber(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    size = len(body)
    length = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + length + body


def message(message_id: int, operation: bytes) -> bytes:
    return ber(0x30, ber(0x02, message_id.to_bytes(2, "big")), operation)


def result(tag: int, code: int, *more: bytes) -> bytes:
    return ber(tag, ber(0x0A, bytes([code])), ber(0x04), ber(0x04), *more)


def referral_to(url: str) -> bytes:
    """searchResDone, result 10."""
    return result(0x65, 10, ber(0xA3, ber(0x04, url.encode())))


def entry(dn: str, **attributes: bytes) -> bytes:
    pairs = [ber(0x30, ber(0x04, name.encode()), ber(0x31, ber(0x04, value))) for name, value in attributes.items()]
    return ber(0x64, ber(0x04, dn.encode()), ber(0x30, *pairs))


@contextmanager
def hostile_controller(
    folder: Path, authority: TestAuthority, answer: Answer, *, bind: bytes | None = None
) -> Iterator[int]:
    """Yields its port on 127.0.0.1. It lets everybody bind, or answers `bind` to that; `answer` says the rest."""
    authority.write_server(folder, NAME)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=_serve, args=(listener, context, answer, bind), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


def _serve(listener: socket.socket, context: ssl.SSLContext, answer: Answer, bind: bytes | None) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        plain.settimeout(5)
        with plain, suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
            _talk(connection, answer, result(0x61, 0) if bind is None else bind)


def _talk(connection: ssl.SSLSocket, answer: Answer, bind: bytes) -> None:
    while request := connection.recv(65_536):
        # SEQUENCE, length in one, two or three bytes, then INTEGER with the message id, then the operation's tag.
        start = 2 if request[1] < 0x80 else 2 + request[1] - 0x80
        size = request[start + 1]
        message_id = int.from_bytes(request[start + 2 : start + 2 + size], "big")
        tag = request[start + 2 + size]
        if tag == _UNBIND:
            return
        reply = message(message_id, bind) if tag == _BIND else answer(message_id, tag)
        if reply is None:
            return
        for part in [reply] if isinstance(reply, bytes) else reply:
            connection.sendall(part)
