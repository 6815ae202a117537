"""Asking another site's gateway: over TLS that its own CA vouches for, bounded, never redirected."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated, Any, Final, TypeVar

import httpx
import msgspec
import trio
from msgspec import Meta

from gateway.errors import OperatorError, RequesterError
from gateway.gate import Gate
from gateway.reading import MAX_ASKED
from gateway.sites.request import LIFETIME_SECONDS, HostQuestion, RecordsWanted, Request, ToldHost, sign_request
from gateway.sites.settings import OtherSite
from gateway.sites.shared import require_record
from policy.sources.https import read_bounded
from policy.strict_json import strictly
from transport.errors import UNDECODABLE

SECONDS: Final = 15.0
MAX_ANSWER_BYTES: Final = 256 * 1024
MAX_RECORDS_BYTES: Final = 64 * 1024 * 1024
Answer = TypeVar("Answer")


class SiteUnreachable(OperatorError):
    code = "site_unreachable"
    next_step = "look at the other site's gateway, at [[sites]] of both, and at the way between them; then repeat"


class RefusedThere(RequesterError):
    """The other site says no; its words."""

    code = "refused_by_other_site"
    status = 403
    next_step = "ask the other site, naming its record"


class Admitted(msgspec.Struct, frozen=True, tag="permit", tag_field="kind"):
    permit: Annotated[str, Meta(max_length=16 * 1024)]
    address: Annotated[str, Meta(max_length=261)]
    record_index: Annotated[int, Meta(ge=0, le=2**53)]


class Denied(msgspec.Struct, frozen=True, tag="denied", tag_field="kind"):
    message: Annotated[str, Meta(max_length=4096)]
    record_index: Annotated[int, Meta(ge=0, le=2**53)] | None = None


class SharedRecords(msgspec.Struct, frozen=True):
    """`log`: the origin of the log that they are of."""

    log: Annotated[str, Meta(max_length=255)]
    records: Annotated[list[tuple[int, dict[str, Any]]], Meta(max_length=MAX_ASKED)]


decode_host: Final = strictly(msgspec.json.Decoder(ToldHost | None).decode)
decode_decision: Final = strictly(msgspec.json.Decoder(Admitted | Denied).decode)
_decode_records: Final = strictly(msgspec.json.Decoder(SharedRecords).decode)


def decode_records(data: bytes) -> SharedRecords:
    """Each of a shape that can be compared. Raises UNDECODABLE."""
    shared = _decode_records(data)
    for _, record in shared.records:
        require_record(record)
    return shared


async def ask_host(gate: Gate, site: OtherSite, host: str) -> ToldHost | None:
    """None: that site knows no such host. Errors: SiteUnreachable."""
    request = HostQuestion(host=host, **envelope(gate, site))
    return await _ask(gate, site, request, {}, decode_host, MAX_ANSWER_BYTES)


async def ask_admission(gate: Gate, site: OtherSite, request: Request, permit: str) -> Admitted | Denied:
    """Errors: SiteUnreachable."""
    return await _ask(gate, site, request, {"permit": permit}, decode_decision, MAX_ANSWER_BYTES)


async def ask_records(gate: Gate, site: OtherSite, since: str) -> SharedRecords:
    """Errors: SiteUnreachable."""
    request = RecordsWanted(since=since, **envelope(gate, site))
    return await _ask(gate, site, request, {}, decode_records, MAX_RECORDS_BYTES)


def envelope(gate: Gate, site: OtherSite) -> dict[str, Any]:
    assert gate.sites is not None
    now = int(gate.clock.wall().timestamp())
    return {"iss": gate.sites.own, "aud": site.trust_domain, "iat": now, "exp": now + LIFETIME_SECONDS}


async def fetch(site: OtherSite, path: str, at_most: int) -> bytes:
    """Errors: SiteUnreachable."""
    return await _send(site, site.client.build_request("GET", site.url + path), at_most)


async def _ask(
    gate: Gate,
    site: OtherSite,
    request: Request,
    beside: dict[str, str],
    decode: Callable[[bytes], Answer],
    at_most: int,
) -> Answer:
    token = sign_request(request, gate.terms.private_key, gate.terms.key_id)
    body = msgspec.json.encode({"request": token, **beside})
    headers = {"content-type": "application/json"}
    sent = site.client.build_request("POST", f"{site.url}/v1/sites/ask", content=body, headers=headers)
    try:
        answer = await _send(site, sent, at_most)
        return await trio.to_thread.run_sync(decode, answer)  # records may be many megabytes
    except UNDECODABLE as error:
        raise SiteUnreachable(f"site {site.name} gives an answer that is none: {error}") from error


async def _send(site: OtherSite, request: httpx.Request, at_most: int) -> bytes:
    with trio.move_on_after(SECONDS):
        try:
            async with aclosing(await site.client.send(request, stream=True)) as response:
                answer = await read_bounded(response, at_most)
                if len(answer) > at_most:
                    raise SiteUnreachable(f"site {site.name}: its gateway's answer is too long")
                if response.status_code != httpx.codes.OK:
                    raise SiteUnreachable(f"site {site.name}: its gateway answers {response.status_code}")
                return answer
        except (httpx.HTTPError, OSError) as error:
            raise SiteUnreachable(
                f"site {site.name}: its gateway cannot be asked ({type(error).__name__}: {error})"
            ) from error
    raise SiteUnreachable(f"site {site.name}: its gateway does not answer in time")
