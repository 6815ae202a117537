"""Receivers that lie, flood, hang up or speak something else."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from audit.siem.https import MAX_ANSWER_BYTES, HttpsPeer
from audit.siem.peer import Trust
from audit.siem.sink import SinkAway
from tests.audit.siem.certificates import TestAuthority
from tests.audit.siem.fake_https import SERVER_NAME, Asked, FakeHttps, Said


class Site:
    def __init__(self, folder: Path) -> None:
        authority = TestAuthority(folder)
        self.said = Said()
        self.server = FakeHttps(authority.issue(SERVER_NAME, addresses=("127.0.0.1",)), lambda _asked: self.said)
        self.server.start()
        self.peer = HttpsPeer(f"{self.server.url}/base/", Trust(trust_bundle=authority.bundle))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.server.kill()


def asked(site: Site) -> Asked:
    return site.server.asked[-1]


async def test_a_request_arrives_whole_and_the_connection_is_kept(site: Site) -> None:
    for number in range(3):
        site.said = Said(201, b"made")
        answer = await site.peer.post({"x-number": str(number)}, b"a" * number, "/path?a=b")
        assert (answer.status, answer.body) == (201, b"made")
        assert (asked(site).path, asked(site).body) == ("/base/path?a=b", b"a" * number)
        assert asked(site).headers["accept-encoding"] == "identity"
        assert asked(site).headers["host"] == f"127.0.0.1:{site.server.port}"
    await site.peer.close()


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"", "closed the connection"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 100_000, "does not speak HTTP"),
        (b"HTTP/1.1 999999 OK\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx", "does not speak HTTP"),
    ],
)
async def test_an_answer_that_is_none_is_away_and_the_next_one_counts(site: Site, raw: bytes, cause: str) -> None:
    site.said = Said(raw=raw)
    with pytest.raises(SinkAway, match=cause) as away:
        await site.peer.post({}, b"{}")
    assert str(away.value).isprintable()
    site.said = Said(200)
    assert (await site.peer.post({}, b"{}")).status == 200
    await site.peer.close()


async def test_an_endless_answer_is_given_up_within_bounded_memory(site: Site) -> None:
    site.said = Said(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n" + b"x" * 20_000_000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[1]
        with pytest.raises(SinkAway, match="over the limit"):
            await site.peer.post({}, b"{}")
        assert tracemalloc.get_traced_memory()[1] - before < 8 * MAX_ANSWER_BYTES
    finally:
        tracemalloc.stop()


async def test_a_redirect_is_an_answer_and_is_not_followed(site: Site) -> None:
    site.said = Said(307, b"", {"location": "http://127.0.0.1:9/steal"})
    assert (await site.peer.post({"authorization": "Splunk secret"}, b"{}")).status == 307
    assert len(site.server.asked) == 1
    await site.peer.close()


async def test_an_interim_answer_is_none(site: Site) -> None:
    site.said = Said(raw=b"HTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    assert (await site.peer.post({}, b"{}")).status == 204
    await site.peer.close()


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("999999999", 3600.0), ("-1", None), ("Wed, 1 Jan", None)])
async def test_what_it_asks_us_to_wait_is_bounded(site: Site, header: str, seconds: float | None) -> None:
    site.said = Said(503, b"", {"retry-after": header})
    assert (await site.peer.post({}, b"{}")).retry_after_seconds == seconds
    await site.peer.close()


async def test_a_hanging_receiver_costs_the_callers_deadline_and_leaves_nothing_open(site: Site) -> None:
    site.server.freeze()
    with trio.move_on_after(0.1) as scope:
        await site.peer.post({}, b"{}")
    assert scope.cancelled_caught
    site.server.thaw()
    assert (await site.peer.post({}, b"{}")).status == 200
    await site.peer.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://siem.example/",
        "https://",
        "siem.example",
        "https://user:pass@siem.example/",
        "https://siem.example/#x",
        "https://\u00e9.example/",
        "https://siem.example/a b",
    ],
)
def test_what_is_not_https_or_holds_a_password_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"https URL|neither user"):
        HttpsPeer(url, Trust())


async def test_a_header_cannot_be_forged_by_what_a_secret_file_holds(site: Site) -> None:
    with pytest.raises(Exception, match=r"[Ii]llegal header"):
        await site.peer.post({"authorization": "x\r\nx-evil: 1"}, b"{}")


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "no-such-host.invalid"])
async def test_a_host_that_cannot_be_is_away(host: str) -> None:
    with pytest.raises(SinkAway) as away:
        await HttpsPeer(f"https://{host}/", Trust()).post({}, b"{}")
    assert str(away.value).isprintable()
