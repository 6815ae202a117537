"""Whoever says which version of relays' calls it speaks is told ours with every answer, errors included."""

from __future__ import annotations

from typing import Any, Final

from transport.link_version import HEADER, NEWEST

_NAME: Final = HEADER.encode()
_OURS: Final = (_NAME, str(NEWEST).encode())


class TellsVersion:
    """ASGI. A relay of a version that knows no versions gets the answers that it always got."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or all(name != _NAME for name, _ in scope["headers"]):
            await self._app(scope, receive, send)
            return

        async def tell(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), _OURS]}
            await send(message)

        await self._app(scope, receive, tell)
