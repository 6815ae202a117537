"""What an operator on the host sees and can do by the control socket; limits that sessions keep; a drain."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from bench.peers import free_port
from gateway.cli.relay_operating import ask
from tests.transport.kinds import Kind, Seen, move
from tests.transport.relay.conftest import Pair, host_with, serving, until
from tests.transport.relay.test_carriage import VM, dial, listen
from tests.transport.site import Site
from tests.transport.stages import Stage
from transport.hypervisors.moving import How
from transport.relay.host import RelayHost, open_host

pytestmark = pytest.mark.whole
MIB = 1 << 20


async def asked(host: RelayHost, **question: str) -> dict[str, Any]:
    return await trio.to_thread.run_sync(ask, host.control_socket, question)


def limited(site: Site, bandwidth: int) -> str:
    limits = msgspec.structs.replace(site.claims().limits, bandwidth_bytes_per_second=bandwidth)
    return site.permit(vm=VM, limits=limits)


async def carried_within(pair: Pair, permit: str, path: Path, size: int) -> float:
    """Seconds that so many bytes took from end to end."""
    listener = listen(pair.site)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.carry, permit, path)
            source = await dial(path)
            destination = await listener.accept()
            began = trio.current_time()

            async def send() -> None:
                await source.send_all(bytes(size))
                await source.send_eof()

            nursery.start_soon(send)
            assert sum([len(chunk) async for chunk in destination]) == size
            seconds = trio.current_time() - began
            await destination.aclose()
            await source.aclose()
    await listener.aclose()
    return seconds


async def test_a_stream_of_any_program_keeps_to_its_permit(pair: Pair, short_path: Path) -> None:
    seconds = await carried_within(pair, limited(pair.site, 8 * MIB), short_path / "in.sock", 8 * MIB)
    assert 0.85 < seconds < 3


async def test_a_host_that_gives_less_than_the_permit_has_the_last_word(site: Site, short_path: Path) -> None:
    source = host_with(site, "a", {"bandwidth_bytes_per_second": 8 * MIB})
    async with serving(open_host(site.relay_config("b"))) as (destination, address):
        pair = Pair(site, source, destination, address)
        seconds = await carried_within(pair, limited(site, 80 * MIB), short_path / "in.sock", 8 * MIB)
    assert 0.85 < seconds < 3


async def test_two_sessions_get_alike_of_what_the_host_gives(site: Site, short_path: Path) -> None:
    """One has a channel, the other four."""
    channels = {VM: 1, "22222222-2222-4333-8444-555555555555": 4}
    arrived = dict.fromkeys(channels, 0)
    source = host_with(site, "a", {"bandwidth_bytes_per_second": 8 * MIB})
    async with serving(open_host(site.relay_config("b"))) as (destination, address):
        pair = Pair(site, source, destination, address)

        async def pour(path: Path) -> None:
            stream = await dial(path)
            with suppress(trio.BrokenResourceError):
                async with stream:
                    while True:
                        await stream.send_all(bytes(64 * 1024))

        async def count(vm: str, stream: trio.SocketStream) -> None:
            async with stream:
                async for data in stream:
                    arrived[vm] += len(data)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for vm, number in channels.items():
                    listener, path = listen(site, vm), short_path / f"{number}.sock"
                    nursery.start_soon(trio.serve_listeners, partial(count, vm), [listener])
                    nursery.start_soon(pair.carry, site.permit(vm=vm), path)
                    for _ in range(number):
                        nursery.start_soon(pour, path)
                await until(lambda: all(arrived.values()), 30)
                before = dict(arrived)
                await until(lambda: sum(arrived.values()) - sum(before.values()) > 16 * MIB, 30)
                shares = [arrived[vm] - before[vm] for vm in channels]
                nursery.cancel_scope.cancel()
    assert shares[0] == pytest.approx(shares[1], rel=0.25), shares


async def test_status_tells_of_a_session_at_both_ends_and_of_none_afterwards(pair: Pair, short_path: Path) -> None:
    listener, path = listen(pair.site), short_path / "in.sock"
    permit = pair.site.permit(vm=VM)
    with trio.fail_after(30):
        async with serving(pair.source), trio.open_nursery() as nursery:
            nursery.start_soon(pair.carry, permit, path)
            source = await dial(path)
            destination = await listener.accept()
            await source.send_all(b"x" * 1000)
            assert await destination.receive_some(2000) == b"x" * 1000
            for host, role, peer, way in (
                (pair.source, "source", "b", "sent_bytes"),
                (pair.destination, "destination", "a", "received_bytes"),
            ):
                (session,) = (await asked(host, ask="status"))["sessions"]
                assert session["vm"] == VM
                assert session["role"] == role
                assert session["peer"] == pair.site.spiffe(peer)
                assert session["channels"][0][way] == 1000
                assert session["rate_bytes_per_second"] > 0
            await source.aclose()
            await destination.aclose()
            await until(lambda: bool(pair.news) and pair.news[-1].state == "completed")
            assert (await asked(pair.source, ask="status"))["sessions"] == []
            text = (await asked(pair.source, ask="metrics"))["text"]
            assert 'sealane_relay_ended_total{role="source",outcome="completed"} 1\n' in text
            assert 'sealane_relay_carried_bytes_total{role="source",direction="sent"} 1000\n' in text
            assert VM not in text
    await listener.aclose()


async def test_only_the_owner_reaches_the_control_socket_and_rubbish_is_answered_with_words(pair: Pair) -> None:
    path = pair.destination.control_socket
    assert path.stat().st_mode & 0o777 == 0o600
    for rubbish in (b"{}\n", b"x" * 5000, b'{"ask":"status","more":1}\n', b"\xff\n", b'{"ask":"\xff"}\n', b""):
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            await stream.send_all(rubbish)
            await stream.send_eof()
            with trio.fail_after(5):
                answer = b"".join([chunk async for chunk in stream])
        assert json.loads(answer) == {"error": "this is no question of this version"}
    assert not (await asked(pair.destination, ask="cancel", migration_id="nobody"))["cancelled"]


async def test_others_of_the_host_do_not_reach_it(pair: Pair) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    knock = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    knocking = ["/usr/bin/python3", "-c", knock, str(pair.destination.control_socket)]
    done = await trio.run_process(knocking, capture_stderr=True, check=False, user=65534, group=65534, extra_groups=())
    assert b"PermissionError" in done.stderr


async def test_metrics_are_served_on_loopback(site: Site) -> None:
    config = site.relay_config("b")
    port = free_port()
    metrics = msgspec.structs.replace(config.metrics, listen=f"127.9.7.5:{port}")
    config = msgspec.structs.replace(config, metrics=metrics)
    async with serving(open_host(config)):
        answers = []
        for request in (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"POST /cancel HTTP/1.1\r\n\r\n"):
            async with await trio.open_tcp_stream("127.9.7.5", port) as stream:
                await stream.send_all(request)
                with trio.fail_after(5):
                    answers.append(b"".join([chunk async for chunk in stream]))
    assert answers[0].startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
    assert b'\nsealane_relay_sessions{role="source"} 0\n' in answers[0]
    assert answers[1].startswith(b"HTTP/1.1 404")


async def test_a_drained_relay_refuses_what_is_new_and_ends_after_what_was_under_way(
    pair: Pair, short_path: Path
) -> None:
    listener, path = listen(pair.site), short_path / "in.sock"
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.carry, pair.site.permit(vm=VM), path)
            source = await dial(path)
            destination = await listener.accept()
            assert (await asked(pair.destination, ask="drain")) == {"draining": True}
            refused = await pair.carry(pair.site.permit(), short_path / "other.sock")
            assert refused.state == "failed"
            assert refused.message == "offer refused (busy): 'this relay is about to be restarted: try again'"
            await source.send_all(b"still carried")
            assert await destination.receive_some(100) == b"still carried"
            assert (await asked(pair.destination, ask="status"))["draining"] is True
            await source.aclose()
            await destination.aclose()
            while await is_answering(pair.destination):
                await trio.sleep(0.02)
    await listener.aclose()
    assert pair.news[-1].state == "completed"


async def test_a_source_that_is_told_busy_offers_again_until_there_is_a_place(site: Site, short_path: Path) -> None:
    other = "5ea1a4e0-0000-4000-8000-0000000000ad"
    source = host_with(site, "a", {"resume_seconds": 30.0})
    async with serving(host_with(site, "b", {"max_sessions": 1})) as (destination, address):
        pair, second = (Pair(site, source, destination, address) for _ in range(2))
        listeners = [listen(site), listen(site, other)]
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.carry, site.permit(vm=VM), short_path / "first.sock")
                first = await dial(short_path / "first.sock")
                at_end = await listeners[0].accept()
                nursery.start_soon(second.carry, site.permit(vm=other), short_path / "second.sock")
                await until(lambda: len(source.board.entries) == 2)
                await trio.testing.wait_all_tasks_blocked(0.2)
                assert not second.news, "nothing is said to have begun"
                for stream in (first, at_end):
                    await stream.aclose()
                late = await dial(short_path / "second.sock")
                other_end = await listeners[1].accept()
                for stream in (late, other_end):
                    await stream.aclose()
        for listener in listeners:
            await listener.aclose()
    assert [each.news[-1].state for each in (pair, second)] == ["completed", "completed"]


def _moved(seen: Seen) -> str:
    return seen.news[-1].state


async def is_answering(host: RelayHost) -> bool:
    try:
        with trio.fail_after(5):
            async with await trio.open_unix_socket(str(host.control_socket)) as stream:
                await stream.send_all(b'{"ask":"status"}\n')
                return bool(await stream.receive_some(10))
    except (OSError, trio.BrokenResourceError):
        return False


SLOW = Kind("slow", How(), lambda seen: "given up" if seen.news[-1].state == "cancelled" else "", 2 * MIB, moves=False)
SWITCHED = Kind("switched", How(post_copy_after_seconds=0, post_copy_bytes_per_second=8 * MIB), _moved, 8 * MIB, 32, 8)


async def commanded(host: RelayHost, *words: str) -> str:
    """What `sealane relay …` says, run as an operator would; it must end well."""
    command = [sys.executable, "-c", "from gateway.cli.main import run; run()", "relay", *words]
    environment = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1"}
    ran = await trio.run_process(
        [*command, "--socket", str(host.control_socket)], capture_stdout=True, capture_stderr=True, env=environment
    )
    return ran.stdout.decode()


@pytest.mark.real
async def test_an_operator_sees_a_move_and_cancels_it_and_the_guest_goes_on_where_it_is(short_path: Path) -> None:
    async def cancel(here: Stage) -> None:
        async with serving(here.source):
            await until(lambda: any(news.progress for news in here.news))
            with trio.fail_after(30):  # the first word of QEMU may know no sizes yet
                while True:
                    (session,) = (await asked(here.source, ask="status"))["sessions"]
                    if session["total_bytes"] >= 32 * MIB and session["remaining_bytes"] > 0:
                        break
                    await trio.sleep(0.05)
            head, row = (await commanded(here.source, "status")).splitlines()
            names = (
                "migration",
                "VM",
                "to or from",
                "state",
                "rate",
                "carried",
                "left",
                "pass",
                "dirties",
                "time left",
            )
            assert [head.index(name) for name in names] == sorted(head.index(name) for name in names)
            assert session["migration_id"] in row
            assert session["vm"] in row
            size = r"[\d.]+ [KM]iB"
            assert re.search(rf"→ b +running +{size}/s +{size} +{size} +1 +0 B/s +\d+ s +1$", row), row
            said = await commanded(here.source, "cancel", session["migration_id"])
            assert said.startswith(f"asked for the end of {session['migration_id']}")
            await trio.sleep_forever()

    assert await move(SLOW, short_path, meddle=cancel)


@pytest.mark.real
async def test_a_guest_in_post_copy_is_not_given_up_by_a_request_to_cancel(short_path: Path) -> None:
    async def cancel(here: Stage) -> None:
        await until(lambda: any(news.state == "handing_over" for news in here.news), 30)
        (entry,) = here.source.board.entries
        assert here.source.board.cancel(entry.claims.migration_id)
        await trio.sleep_forever()

    assert "completed" in await move(SWITCHED, short_path, meddle=cancel)
