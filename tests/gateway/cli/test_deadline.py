"""Whoever answers without an end, a byte at a time or at full speed, holds no command."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from gateway.cli import connection, issuer_client
from gateway.cli.client import GatewayClient
from gateway.cli.errors import CommandError, Unreachable
from gateway.cli.issuer_client import IssuerClient, IssuerLogin
from gateway.cli.settings import ClientSettings
from gateway.doctor import network
from gateway.doctor.network import gateway_findings

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n"
ENDLESS = {
    "header": (b"HTTP/1.1 200 OK\r\nx: ", b"x", 0.05),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0),
    "body": (HEAD + b"\r\n", b" ", 0.05),
}
LONG_SECONDS = 30  # the answers would last for ever

Endless = Callable[[bytes, bytes, float], str]


@pytest.fixture
def endless(tls_files: tuple[Path, Path]) -> Iterator[Endless]:
    """A server that answers with the first, and with the second for ever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls_files)
    over = threading.Event()

    def serve(listener: socket.socket, first: bytes, again: bytes, pause: float) -> None:
        with suppress(OSError), listener, context.wrap_socket(listener.accept()[0], server_side=True) as peer:
            peer.recv(65536)
            peer.sendall(first)
            while not over.wait(pause):
                peer.sendall(again)

    threads: list[threading.Thread] = []

    def start(first: bytes, again: bytes, pause: float) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        threads.append(threading.Thread(target=serve, args=(listener, first, again, pause)))
        threads[-1].start()
        return f"https://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    over.set()
    for thread in threads:
        thread.join()


@contextmanager
def ends_in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LONG_SECONDS


@pytest.mark.parametrize("how", ENDLESS)
def test_a_gateway(endless: Endless, tls_files: tuple[Path, Path], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_TIMEOUT_SECONDS", 1)
    settings = ClientSettings(endless(*ENDLESS[how]), tls_files[0], Path("unused"), 1)
    with GatewayClient(settings, "aa.bb.cc") as client, ends_in_time(), pytest.raises(Unreachable) as caught:
        client.log_size()
    assert "no whole answer within 1 s" in caught.value.what


@pytest.mark.parametrize("how", ENDLESS)
def test_an_issuer(endless: Endless, tls_files: tuple[Path, Path], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuer_client, "TIMEOUT_SECONDS", 1)
    login = IssuerLogin(endless(*ENDLESS[how]), "cli", ca=tls_files[0])
    with IssuerClient(login) as client, ends_in_time(), pytest.raises(Unreachable, match="cannot be reached"):
        client.discover()


@pytest.mark.parametrize("how", ENDLESS)
def test_a_gateway_that_the_doctor_asks(
    endless: Endless, tls_files: tuple[Path, Path], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "SECONDS", 1.0)
    with ends_in_time():
        first, *_ = gateway_findings(endless(*ENDLESS[how]), tls_files[0])
    # It looks at the head alone, which is whole where the body has no end.
    assert first.status == ("ok" if how == "body" else "wrong")


def packed(of: bytes) -> bytes:
    """An answer whose body is a thousandth of what it unpacks to, twice over."""
    body = zlib.compress(zlib.compress(of, 9), 9)
    return b"HTTP/1.1 200 OK\r\ncontent-encoding: deflate, deflate\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def test_what_a_gateway_packed_is_not_unpacked(endless: Endless, tls_files: tuple[Path, Path]) -> None:
    settings = ClientSettings(endless(packed(bytes(1 << 25)), b"", 0.05), tls_files[0], Path("unused"), 5)
    with GatewayClient(settings, "aa.bb.cc") as client, pytest.raises(CommandError) as caught:
        client.log_size()
    assert "larger than" not in caught.value.what


def test_nor_what_an_issuer_packed(endless: Endless, tls_files: tuple[Path, Path]) -> None:
    login = IssuerLogin(endless(packed(bytes(1 << 25)), b"", 0.05), "cli", ca=tls_files[0])
    with IssuerClient(login) as client, pytest.raises(CommandError) as caught:
        client.discover()
    assert "too long" not in caught.value.what
