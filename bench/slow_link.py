"""A long and narrow link in user space: `python -m bench.slow_link LISTEN_PORT TARGET_PORT ROUND_TRIP_MS MEGABITS`.

Every connection to LISTEN_PORT is carried to TARGET_PORT of loopback; each byte leaves half a round trip after it came,
and all connections of one direction share the rate. What is under way is bounded by twice what such a link holds, as a
sender with a tuned kernel would have it; beyond that nothing is read.
"""

from __future__ import annotations

import queue
import socket
import sys
import threading
import time

CHUNK_BYTES = 128 * 1024
_SLACK_SECONDS = 0.02


class Direction:
    """The rate of one direction, shared."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate = bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def pass_on(self, size_bytes: int) -> None:
        """Return when so many bytes have gone through."""
        with self._lock:
            now = time.monotonic()
            # A sleep that lasted a little too long is made up for, or the link would be narrower than it says.
            self._free_at = max(self._free_at, now - _SLACK_SECONDS) + size_bytes / self._rate
            until = self._free_at
        if until > now:
            time.sleep(until - now)


def carry(source: socket.socket, sink: socket.socket, direction: Direction, delay: float, held: int) -> None:
    """One direction of one connection, to its end."""
    under_way: queue.Queue[tuple[float, bytes]] = queue.Queue(max(2, held // CHUNK_BYTES))

    def read() -> None:
        while True:
            try:
                data = source.recv(CHUNK_BYTES)
            except OSError:
                data = b""
            under_way.put((time.monotonic() + delay, data))
            if not data:
                return

    threading.Thread(target=read, daemon=True).start()
    while True:
        due, data = under_way.get()
        direction.pass_on(len(data))
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)
        except OSError:
            return


def main(listen_port: int, target_port: int, round_trip_ms: float, megabits: float) -> None:
    rate, delay = megabits * 125_000, round_trip_ms / 2000
    held = int(2 * rate * delay * 2)
    forth, back = Direction(rate), Direction(rate)
    with socket.create_server(("127.0.0.1", listen_port), backlog=64) as listening:
        print("ready", flush=True)
        while True:
            near, _ = listening.accept()
            far = socket.create_connection(("127.0.0.1", target_port))
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=carry, args=(near, far, forth, delay, held), daemon=True).start()
            threading.Thread(target=carry, args=(far, near, back, delay, held), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
