"""Lanes of plain TLS: where the permit says so and nowhere else, and as good as sealed ones against the network."""

from __future__ import annotations

import json
import select
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import pytest
import trio

from certs import layout
from certs.tls import local_leaf_sha256
from policy.permit import Requirements
from tests.transport.relay.conftest import Pair, host_with, serving, until
from tests.transport.relay.cutter import network_to
from tests.transport.relay.hostile import Conversation
from tests.transport.relay.key_updates import KeyUpdater
from tests.transport.site import Site
from transport.errors import ConnectionBroken, OfferRefused, RefusalCode
from transport.relay import tls_lane
from transport.relay.config import split_address
from transport.relay.config_sections import NetworkSection
from transport.relay.host import RelayHost, now, open_host
from transport.relay.inlets import Inlet, SourceLanes
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source
from transport.relay.tls_lane import LaneEnds, TlsLane, as_client, as_server
from transport.wire.keys import ConnectionKeys
from transport.wire.preface import make_preface

pytestmark = pytest.mark.whole
VM = "11111111-2222-4333-8444-555555555555"
STREAM = bytes(range(256)) * 20_000


async def _sink(path: Path, heard: bytearray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen()
    accepted, _ = await listening.accept()
    while data := await accepted.recv(1 << 16):
        heard.extend(data)
    await accepted.send(b"thanks")
    accepted.close()
    listening.close()


async def _carried(source: RelayHost, address: str, site: Site, permit: str, cut: object = None) -> tuple[News, bytes]:
    """What became of one stream, and what arrived of it."""
    heard = bytearray()
    path = site.folder / "in.sock"
    news: list[News] = []

    async def tell(each: News) -> None:
        news.append(each)

    async def dial() -> None:
        await until(lambda: bool(news))
        stream = await trio.open_unix_socket(path)
        await stream.send_all(STREAM)
        await stream.send_eof()
        assert await stream.receive_some(100) == b"thanks"
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sink, site.folder / "vm" / VM / "memory.sock", heard)
        nursery.start_soon(dial)
        if callable(cut):
            nursery.start_soon(cut)
        await until((site.folder / "vm" / VM / "memory.sock").exists)
        with trio.fail_after(30):
            last = await carry_as_source(source, MigrationOrder(permit, address), tell, trio.Event(), path)
        nursery.cancel_scope.cancel()
    return last, bytes(heard)


def _receipt(site: Site, name: str) -> dict[str, object]:
    (receipt,) = (site.folder / f"relay-{name}" / "receipts").glob("*.json")
    body: dict[str, object] = json.loads(json.loads(receipt.read_bytes())["receipt"]["body"])
    return body


async def test_a_stream_is_carried_by_tls_where_its_permit_says_so(pair: Pair) -> None:
    permit = pair.site.permit(vm=VM, seal="tls")
    last, heard = await _carried(pair.source, pair.address, pair.site, permit)
    assert (last.state, heard) == ("completed", STREAM)
    await until(lambda: bool(list((pair.site.folder / "relay-b" / "receipts").glob("*.json"))))
    assert {_receipt(pair.site, name)["lane_cipher"] for name in "ab"} == {"TLS_AES_256_GCM_SHA384"}


async def test_a_stream_in_tls_survives_cuts(site: Site) -> None:
    limits = {"resume_seconds": 20.0}
    async with (
        serving(host_with(site, "b", limits)) as (_, address),
        network_to(split_address(address, "b")) as between,
    ):
        cuts = 0

        async def cut() -> None:
            nonlocal cuts
            for _ in range(5):
                enough = between.forwarded + 500_000
                await until(lambda enough=enough: between.forwarded >= enough, 20)  # type: ignore[misc]
                cuts += bool(between.cut("lane"))

        source = host_with(site, "a", limits)
        last, heard = await _carried(source, between.address, site, site.permit(vm=VM, seal="tls"), cut)
    assert (last.state, heard) == ("completed", STREAM)
    assert cuts >= 2


@pytest.mark.parametrize("renewed", ["a", "b"])
async def test_a_channel_that_opens_after_a_certificate_was_renewed_costs_no_connection(
    site: Site, monkeypatch: pytest.MonkeyPatch, renewed: str
) -> None:
    """Its session began with the former one; where nothing is resumed it ended at that."""
    accept = SourceLanes.accept_forever

    async def renew_and_accept(lanes: SourceLanes, inlet: Inlet) -> None:
        shutil.rmtree(site.certs / "hosts" / renewed)
        layout.issue_host(site.certs, renewed, now())
        hosts[renewed].identity.reload(now())
        await accept(lanes, inlet)

    monkeypatch.setattr(SourceLanes, "accept_forever", renew_and_accept)
    hosts = {name: host_with(site, name, {"resume_seconds": 0.0}) for name in "ab"}
    async with serving(hosts["b"]) as (_, address):
        last, heard = await _carried(hosts["a"], address, site, site.permit(vm=VM, seal="tls"))
    assert (last.state, heard) == ("completed", STREAM)


