"""Fetching an issuer's keys, from a real HTTPS server on loopback, with a clock that the test turns."""

from __future__ import annotations

import datetime
import gzip
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from policy.errors import IssuerUnavailable, TokenRefused
from policy.facts import Person
from policy.identity.jwks import DISCOVERY_PATH, FetchLimits, IssuerKeys, fetch_keys, https_client
from policy.identity.oidc import IssuerSettings
from tests.policy.forgery import forge, segment

NOW = 1_790_000_000
KEY, NEXT_KEY = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
LIMITS = FetchLimits(deadline_seconds=5, minimum_interval_seconds=30, refresh_seconds=3600, maximum_age_seconds=86_400)


def jwk(kid: str, key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    x, y = segment(numbers.x.to_bytes(32)), segment(numbers.y.to_bytes(32))
    return {"kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256", "x": x, "y": y}


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Issuer:
    """An HTTPS server whose answers the test sets; `requests` are the paths that were asked for."""

    port: int = 0
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    gate: trio.Event | None = None  # no answer before it is set
    asked: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def answer(self, path: str, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers[path] = (status, headers, data)

    def publish(self, **keys: ec.EllipticCurvePrivateKey) -> None:
        self.answer(DISCOVERY_PATH, {"issuer": self.url, "jwks_uri": f"{self.url}/keys", "more": [1]})
        self.answer("/keys", {"keys": [jwk(kid, key) for kid, key in keys.items()]})

    def token(self, kid: str, key: ec.EllipticCurvePrivateKey, **header: str) -> str:
        claims = {"iss": self.url, "aud": "sealane", "sub": "alice", "iat": NOW, "exp": NOW + 60}
        return forge({"alg": "ES256", "kid": kid, "typ": "at+jwt", **header}, claims, key)

    def fetches(self) -> int:
        return self.requests.count("/keys")

    async def serve(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            request = bytearray()
            while b"\r\n\r\n" not in request:
                chunk = await stream.receive_some()
                if not chunk:
                    return
                request += chunk
            path = request.split(b" ")[1].decode()
            self.requests.append(path)
            self.asked.set()
            if self.gate is not None:
                await self.gate.wait()
            if path == "/endless":
                await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
                while True:
                    await stream.send_all(b" " * 65_536)
            status, headers, body = self.answers.get(path, (404, {}, b"{}"))
            lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
            lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
            await stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)
            await stream.aclose()
        except trio.BrokenResourceError:  # the client refused the certificate, or had read enough
            pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of the server, in one PEM file; also the client's trust bundle."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
    today, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    subject = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(today - day).not_valid_after(today + day)
    builder = builder.add_extension(subject, critical=False)
    signed = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
        key, hashes.SHA256()
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path_factory.mktemp("issuer") / "tls.pem"
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM) + secret)
    return path


@asynccontextmanager
async def serving(issuer: Issuer, certificate: Path) -> AsyncIterator[Issuer]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, issuer.serve, 0, context, host="127.0.0.1", https_compatible=True)
        listeners = await nursery.start(serve)
        issuer.port = listeners[0].transport_listener.socket.getsockname()[1]
        issuer.publish(first=KEY)
        yield issuer
        nursery.cancel_scope.cancel()


@pytest.fixture
async def issuer(certificate: Path) -> AsyncIterator[Issuer]:
    async with serving(Issuer(), certificate) as running:
        yield running


