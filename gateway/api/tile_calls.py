"""The log itself, as C2SP tlog-tiles serves it: GET only, for auditors (ReadAudit), under the prefix /v1/log."""

from __future__ import annotations

import gzip

import trio
from fastapi import APIRouter, Request
from starlette.responses import Response

from audit.tiles import parse_resource
from gateway.api.desk import Address, Asking, AtDesk
from gateway.errors import NotKnown

router = APIRouter()

# Private: what one auditor may see, no shared cache may keep. Immutable: a tile of a width never changes.
_IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable", "vary": "Authorization, Accept-Encoding"}
_GZIP_LEVEL = 3


@router.get("/v1/log/checkpoint", summary="The newest published checkpoint (C2SP), with cosignatures of witnesses")
async def checkpoint(desk: AtDesk, person: Asking) -> Response:  # noqa: ARG001 - anyone who is authenticated
    """At most a few seconds old where there are witnesses; /v1/checkpoint has the newest one that was committed."""
    text = await desk.published_checkpoint()
    return Response(text, headers={"cache-control": "no-cache"}, media_type="text/plain")


@router.get("/v1/log/keys", summary="The lines that join the log's former keys to its key, each signed by both")
async def keys(desk: AtDesk, person: Asking) -> Response:  # noqa: ARG001 - anyone who is authenticated
    """As the file `keys` in the log's folder (docs/audit-log.md); empty where the key was never replaced."""
    return Response(await desk.tile_reading.keys(), headers={"cache-control": "no-cache"}, media_type="text/plain")


@router.get("/v1/log/tile/{path:path}", summary="A tile or an entry bundle of the log (C2SP tlog-tiles)")
async def tile(path: str, request: Request, desk: AtDesk, person: Asking, address: Address) -> Response:
    """`<L>/<N>[.p/<W>]` or `entries/<N>[.p/<W>]`. Needs ReadAudit; recorded by quarters of an hour."""
    wanted = parse_resource(path)
    if wanted is None:
        raise NotKnown("not a path of C2SP tlog-tiles")
    data = await desk.tile_reading.read(person, desk.now(), address, wanted)
    headers = dict(_IMMUTABLE)
    if wanted.level is None and "gzip" in request.headers.get("accept-encoding", ""):
        data = await trio.to_thread.run_sync(gzip.compress, data, _GZIP_LEVEL)
        headers["content-encoding"] = "gzip"
    return Response(data, headers=headers, media_type="application/octet-stream")
