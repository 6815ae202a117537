"""The relay's metrics in Prometheus' text format (exposition format 0.0.4), and a port of loopback that serves them.

Written out here, because a hypervisor host needs no client library for a dozen numbers. No label names a VM or a peer:
whoever may scrape a host learns how much moves, not what. Numbers are read at each scrape and kept nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import trio

from transport.relay.board import Board

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_MAX_REQUEST_BYTES: Final = 8 * 1024
_SECONDS: Final = 5.0
_MAX_SCRAPERS: Final = 8

Samples = Mapping[tuple[tuple[str, str], ...], float]


def metrics_text(board: Board, days_left: Mapping[str, float]) -> str:
    """All of them, one line each. `days_left`: of this host's certificate, of its roots and of its CRLs."""
    sessions: dict[tuple[tuple[str, str], ...], float] = {
        (("role", role),): sum(each.role == role for each in board.entries) for role in ("source", "destination")
    }
    rates: dict[tuple[tuple[str, str], ...], float] = {
        (): sum(each.progress.rate_bytes_per_second for each in board.entries if each.progress is not None)
    }
    ended: dict[tuple[tuple[str, str], ...], float] = {
        (("role", role), ("outcome", outcome)): count for (role, outcome), count in board.ended.items()
    }
    carried: dict[tuple[tuple[str, str], ...], float] = {
        (("role", role), ("direction", way)): size for (role, way), size in board.carried_by().items()
    }
    ends: Samples = {(("what", what),): days for what, days in days_left.items()}
    channels: Samples = {(): sum(len(each.channels) for each in board.entries)}
    return "".join(
        (
            _family("sealane_relay_sessions", "gauge", "Sessions that run.", sessions),
            _family("sealane_relay_channels", "gauge", "Lanes of those sessions.", channels),
            _family("sealane_relay_queue", "gauge", "Moves that wait for a place.", {(): len(board.places.waiting)}),
            _family("sealane_relay_draining", "gauge", "1 while nothing new is taken.", {(): board.is_draining}),
            _family("sealane_relay_rate_bytes_per_second", "gauge", "What QEMUs here say that they send.", rates),
            _family("sealane_relay_ended_total", "counter", "Sessions that have ended, by outcome.", ended),
            _family("sealane_certificate_days_left", "gauge", "Days until the first of each kind ends.", ends),
            _family("sealane_relay_carried_bytes_total", "counter", "Bytes of hypervisors in lanes.", carried),
        )
    )


def _family(name: str, kind: str, words: str, samples: Samples) -> str:
    lines = [f"# HELP {name} {words}\n# TYPE {name} {kind}\n"]
    for labels, value in samples.items():
        shown = ",".join(f'{label}="{text}"' for label, text in labels)
        lines.append(f"{name}{{{shown}}} {float(value):g}\n" if shown else f"{name} {float(value):g}\n")
    return "".join(lines)


async def serve_metrics(listening: Iterable[trio.socket.SocketType], text: Callable[[], str]) -> None:
    """Answer GET /metrics until cancelled: one request a connection, within some seconds."""
    limiter = trio.CapacityLimiter(_MAX_SCRAPERS)
    async with trio.open_nursery() as nursery:
        for each in listening:
            nursery.start_soon(_accept_forever, each, text, limiter, nursery)


async def _accept_forever(
    listening: trio.socket.SocketType, text: Callable[[], str], limiter: trio.CapacityLimiter, nursery: trio.Nursery
) -> None:
    with listening:
        while True:
            try:
                accepted, _ = await listening.accept()
            except OSError:
                await trio.sleep(0.05)
                continue
            if limiter.available_tokens:
                nursery.start_soon(_answer, accepted, text, limiter)
            else:
                accepted.close()


async def _answer(accepted: trio.socket.SocketType, text: Callable[[], str], limiter: trio.CapacityLimiter) -> None:
    with accepted, trio.move_on_after(_SECONDS):
        async with limiter:
            try:
                request = b""
                while b"\r\n\r\n" not in request and len(request) < _MAX_REQUEST_BYTES:
                    if not (more := await accepted.recv(_MAX_REQUEST_BYTES)):
                        return
                    request += more
                found = request.split(b"\r\n", 1)[0].split(b" ")[:2] == [b"GET", b"/metrics"]
                body = text().encode() if found else b"only GET /metrics\n"
                status = "200 OK" if found else "404 Not Found"
                head = f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
                view = memoryview(head.encode() + b"Connection: close\r\n\r\n" + body)
                while view:
                    view = view[await accepted.send(view) :]
            except OSError:
                pass
