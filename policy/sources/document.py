"""A JSON document over HTTPS as a source, in the form of `policy.told`; asked for by ETag: no change is cheap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final

import httpx
import trio

from policy.errors import InventoryRefused
from policy.sources.https import get
from policy.sources.reading import Pace, Reading, digest_of
from policy.told import parse_json

MAX_DOCUMENT_BYTES: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DocumentSource:
    """`client` from `https.make_client`."""

    name: str
    url: str
    client: httpx.AsyncClient
    pace: Pace
    is_partial: bool = False
    tells_hosts: bool = False
    max_bytes: int = MAX_DOCUMENT_BYTES

    async def read(self, before: Reading | None) -> Reading:
        etag = before.etag if before is not None else None
        fetched = await get(self.client, self.name, self.url, max_bytes=self.max_bytes, etag=etag)
        if fetched.body is None:
            assert before is not None  # without an ETag `get` takes no 304
            return before
        digest = digest_of(fetched.body)
        if before is not None and before.digest == digest:
            return Reading(before.told, digest, fetched.etag)
        parse = partial(parse_json, fetched.body, self.name, partial=self.is_partial)
        told = await trio.to_thread.run_sync(parse, abandon_on_cancel=True)
        if told.hosts and not self.tells_hosts:
            raise InventoryRefused(self.name, "names hosts, which it may not: set `hosts = true` if it should")
        return Reading(told, digest, fetched.etag)
