"""Strangers by the thousand, in a process of their own: python -m tests.transport.relay.flood HOST PORT COUNT ADDRESSES

Opens COUNT connections from ADDRESSES addresses of loopback, each of which says a piece of something and then nothing;
prints `open` once all were tried, and from then on replaces whatever the relay closes, until its input ends.
"""

from __future__ import annotations

import itertools
import resource
import select
import socket
import sys

from OpenSSL import SSL


def client_hello() -> bytes:
    """A real one, so that the relay spends what a handshake costs."""
    connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    connection.set_connect_state()
    try:
        connection.do_handshake()
    except SSL.WantReadError:
        return connection.bio_read(1 << 16)
    raise AssertionError("unreachable: nobody has answered")


def main(host: str, port: int, count: int, addresses: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count + 100)), hard))
    hello = client_hello()
    pieces = itertools.cycle([b"", b"\x16", b"\x16\x03\x01\x02", hello[:-1], hello, b"SLN1", b"SLN1" + bytes(51)])
    sources = itertools.cycle([f"127.66.{n // 200}.{n % 200 + 1}" for n in range(addresses)])

    def open_one() -> socket.socket | None:
        stranger = socket.socket()
        stranger.setblocking(False)
        try:
            stranger.bind((next(sources), 0))
            stranger.connect_ex((host, port))
            writable = select.poll()
            writable.register(stranger, select.POLLOUT)
            writable.poll(1000)
            stranger.send(next(pieces))
        except OSError:
            stranger.close()
            return None
        return stranger

    strangers = [one for one in (open_one() for _ in range(count)) if one]
    print("open", len(strangers), flush=True)
    ready = select.poll()
    ready.register(sys.stdin, select.POLLIN | select.POLLHUP)
    for place in itertools.cycle(range(len(strangers))):
        try:
            closed = not strangers[place].recv(1)
        except BlockingIOError:
            closed = False
        except OSError:
            closed = True
        if closed:
            strangers[place].close()
            strangers[place] = open_one() or strangers[place - 1]
        if place % 50 == 0 and ready.poll(1):
            return


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
