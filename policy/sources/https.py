"""One GET over HTTPS to a source of the inventory: verified, bounded, never redirected; with an ETag, conditional."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx
import trio

from policy.errors import InventoryUnavailable

MAX_ETAG: Final = 256
_HEADERS: Final = {"accept": "application/json", "accept-encoding": "identity"}


@dataclass(frozen=True, slots=True)
class Fetched:
    """`body` is None where the server says that nothing has changed (304)."""

    body: bytes | None
    etag: str | None


def make_client(trust_bundle: str | None, authorization: str | None) -> httpx.AsyncClient:
    """TLS 1.2 or newer, verified by `trust_bundle` (PEM file; None: the system's). The caller closes it.

    No redirect is followed, and no proxy, netrc or certificate path taken from the environment: `authorization` goes to
    the configured server and nowhere else. Raises OSError, ValueError for a bundle that cannot be used.
    """
    context = ssl.create_default_context(cafile=trust_bundle)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    headers = dict(_HEADERS)
    if authorization is not None:
        headers["authorization"] = authorization
    return httpx.AsyncClient(verify=context, trust_env=False, follow_redirects=False, timeout=10, headers=headers)


def require_https(url: str) -> None:
    """Raises ValueError: what came over plain HTTP is whoever's was in between, and our token with it."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.username is not None or parts.fragment:
        raise ValueError("must be an https:// URL without user or fragment")


async def get(
    client: httpx.AsyncClient,
    source: str,
    url: str,
    *,
    max_bytes: int,
    parameters: Mapping[str, str | int] | None = None,
    etag: str | None = None,
) -> Fetched:
    """A body of at most `max_bytes`, uncompressed. Raises InventoryUnavailable; the deadline is the caller's."""
    headers = {} if etag is None else {"if-none-match": etag}
    try:
        async with client.stream("GET", url, params=parameters, headers=headers) as response:
            if response.status_code == httpx.codes.NOT_MODIFIED and etag is not None:
                return Fetched(None, etag)
            if response.status_code != httpx.codes.OK:
                raise InventoryUnavailable(source, _words_for(response.status_code))
            if response.headers.get("content-encoding", "identity") != "identity":
                raise InventoryUnavailable(source, "answered compressed though asked not to")
            body = await read_bounded(response, max_bytes)
            answered = response.headers.get("etag")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise InventoryUnavailable(source, f"cannot be reached: {_words(error)}") from error
    if len(body) > max_bytes:
        raise InventoryUnavailable(source, f"answered with more than {max_bytes} bytes")
    usable = answered is not None and len(answered) <= MAX_ETAG and answered.isascii() and answered.isprintable()
    return Fetched(body, answered if usable else None)


def _words_for(status: int) -> str:
    if status in {401, 403}:
        return f"refuses our token (status {status}): correct its file"
    if 300 <= status < 400:
        return f"answered with a redirect (status {status}), which is not followed: correct `url`"
    return f"answered with status {status}"


async def read_bounded(response: httpx.Response, max_bytes: int) -> bytes:
    """The body as it was sent, never unpacked: all of it, or somewhat more than `max_bytes`."""
    body = bytearray()
    # Ended by cancelling and not by leaving the loop: httpx nests async generators, and only an exception from the
    # innermost closes all of them.
    with trio.CancelScope() as reading:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > max_bytes:
                reading.cancel()
    return bytes(body)


def _words(error: BaseException) -> str:
    """The first of the chain that says anything: with trio, httpx says nothing of an untrusted certificate."""
    link: BaseException | None = error
    while link is not None:
        if str(link):
            return " ".join(str(link).split())[:300]
        link = link.__cause__ or link.__context__
    return type(error).__name__
