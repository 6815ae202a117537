"""The two ends of a measured stream, each a process of its own: `python -m bench.stream_ends send|receive …`.

    receive PATH [COUNT]  listens, prints "ready", reads so many streams to their ends; prints the bytes of all and the
                          seconds from first to last
    send PATH SIZE_BYTES  connects, sends, half-closes, waits for the other side to close

Socket buffers stay at the kernel's default, as QEMU leaves them. Imports are few: the ends must start at once.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time

BUFFER_BYTES = 1 << 20


def receive(path: str, count: int = 1) -> None:
    ends: list[tuple[int, float, float]] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(count)
        print("ready", flush=True)
        threads = []
        for _ in range(count):
            connection, _ = listener.accept()
            threads.append(threading.Thread(target=_read, args=(connection, ends)))
            threads[-1].start()
    for thread in threads:
        thread.join()
    totals, firsts, lasts = zip(*ends, strict=True)
    print(sum(totals), max(lasts) - min(firsts), flush=True)


def _read(connection: socket.socket, ends: list[tuple[int, float, float]]) -> None:
    """To its end: bytes, and when the first and the last came."""
    buffer = bytearray(BUFFER_BYTES)
    with connection:
        count = total = connection.recv_into(buffer)
        started = last = time.monotonic()
        while count:
            count = connection.recv_into(buffer)
            if count:
                last = time.monotonic()
                total += count
    ends.append((total, started, last))


def send(path: str, size_bytes: int) -> None:
    content = memoryview(os.urandom(BUFFER_BYTES))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        for left in range(size_bytes, 0, -BUFFER_BYTES):
            connection.sendall(content[: min(left, BUFFER_BYTES)])
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(30)
        while connection.recv(BUFFER_BYTES):
            pass


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    else:
        send(sys.argv[2], int(sys.argv[3]))