@pytest.fixture
async def client(certificate: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with https_client(str(certificate)) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(issuer: Issuer, client: httpx.AsyncClient, clock: Clock) -> IssuerKeys:
    return IssuerKeys(IssuerSettings(issuer.url, "sealane"), client, LIMITS, clock)


async def unavailable(keys: IssuerKeys, token: str) -> str:
    with pytest.raises(IssuerUnavailable) as error:
        await keys.verify(token, NOW)
    return error.value.detail


async def unknown_key(keys: IssuerKeys, token: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        await keys.verify(token, NOW)
    assert refused.value.check == "key"


async def test_keys_are_found_by_discovery_once_and_then_kept(issuer: Issuer, keys: IssuerKeys) -> None:
    for _ in range(3):
        person = await keys.verify(issuer.token("first", KEY), NOW)
    assert person.id == f"{issuer.url}#alice"
    assert issuer.requests == [DISCOVERY_PATH, "/keys"]


async def test_a_rotated_key_is_fetched_when_a_token_names_it(issuer: Issuer, keys: IssuerKeys, clock: Clock) -> None:
    await keys.verify(issuer.token("first", KEY), NOW)
    issuer.publish(first=KEY, second=NEXT_KEY)
    clock.now += 30
    await keys.verify(issuer.token("second", NEXT_KEY), NOW)
    await keys.verify(issuer.token("first", KEY), NOW)
    assert issuer.fetches() == 2


async def test_a_withdrawn_key_stops_working_at_the_next_refresh(
    issuer: Issuer, keys: IssuerKeys, clock: Clock
) -> None:
    await keys.verify(issuer.token("first", KEY), NOW)
    issuer.publish(second=NEXT_KEY)
    clock.now += 3601
    await unknown_key(keys, issuer.token("first", KEY))


async def test_made_up_kids_cause_one_fetch_per_interval_whatever_their_number(
    issuer: Issuer, keys: IssuerKeys, clock: Clock
) -> None:
    await keys.verify(issuer.token("first", KEY), NOW)
    for number in range(20):
        clock.now += 3.0
        await unknown_key(keys, issuer.token(f"made-up-{number}", KEY))
    assert issuer.fetches() == 3  # one to begin with, two in the minute after it


async def test_many_requests_at_once_fetch_once(issuer: Issuer, keys: IssuerKeys) -> None:
    issuer.gate = trio.Event()
    people: list[Person] = []

    async def one() -> None:
        people.append(await keys.verify(issuer.token("first", KEY), NOW))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(one)
        await issuer.asked.wait()
        issuer.gate.set()
    assert len(people) == 10
    assert issuer.requests == [DISCOVERY_PATH, "/keys"]


async def test_known_keys_go_on_working_while_one_task_refreshes(
    issuer: Issuer, keys: IssuerKeys, clock: Clock
) -> None:
    await keys.verify(issuer.token("first", KEY), NOW)
    clock.now += 3601
    issuer.gate, issuer.asked = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.verify, issuer.token("first", KEY), NOW)
        await issuer.asked.wait()
        await keys.verify(issuer.token("first", KEY), NOW)  # returns while the other one still waits
        issuer.gate.set()
    assert issuer.fetches() == 2


async def test_a_requester_who_hangs_up_does_not_use_up_the_attempt(issuer: Issuer, keys: IssuerKeys) -> None:
    issuer.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.verify, issuer.token("first", KEY), NOW)
        await issuer.asked.wait()
        nursery.cancel_scope.cancel()
        issuer.gate.set()
    assert await keys.verify(issuer.token("first", KEY), NOW)
    assert issuer.fetches() == 1


async def test_when_the_issuer_is_down_old_keys_serve_until_they_are_too_old(
    issuer: Issuer, keys: IssuerKeys, clock: Clock
) -> None:
    await keys.verify(issuer.token("first", KEY), NOW)
    issuer.answer("/keys", {}, status=503)
    clock.now += 86_400
    assert await keys.verify(issuer.token("first", KEY), NOW)
    assert keys.last_failure == "answered with status 503"
    clock.now += 31
    assert "503" in await unavailable(keys, issuer.token("first", KEY))
    issuer.publish(first=KEY)
    clock.now += 31
    assert await keys.verify(issuer.token("first", KEY), NOW)
    assert keys.last_failure is None


async def test_after_a_failure_nothing_is_fetched_before_the_interval_is_over(
    issuer: Issuer, keys: IssuerKeys, clock: Clock
) -> None:
    issuer.answer("/keys", {}, status=500)
    for _ in range(3):
        assert "500" in await unavailable(keys, issuer.token("first", KEY))
    assert issuer.fetches() == 1
    issuer.publish(first=KEY)
    clock.now += 30
    assert await keys.verify(issuer.token("first", KEY), NOW)


async def test_an_issuer_that_does_not_answer_is_given_up_at_the_deadline(
    issuer: Issuer, client: httpx.AsyncClient, clock: Clock
) -> None:
    issuer.gate = trio.Event()
    limits = FetchLimits(deadline_seconds=0.2)
    keys = IssuerKeys(IssuerSettings(issuer.url, "sealane"), client, limits, clock)
    assert "0.2 s" in await unavailable(keys, issuer.token("first", KEY))


async def test_garbage_costs_no_request(issuer: Issuer, keys: IssuerKeys) -> None:
    for garbage in ("", "a.b.c", issuer.token("first", KEY) + ".x", "x" * 20_000):
        with pytest.raises(TokenRefused):
            await keys.verify(garbage, NOW)
    assert issuer.requests == []


