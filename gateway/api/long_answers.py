"""Answers with lists of megabytes: encoded and sent piece by piece, others get their turn in between.

At once, ten megabytes take the loop 40 ms and more, in a thread as well: the encoder lets no other thread run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import trio
from starlette.responses import Response

PIECE_BYTES: Final = 64 * 1024  # or one entry, if that is larger


class LongAnswer(Response):
    """JSON of `content`, whose lists are encoded entry by entry; never cached.

    `seconds`: for all of it; whoever reads slower loses the connection.
    """

    def __init__(self, content: Mapping[str, Any], seconds: float) -> None:
        super().__init__(headers={"cache-control": "no-store"}, media_type="application/json")
        del self.headers["content-length"]
        self._content = content
        self._seconds = seconds

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        with trio.move_on_after(self._seconds) as sending:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for piece in pieces(self._content):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        if sending.cancelled_caught and (hang_up := scope.get("state", {}).get("hang_up")) is not None:
            hang_up()


def pieces(content: Mapping[str, Any]) -> Iterator[bytes]:
    held = bytearray()
    for part in _parts(content):
        held += part
        if len(held) >= PIECE_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held)


def _parts(content: Mapping[str, Any]) -> Iterator[bytes]:
    between = b"{"
    for name, value in content.items():
        yield between + msgspec.json.encode(name) + b":"
        between = b","
        yield from _list(value) if isinstance(value, list) else (msgspec.json.encode(value),)
    yield b"}"


def _list(entries: list[Any]) -> Iterator[bytes]:
    between = b"["
    for entry in entries:
        yield between + msgspec.json.encode(entry)
        between = b","
    yield b"]" if entries else b"[]"
