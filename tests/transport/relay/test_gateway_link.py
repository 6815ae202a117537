"""The relay's word to its gateway: never in the way of a handover, and no receipt lost or in another's way."""

from __future__ import annotations

import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pytest
import trio
import trio.testing

from tests.transport.relay.conftest import until
from tests.transport.relay.fake_gateway import FakeGateway, serving_https
from tests.transport.site import Site
from transport import link_version
from transport.hypervisors.preflight_facts import Disk, Inspection, Machine
from transport.link_version import NEWEST
from transport.relay.gateway_answers import GatewayAway, GatewayRefuses
from transport.relay.gateway_line import GatewayLine
from transport.relay.gateway_link import GatewayLink
from transport.relay.gateway_links import GatewayLinks
from transport.relay.host import RelayHost, open_host
from transport.relay.news import News, NewsDesk


class SlowLink:
    """Takes news only when it is let."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.gate = trio.Semaphore(0)

    async def tell(self, migration_id: str, news: News) -> None:
        await self.gate.acquire()
        self.told.append(f"{migration_id} {news.state} {news.message}")


async def test_a_gateway_that_hangs_holds_nobody_up_and_hears_the_latest() -> None:
    link = SlowLink()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            desk = NewsDesk(link, "m", nursery)
            for n in range(100):
                await desk.tell(News("running", None, None, str(n)))
            await desk.tell(News("completed"))
            await trio.testing.wait_all_tasks_blocked()
            link.gate.release()
            link.gate.release()
    assert link.told[-1] == "m completed "
    assert len(link.told) <= 2


@pytest.fixture
def answering(site: Site) -> Iterator[tuple[RelayHost, FakeGateway]]:
    with serving_https(site, FakeGateway()) as gateway:
        config = site.relay_config("a")
        section = msgspec.structs.replace(config.gateway, url=gateway.url)
        yield open_host(msgspec.structs.replace(config, gateway=section)), gateway


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_a_receipt_that_is_refused_for_good_is_set_aside_and_blocks_no_other(
    answering: tuple[RelayHost, FakeGateway],
) -> None:
    host, gateway = answering
    statuses = {"bad": 403, "later": 503}
    gateway.answer = lambda _, body: next(
        ((code, b"") for text, code in statuses.items() if text in body.decode()), None
    )
    for name in ("1-bad", "2-good", "3-later"):
        host.spool.keep_receipt(name, f'"{name}"'.encode())
    folder = host.spool.receipts()[0].parent
    link = GatewayLinks(host)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link._deliver_forever, link.all[0])
        await until(lambda: names(folder) == {"1-bad.refused", "3-later.json"})
        assert gateway.paths("/v1/receipts") == ["2-good"]
        statuses.clear()
        await until(lambda: names(folder) == {"1-bad.refused"})
        nursery.cancel_scope.cancel()
    assert gateway.paths("/v1/receipts") == ["2-good", "3-later"]
    await link.close()


async def polls(host: RelayHost, gateway: FakeGateway, count: int) -> list[dict[str, object]]:
    """The bodies of the first `count` polls that the gateway took."""
    link = GatewayLink(host)
    answer, asks_again, may_end = gateway.answer, threading.Event(), threading.Event()

    def hold_the_next(path: str, body: bytes) -> tuple[int, bytes] | None:
        """It is cancelled while it waits for an answer: in the midst of connecting, httpx would leave a socket open."""
        if len(gateway.paths("/v1/relay/poll")) >= count:
            asks_again.set()
            may_end.wait(30)
        return answer(path, body)

    async def nothing(_: object) -> None:
        pass

    gateway.answer = hold_the_next
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.poll_forever, nothing, nothing)
        await until(asks_again.is_set)
        nursery.cancel_scope.cancel()
    may_end.set()
    await link.close()
    return gateway.paths("/v1/relay/poll")[:count]


async def test_a_gateway_is_told_what_the_relay_believes_once_it_has_said_that_it_knows_that(
    answering: tuple[RelayHost, FakeGateway],
) -> None:
    host, gateway = answering
    gateway.answer = lambda _path, _body: (200, b'{"assignments": []}')
    first, second = await polls(host, gateway, 2)
    assert first == {"wait_seconds": 0}
    assert second["holds"] == host.holds() != []


async def test_a_gateway_whose_answers_come_at_once_makes_no_relay_spin(
    site: Site, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """As one that stops answers, and any whose host has two relays by mistake: each poll ends the other's."""
    began: list[float] = []
    link = GatewayLink(open_host(site.relay_config("a")))

    async def at_once(*_: object) -> bytes:
        await trio.lowlevel.checkpoint()
        began.append(trio.current_time())
        if len(began) == 200:
            nursery.cancel_scope.cancel()
        return b'{"assignments": []}'

    async def nothing(_: object) -> None:
        pass

    monkeypatch.setattr(link._line, "post", at_once)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.poll_forever, nothing, nothing)
    await link.close()
    assert began[10] == began[0], "some that follow each other at once are what a busy gateway has"
    assert began[-1] - began[0] > 80