@pytest.mark.parametrize("member", ["jku", "x5u", "jwk"])
async def test_nothing_is_fetched_from_where_a_token_points(issuer: Issuer, keys: IssuerKeys, member: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        await keys.verify(issuer.token("first", KEY, **{member: f"{issuer.url}/evil"}), NOW)
    assert refused.value.check == "header"
    assert issuer.requests == []


async def failure(issuer: Issuer, client: httpx.AsyncClient) -> str:
    with pytest.raises(IssuerUnavailable) as error:
        await fetch_keys(client, issuer.url)
    return error.value.detail


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (lambda url: {"issuer": url + "/", "jwks_uri": url + "/keys"}, "another issuer"),
        (lambda url: {"issuer": "https://evil.test", "jwks_uri": url + "/keys"}, "another issuer"),
        (lambda url: {"jwks_uri": url + "/keys"}, "another issuer"),
        (lambda url: {"issuer": url}, "no jwks_uri"),
        (lambda url: {"issuer": url, "jwks_uri": 5}, "no jwks_uri"),
        (lambda url: {"issuer": url, "jwks_uri": url.replace("https", "http") + "/keys"}, "https"),
        (lambda url: {"issuer": url, "jwks_uri": "file:///etc/passwd"}, "https"),
        (lambda url: {"issuer": url, "jwks_uri": url.replace("//", "//user:secret@") + "/keys"}, "https"),
        (lambda url: {"issuer": url, "jwks_uri": "https://[::1"}, "cannot be reached"),
        (lambda url: {"issuer": url, "jwks_uri": url + "/elsewhere"}, "404"),
        (lambda url: b'{"issuer":"' + url.encode() + b'","issuer":"x"}', "duplicate"),
        (lambda _: b"<html>", "strict JSON"),
        (lambda _: [], "not a JSON object"),
        (lambda _: b" " * 70_000, "more than"),
    ],
)
async def test_a_discovery_document_is_refused(
    document: Callable[[str], Any], why: str, issuer: Issuer, client: httpx.AsyncClient
) -> None:
    issuer.answer(DISCOVERY_PATH, document(issuer.url))
    assert why in await failure(issuer, client)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"body": {"keys": []}}, "no key"),
        ({"body": {"keys": {}}}, "key set"),
        ({"body": b"\x00"}, "strict JSON"),
        ({"body": b" " * 300_000}, "more than"),
        ({"body": gzip.compress(b" " * 10_000_000), "Content_Encoding": "gzip"}, "compressed"),
        ({"body": {}, "status": 302, "Location": "https://127.0.0.1/evil"}, "302"),
        ({"body": {}, "status": 204}, "204"),
    ],
    ids=["empty", "no list", "garbage", "huge", "gzip bomb", "redirect", "no content"],
)
async def test_a_key_set_is_refused(
    answer: dict[str, Any], why: str, issuer: Issuer, client: httpx.AsyncClient
) -> None:
    issuer.answer("/keys", **answer)
    assert why in await failure(issuer, client)


async def test_an_answer_without_end_is_read_to_the_limit_and_no_further(
    issuer: Issuer, client: httpx.AsyncClient
) -> None:
    issuer.answer(DISCOVERY_PATH, {"issuer": issuer.url, "jwks_uri": issuer.url + "/endless"})
    with trio.fail_after(5):
        assert "more than" in await failure(issuer, client)


async def test_a_server_that_the_trust_bundle_does_not_know_is_refused(issuer: Issuer) -> None:
    async with https_client() as client:
        assert "cannot be reached" in await failure(issuer, client)
    assert issuer.requests == []


async def test_a_certificate_for_another_name_is_refused(issuer: Issuer, client: httpx.AsyncClient) -> None:
    with pytest.raises(IssuerUnavailable, match="cannot be reached"):
        await fetch_keys(client, f"https://localhost:{issuer.port}")
    assert issuer.requests == []


async def test_an_issuer_that_nobody_serves_is_unavailable(client: httpx.AsyncClient) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(IssuerUnavailable, match="cannot be reached"):
        await fetch_keys(client, f"https://127.0.0.1:{port}")


@pytest.mark.parametrize("issuer_url", ["http://login.bank.test", "login.bank.test", "https://", "https://u:p@a.test"])
async def test_an_issuer_that_is_not_https_fails_at_start(issuer_url: str, client: httpx.AsyncClient) -> None:
    with pytest.raises(ValueError, match="https"):
        IssuerKeys(IssuerSettings(issuer_url, "sealane"), client)


def test_limits_that_contradict_each_other_fail_at_start() -> None:
    with pytest.raises(ValueError, match="minimum interval"):
        FetchLimits(refresh_seconds=10)
    with pytest.raises(ValueError, match="minimum interval"):
        FetchLimits(minimum_interval_seconds=0)


async def test_the_client_takes_no_proxy_from_the_environment(
    issuer: Issuer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    async with https_client(str(certificate)) as client:
        assert (await fetch_keys(client, issuer.url)).knows("first")
