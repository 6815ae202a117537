"""A program's standard input and output at a socket, in threads: a regular file cannot be waited for."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

_CHUNK_BYTES = 256 * 1024


class StandardStreams:
    """What comes from descriptor `source` goes into a socket, what comes back from it to descriptor `sink`.

    By descriptor: Python cannot end while a thread that reads, perhaps for ever, holds a lock of `sys.stdin`. What
    breaks here is `trouble`, and `give_up` is called once, from a thread: to have the session ended in order. Were the
    socket closed alone, the program at the other end would take what it has for the whole.
    """

    def __init__(self, source: int, sink: int, give_up: Callable[[], object] = lambda: None) -> None:
        self._source = source
        self._sink = sink
        self._give_up = give_up
        self._receiving: threading.Thread | None = None
        self.trouble = ""
        self.lost = ""  # at the socket, whose session tells more if it broke
        self.is_unread = False  # whoever read the output left

    def carry(self, sock: socket.socket) -> None:
        """Begin, at a connected socket that blocks. Whoever made it closes it."""
        self._receiving = threading.Thread(target=self._receive, args=(sock,), daemon=True)
        self._receiving.start()
        threading.Thread(target=self._send, args=(sock,), daemon=True).start()

    @property
    def has_begun(self) -> bool:
        return self._receiving is not None

    def finish(self) -> None:
        """Wait until the last of what comes back is at `sink`, or something broke."""
        if self._receiving is not None:
            self._receiving.join()

    def _send(self, sock: socket.socket) -> None:
        while True:
            try:
                data = os.read(self._source, _CHUNK_BYTES)
            except OSError as error:
                self._fail(f"standard input could not be read: {error.strerror}")
                return
            try:
                if not data:
                    sock.shutdown(socket.SHUT_WR)
                    return
                sock.sendall(data)
            except OSError:
                break_off(sock)  # it was the session that broke, and its outcome tells
                return

    def _receive(self, sock: socket.socket) -> None:
        while True:
            try:
                data = memoryview(sock.recv(_CHUNK_BYTES))
            except OSError as error:
                self.lost = f"what came back could not be read: {error.strerror}"
                break_off(sock)
                return
            if not data:
                return
            try:
                while data:
                    data = data[os.write(self._sink, data) :]
            except BrokenPipeError:
                self.is_unread = True
                self._fail("standard output was closed before all that came back was written")
                return
            except OSError as error:
                self._fail(f"standard output could not be written: {error.strerror}")
                return

    def _fail(self, trouble: str) -> None:
        if not self.trouble:
            self.trouble = trouble
            self._give_up()


def break_off(sock: socket.socket) -> None:
    """Both ways: the relay must not wait for an end that does not go on."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