async def test_a_gateway_that_was_put_back_to_the_first_version_is_asked_as_that_one_takes_it(
    answering: tuple[RelayHost, FakeGateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transport.relay.gateway_link._RETRY_SECONDS", 0.01)
    host, gateway = answering

    def of_the_first_version(_path: str, body: bytes) -> tuple[int, bytes]:
        if len(gateway.taken) >= 2:
            gateway.link = None
            if set(msgspec.json.decode(body)) != {"wait_seconds"}:
                return 400, b""
        return 200, b'{"assignments": []}'

    gateway.answer = of_the_first_version
    bodies = await polls(host, gateway, 3)
    assert ["holds" in body for body in bodies] == [False, True, False]


@pytest.mark.parametrize(("said", "who"), [(NEWEST + 2, "this relay"), ("2, 2", "this relay"), ("0", "this relay")])
async def test_a_gateway_of_which_nothing_is_common_is_away_and_the_word_says_who_must_be_upgraded(
    answering: tuple[RelayHost, FakeGateway], said: object, who: str
) -> None:
    host, gateway = answering
    gateway.link = str(said)
    link = GatewayLink(host)
    with pytest.raises(GatewayAway, match=f"upgrade {who}: it speaks version"):  # and receipts stay here
        await link.bring_receipt(b"{}")
    await link.close()


@pytest.mark.parametrize(("link", "is_told"), [(str(NEWEST), True), (None, False)])
async def test_a_gateway_that_knows_no_sizes_of_disks_is_told_none(
    answering: tuple[RelayHost, FakeGateway], link: str | None, is_told: bool
) -> None:
    host, gateway = answering
    gateway.link = link
    said = GatewayLink(host)
    await said.show_permit("x")  # any call: by its answer the version is known
    await said.answer_inspection("i", Inspection(machine=Machine(kind="qmp", state="x", disks=(DISK,))))
    (told,) = gateway.paths("/v1/relay/inspection")
    assert ("size_bytes" in told["found"]["machine"]["disks"][0]) is is_told
    await said.close()


DISK = Disk(name="vda", size_bytes=1024)


@pytest.mark.parametrize(
    "said",
    [
        (200, b'{"assignments":[],"trust_version":"\xff"}'),
        (503, b'{"x":' + b"[" * 30_000),
        (500, b'{"error":{"\xff":1}}'),
    ],
    ids=["no text", "nested", "no text in a refusal"],
)
async def test_an_answer_that_no_gateway_gives_ends_no_relay(
    answering: tuple[RelayHost, FakeGateway], said: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transport.relay.gateway_link._RETRY_SECONDS", 0.01)
    host, gateway = answering
    first = iter([said])
    gateway.answer = lambda _path, _body: next(first, (200, b'{"assignments": []}'))
    with trio.fail_after(30):
        assert len(await polls(host, gateway, 2)) == 2


async def test_why_the_gateway_refuses_is_said_in_its_own_words_and_those_of_others_are_not(
    answering: tuple[RelayHost, FakeGateway],
) -> None:
    host, gateway = answering
    said = {"error": {"code": "relay_refused", "message": "the host is not\n in the inventory", "next_step": "list it"}}
    gateway.answer = lambda path, _: (403, msgspec.json.encode(said) if path == "/v1/receipts" else b"<html>no")
    link = GatewayLink(host)
    with pytest.raises(GatewayRefuses, match=r"answers 403: the host is not  in the inventory; list it$"):
        await link.bring_receipt(b"{}")
    with pytest.raises(GatewayRefuses, match=r"answers 403$"):
        await link.show_permit("x")
    gateway.answer = lambda _path, _body: (403, b"x" * 70_000)
    with pytest.raises(GatewayAway, match="too long"):
        await link.bring_receipt(b"{}")
    await link.close()


class Dripping(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A gateway, or something before it, that has always one more byte to say."""

    async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={link_version.HEADER: str(NEWEST)}, stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            await trio.sleep(1)
            yield b" "


async def test_an_answer_that_never_ends_is_none(site: Site, autojump_clock: trio.testing.MockClock) -> None:
    line = GatewayLine(open_host(site.relay_config("a")), "https://gateway.example")
    line._client = httpx.AsyncClient(transport=Dripping(), base_url=line.url)
    with trio.fail_after(600), pytest.raises(GatewayAway, match="the whole answer did not come in time"):
        await line.post("/v1/relay/poll", {})


@dataclass
class Saying(httpx.AsyncBaseTransport):
    """A gateway of which its bytes and headers alone are looked at. `asked`: the requests that it had."""

    body: bytes
    headers: list[tuple[str, str]]
    asked: list[httpx.Request] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        headers = [(link_version.HEADER, str(NEWEST)), *self.headers]
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(self.body))

    def on(self, line: GatewayLine) -> GatewayLine:
        line._client._transport, line._client._mounts = self, {}
        return line


async def test_an_answer_is_not_unpacked(site: Site) -> None:
    """Packed twice, a thousand bytes are a gigabyte, which ended the relay and all of its sessions."""
    body = zlib.compress(zlib.compress(bytes(64 << 20), 9), 9)
    assert len(body) < 2048
    said = Saying(body, [("content-encoding", "deflate, deflate")])
    line = said.on(GatewayLine(open_host(site.relay_config("a")), "https://gateway.example"))
    assert await line.post("/v1/relay/poll", {}) == body
    assert said.asked[0].headers["accept-encoding"] == "identity"
    await line.close()


async def test_a_gateways_cookies_are_not_kept(site: Site) -> None:
    """Some with each answer, each of another name: they filled the memory, and came back with each question."""
    said = Saying(b"{}", [("set-cookie", f"c{number}=x; Path=/") for number in range(100)])
    line = said.on(GatewayLine(open_host(site.relay_config("a")), "https://gateway.example"))
    for _ in range(2):
        await line.post("/v1/relay/poll", {})
    assert len(line._client.cookies) == 0
    assert "cookie" not in said.asked[1].headers
    await line.close()