async def test_no_key_of_a_tls_lane_seals_more_than_it_may(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane counts as lost then, and the session goes on over another: nothing but a moment is lost."""
    monkeypatch.setattr(tls_lane, "_MOST_RECORDS", 100)  # 1.6 MB
    limits = {"resume_seconds": 20.0}
    async with serving(host_with(site, "b", limits)) as (_, address):
        last, heard = await _carried(host_with(site, "a", limits), address, site, site.permit(vm=VM, seal="tls"))
    assert (last.state, heard) == ("completed", STREAM)
    resumptions = _receipt(site, "a")["resumptions"]
    assert isinstance(resumptions, int)
    assert resumptions >= 2


@pytest.mark.parametrize(("seals", "seal"), [(("sealane",), "tls"), (("tls",), "sealane")])
def test_a_relay_refuses_lanes_that_its_configuration_does_not_allow(
    site: Site, seals: tuple[Literal["sealane", "tls"], ...], seal: str
) -> None:
    config = site.relay_config("b")
    host = open_host(msgspec.structs.replace(config, network=msgspec.structs.replace(config.network, seals=seals)))
    with pytest.raises(OfferRefused, match="sealed by") as refused:
        host.permits.verify(site.permit(seal=seal), source=site.spiffe("a"), destination=site.spiffe("b"))
    assert refused.value.code is RefusalCode.PERMIT_REQUIREMENTS


def test_lanes_of_tls_are_for_hosts_that_were_told_so() -> None:
    assert NetworkSection().seals == ("sealane",)


@pytest.mark.parametrize("seal", ["sealane", "tls"])
async def test_both_ends_certify_the_same_digests_of_the_content(pair: Pair, seal: str) -> None:
    wanted = Requirements(content_digest=True, stream_inspection=False, vm_binding=False)
    last, _ = await _carried(
        pair.source, pair.address, pair.site, pair.site.permit(vm=VM, requirements=wanted, seal=seal)
    )
    assert last.state == "completed"
    await until(lambda: bool(list((pair.site.folder / "relay-b" / "receipts").glob("*.json"))))
    from blake3 import blake3  # noqa: PLC0415 - optional for who does not digest

    expected = {
        "0/source-to-destination": blake3(STREAM).hexdigest(),
        "0/destination-to-source": blake3(b"thanks").hexdigest(),
    }
    assert [_receipt(pair.site, name)["content_digests"] for name in "ab"] == [expected, expected]


@pytest.mark.parametrize(
    ("channel", "wrong", "cause"),
    [
        (0, "", ""),
        (1, "", "of another channel"),
        (0, "source", "another certificate"),
        (0, "destination", "another certificate"),
    ],
)
async def test_a_lane_is_of_its_channel_and_of_the_hosts_of_its_control_connection(
    site: Site, channel: int, wrong: str, cause: str
) -> None:
    """Whoever is on the way can put one channel's TLS after another's preface, and a host may have two certificates."""
    a, b = (open_host(site.relay_config(name)) for name in "ab")
    leaves = {name: local_leaf_sha256(host.credentials) for name, host in (("source", a), ("destination", b))}
    keys, ours, theirs = ConnectionKeys(bytes(48)), *socket.socketpair()
    leaves |= {wrong: bytes(32)} if wrong else {}
    causes: list[str] = []

    async def end(begin: Callable[[], Awaitable[TlsLane]]) -> None:
        try:
            (await begin()).close()
        except ConnectionBroken as broken:
            causes.append(str(broken))

    for each in (ours, theirs):
        each.setblocking(False)
    async with trio.open_nursery() as nursery:
        at_source = LaneEnds(a.credentials, leaves["destination"], keys, now(), 5)
        at_destination = LaneEnds(b.credentials, leaves["source"], keys, now(), 5)
        nursery.start_soon(end, partial(as_client, ours, 0, at_source))
        nursery.start_soon(end, partial(as_server, theirs, b.identity.context, channel, at_destination))
    assert any(cause in each for each in causes) if cause else not causes
    assert ours.fileno() == theirs.fileno() == -1


@asynccontextmanager
async def updating(site: Site) -> AsyncIterator[tuple[TlsLane, KeyUpdater, trio.SocketStream]]:
    """A lane of b's, and a peer that changes its keys as often as a test likes, by the stream."""
    a, b = (open_host(site.relay_config(name)) for name in "ab")
    keys, ours, theirs = ConnectionKeys(bytes(48)), *socket.socketpair()
    updater, lanes = KeyUpdater(a.credentials), list[TlsLane]()
    for each in (ours, theirs):
        each.setblocking(False)
    ends = LaneEnds(b.credentials, local_leaf_sha256(a.credentials), keys, now(), 5)

    async def accept() -> None:
        lanes.append(await as_server(theirs, b.identity.context, 0, ends))

    async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            conversation = Conversation(stream, updater.tls)
            await conversation.shake_hands(a.credentials)
            await conversation.send_bytes(make_preface(keys, 0))
        with lanes[0] as lane:
            yield lane, updater, stream


async def test_a_peer_that_changes_its_keys_again_and_again_gets_no_more_turns_than_others(site: Site) -> None:
    """One read went on for as long as such records came, and nothing else of the relay did: no session, no timer."""
    async with updating(site) as (lane, updater, stream):
        await stream.send_all(updater.updates(count := 500, records_said=1))
        for _ in range(count):
            assert select.select([lane], [], [], 0)[0], "there is more, after each turn"
            with pytest.raises(BlockingIOError):
                lane.recv_into(memoryview(bytearray(1)))
        assert not select.select([lane], [], [], 0)[0]


async def test_a_peer_that_asks_for_new_keys_and_takes_none_is_not_waited_for(site: Site) -> None:
    """There was always something to read from it, and nothing to be done about it: that took a whole core."""
    async with updating(site) as (lane, updater, stream):
        lane._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        await stream.send_all(updater.updates(500, records_said=1, asks_back=True))
        with pytest.raises(ConnectionResetError, match="asks for keys"):
            for _ in range(500):
                with suppress(BlockingIOError):
                    lane.recv_into(memoryview(bytearray(1)))
