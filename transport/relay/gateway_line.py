"""HTTPS to one gateway: this host's certificate, bounded answers, and the version of calls that both speak."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
import msgspec
import structlog
import trio

from transport import link_version
from transport.errors import ConfigurationError
from transport.relay.gateway_answers import GatewayAway, GatewayRefuses, words_of_refusal
from transport.relay.host import RelayHost

log = structlog.get_logger("sealane.relay")
POLL_SECONDS = 20
MAX_ANSWER_BYTES = 256 * 1024
_MAX_ERROR_BYTES = 64 * 1024
# Beside the poll's one more stays open: the address book is asked for within that time, and handshakes cost the most.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=2, keepalive_expiry=65.0)
_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
_NEVER = frozenset({400, 401, 403, 404, 409, 413, 422})
_NO_ANSWER_NOW = {"/v1/relay/admission": 429}  # to whoever asks; what a relay has to tell is never put off so
_FORMER_SECONDS = 120.0
_WHOLE_SECONDS = 120.0  # each byte of an answer has its own deadline in httpx: one that drips would never end


class _Whole(httpx.AsyncByteStream):
    """A body in one piece. httpx's own is a generator, which is left behind where the request is cut off within it."""

    def __init__(self, body: bytes) -> None:
        self._body: list[bytes] = [body]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._body:
            raise StopAsyncIteration
        return self._body.pop()


class GatewayLine:
    """To the gateway at `url`. `version`: of calls, which both speak; None while it was not heard yet."""

    def __init__(self, host: RelayHost, url: str) -> None:
        self._host = host
        self.url = url
        self.version: int | None = None
        self._client = self._new_client()
        self._former: list[tuple[float, httpx.AsyncClient]] = []

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url,
            verify=_tls(self._host),
            timeout=httpx.Timeout(10.0, read=POLL_SECONDS + 15.0),
            limits=_LIMITS,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # takes none: they would be kept without end
        )

    async def close(self) -> None:
        for _, client in self._former:
            await client.aclose()
        await self._client.aclose()

    async def use_identity(self) -> None:
        """Speak with the certificate that is in force now; what was asked with the former one is still answered."""
        moment = trio.current_time()
        try:
            fresh = await self._host.on_disk(self._new_client)
        except ConfigurationError as error:
            log.error("the new certificate cannot be used with the gateway", cause=str(error))
            return
        self._former.append((moment, self._client))
        self._client = fresh
        while self._former[0][0] < moment - _FORMER_SECONDS:
            await self._former.pop(0)[1].aclose()

    async def post(self, path: str, body: dict[str, object]) -> bytes:
        """As `post_bytes`, of JSON."""
        return await self.post_bytes(path, msgspec.json.encode(body))

    async def post_bytes(self, path: str, body: bytes, at_most: int = MAX_ANSWER_BYTES) -> bytes:
        """The answer's body, bounded in size and time. `GatewayRefuses` where the message is at fault, else
        `GatewayAway`."""
        with trio.move_on_after(_WHOLE_SECONDS):
            return await self._post_bytes(path, body, at_most)
        raise GatewayAway(f"{path}: the whole answer did not come in time")

    async def _post_bytes(self, path: str, body: bytes, at_most: int) -> bytes:
        answer = bytearray()
        try:
            headers = {**_HEADERS, link_version.HEADER: str(link_version.NEWEST)}
            request = self._client.build_request("POST", path, content=body, headers=headers)
            request.stream = _Whole(body)
            async with aclosing(await self._client.send(request, stream=True)) as response:
                status = response.status_code
                theirs = response.headers.get(link_version.HEADER)
                if theirs is not None or status // 100 != 5:  # without it, a 502 may be the word of a proxy
                    self._agree(path, theirs)
                bound = at_most if status // 100 == 2 else min(at_most, _MAX_ERROR_BYTES)
                if (told := response.headers.get("content-length", "")).isdigit() and int(told) > bound:
                    raise GatewayAway(f"{path}: the gateway's answer is too long ({status})")
                async for chunk in response.aiter_raw():  # as it came: what is packed twice has no bound
                    answer += chunk
                    if len(answer) > bound:
                        raise GatewayAway(f"{path}: the gateway's answer is too long ({status})")
                if status in _NEVER or status == _NO_ANSWER_NOW.get(path):
                    raise GatewayRefuses(f"{path}: the gateway answers {status}{words_of_refusal(answer)}", status)
                if status // 100 != 2:
                    raise GatewayAway(f"{path}: the gateway answers {status}{words_of_refusal(answer)}")
        except (httpx.ReadError, httpx.RemoteProtocolError) as error:
            # In TLS 1.3 a server refuses a client's certificate after the client believes that it is connected.
            hint = "it was stopped, or does not accept this host's certificate: sealane doctor"
            raise GatewayAway(f"{path}: {type(error).__name__}: {error}; {hint}") from None
        except (httpx.HTTPError, OSError) as error:
            raise GatewayAway(f"{path}: {type(error).__name__}: {error}") from None
        return bytes(answer)

    def _agree(self, path: str, theirs: str | None) -> None:
        """At each answer: a gateway may be upgraded, or another one answer in its place. GatewayAway."""
        try:
            self.version = link_version.agreed(theirs)
        except link_version.LinkRefused as refused:
            who = "this relay" if refused.ours_is_older else "the gateway"
            raise GatewayAway(f"{path}: upgrade {who}: {refused}") from None


def _tls(host: RelayHost) -> ssl.SSLContext:
    """TLS 1.3 with this host's certificate; the gateway must be certified by the configured CA and by its name."""
    config = host.config
    try:
        context = ssl.create_default_context(cafile=config.gateway.trust_bundle)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(config.identity.certificate, config.identity.private_key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"gateway.trust_bundle or identity cannot be used: {error}") from None
    return context
