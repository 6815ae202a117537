"""A JSON document over HTTPS as a source of the inventory, from a real server."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from policy.errors import InventoryRefused, InventoryUnavailable
from policy.sources.document import DocumentSource
from policy.sources.https import make_client, require_https
from policy.sources.keeper import Sources
from policy.sources.reading import Pace
from tests.policy.identity.samba_ad import TestAuthority
from tests.policy.sources.https_server import Answer, HttpsServer, Request, https_server

UUID = "6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a11"
VM = {"uuid": UUID, "name": "ledger", "zone": "production", "classification": "restricted", "tags": ["pci"]}
HOST = {
    "name": "fra1",
    "spiffe_id": "spiffe://bank.test/host/fra1",
    "site": "fra",
    "zone": "production",
    "jurisdiction": "DE",
    "address": "10.7.0.11:7443",
}
PACE = Pace(refresh_seconds=60, deadline_seconds=5, max_age_seconds=600)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsServer]:
    with https_server(tmp_path_factory.mktemp("https")) as running:
        yield running


@pytest.fixture
def server(shared: HttpsServer) -> HttpsServer:
    shared.requests.clear()
    shared.answer = lambda _request: document([VM])
    return shared


def document(vms: list[Any], **members: Any) -> Answer:
    return Answer(json.dumps({"vms": vms, **members}).encode(), headers={"etag": '"one"'})


@asynccontextmanager
async def source(server: HttpsServer, token: str | None = None, **changes: Any) -> AsyncIterator[DocumentSource]:
    async with make_client(changes.pop("trust_bundle", server.trust_bundle), token) as client:
        yield DocumentSource("cmdb", f"{server.url}/inventory", client, PACE, **changes)


async def test_what_it_tells_is_known_with_its_name_and_age(server: HttpsServer) -> None:
    now = [100.0]
    async with source(server, "Bearer s3cret") as cmdb:
        sources = Sources([cmdb], clock=lambda: now[0])
        news = await sources.refresh("cmdb")
    now[0] += 7.5
    found = sources.inventory.vm("ledger")
    assert found is not None
    assert (found.zone, found.classification, found.tags) == ("production", "restricted", frozenset({"pci"}))
    for fact in (found.provenance.zone, found.provenance.classification, found.provenance.tags):
        assert (fact.source, fact.age_seconds) == ("cmdb", 7)
    assert news is not None
    assert (news.vms, news.failure) == (1, None)
    (asked,) = server.requests
    assert asked.headers["authorization"] == "Bearer s3cret"
    assert "if-none-match" not in asked.headers


async def test_no_change_costs_no_document_and_makes_the_facts_young_again(server: HttpsServer) -> None:
    now = [100.0]
    async with source(server) as cmdb:
        sources = Sources([cmdb], clock=lambda: now[0])
        await sources.refresh("cmdb")
        now[0] += 60
        server.answer = lambda request: Answer(status=304 if request.headers["if-none-match"] == '"one"' else 500)
        assert await sources.refresh("cmdb") is None
        found = sources.inventory.vm(UUID)
    assert found is not None
    assert found.provenance.zone.age_seconds == 0


async def test_a_server_without_etags_is_read_whole_each_time(server: HttpsServer) -> None:
    server.answer = lambda _request: Answer(json.dumps({"vms": [VM]}).encode())
    async with source(server) as cmdb:
        first = await cmdb.read(None)
        second = await cmdb.read(first)
    assert second.told is first.told  # the same content is not parsed again
    assert "if-none-match" not in server.requests[1].headers


async def test_a_304_that_nobody_asked_for_is_no_answer(server: HttpsServer) -> None:
    server.answer = lambda _request: Answer(status=304)
    async with source(server) as cmdb:
        with pytest.raises(InventoryUnavailable, match="304"):
            await cmdb.read(None)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{}]", "not strict JSON"),
        (b'{"vms": [], "vms": []}', "duplicate JSON members"),
        (b'{"vms": [], "when": NaN}', "NaN"),
        (b"[]", "not a JSON object"),
        (b'{"vms": [], "colour": 1}', "colour: is no key"),
        (json.dumps({"vms": [{**VM, "zone": 7}]}).encode(), "zone: is 7; allowed is 1 to 63 ASCII letters"),
        (json.dumps({"vms": [{**VM, "zone": "prоduction"}]}).encode(), "VM zone must be"),  # noqa: RUF001 - Cyrillic
        (json.dumps({"vms": [VM, VM]}).encode(), "stands twice"),
        (json.dumps({"vms": [VM], "hosts": [HOST]}).encode(), "names hosts, which it may not"),
        (json.dumps({"vms": [{**VM, "zone": None}]}).encode(), "zone: is null; allowed is"),
        (b'{"vms": ' + b"[" * 100_000, "not strict JSON"),
    ],
)
async def test_a_document_that_is_not_strict_is_refused_whole(server: HttpsServer, body: bytes, words: str) -> None:
    server.answer = lambda _request: Answer(body)
    async with source(server) as cmdb:
        with pytest.raises(InventoryRefused, match=words):
            await cmdb.read(None)


async def test_a_source_that_may_name_hosts_names_them(server: HttpsServer) -> None:
    server.answer = lambda _request: document([{**VM, "host": "fra1"}], hosts=[HOST])
    async with source(server, tells_hosts=True) as cmdb:
        sources = Sources([cmdb])
        await sources.refresh("cmdb")
    host = sources.inventory.host("fra1")
    assert host is not None
    assert host.provenance.source == "cmdb"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(status=401), "refuses our token"),
        (Answer(status=500), "status 500"),
        (Answer(status=302, headers={"location": "https://127.0.0.1:1/"}), "redirect"),
        (Answer(b" " * 3000), "more than 2048 bytes"),
        (Answer(gzip.compress(b"{}"), headers={"content-encoding": "gzip"}), "compressed"),
    ],
)
async def test_an_answer_that_is_none(server: HttpsServer, answer: Answer, words: str) -> None:
    server.answer = lambda _request: answer
    async with source(server, max_bytes=2048) as cmdb:
        with pytest.raises(InventoryUnavailable, match=words):
            await cmdb.read(None)
    assert len(server.requests) == 1  # a redirect is not followed


async def test_a_server_that_is_not_of_the_trust_bundle_sees_no_token(server: HttpsServer, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(TestAuthority("another CA").pem)
    async with source(server, "Bearer s3cret", trust_bundle=str(other)) as cmdb:
        with pytest.raises(InventoryUnavailable, match="certificate"):
            await cmdb.read(None)
    assert server.requests == []


async def test_a_server_that_hangs_is_given_up_at_the_deadline(server: HttpsServer) -> None:
    release = threading.Event()

    def hang(_request: Request) -> Answer:
        release.wait(20)
        return Answer(b"{}")

    server.answer = hang
    try:
        async with make_client(server.trust_bundle, None) as client:
            slow = Pace(deadline_seconds=0.3)
            sources = Sources([DocumentSource("cmdb", server.url, client, slow)])
            with trio.fail_after(5):
                with pytest.raises(InventoryUnavailable, match=r"no answer within 0\.3 s"):
                    await sources.refresh("cmdb")
    finally:
        release.set()
    assert "has not answered yet" in sources.inventory.why_unknown(UUID)
    assert sources.conditions()[0].failure == "no answer within 0.3 s"


@pytest.mark.parametrize(
    "url", ["http://cmdb.test/", "https://user@cmdb.test/", "https:///x", "file:///etc/passwd", "x"]
)
def test_only_https_is_asked(url: str) -> None:
    with pytest.raises(ValueError, match="https"):
        require_https(url)
