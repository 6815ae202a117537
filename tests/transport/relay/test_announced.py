"""Tokens that people announce: for their minutes, for the VM and destination that they named, and for no other."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs

from transport.errors import LocalBroken
from transport.relay.announced import Announced, Announcement, listen_for_announcements
from transport.relay.wish import NotAdmitted, Wish

VM = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"
WISH = Wish(VM, "web", "b", ("libvirt", "memory"), 0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def find(name: str) -> str | None:
    return VM if name == "web" else None


def announced(token_file: str = "") -> tuple[Announced, Clock]:
    clock = Clock()
    return Announced(token_file, find, clock), clock


def test_a_wish_gets_the_token_and_reason_of_whoever_announced_it() -> None:
    desk, _ = announced()
    desk.keep(Announcement(VM, "t1", 15, None, "CHG-1"), 1000)
    assert (desk.named(WISH).token, desk.named(WISH).reason) == ("t1", "CHG-1")


def test_a_token_is_used_for_its_owner_and_for_root_and_for_no_other_caller() -> None:
    desk, _ = announced()
    desk.keep(Announcement(VM, "t1", 15), 1000)
    for uid, token in ((0, "t1"), (1000, "t1"), (1001, None)):
        assert desk.named(Wish(VM, "web", "b", ("libvirt", "memory"), uid)).token == token


@pytest.mark.parametrize("other", [Announcement(OTHER, "t", 15), Announcement(VM, "t", 15, "c")])
def test_what_was_announced_for_another_vm_or_destination_is_not_used(other: Announcement) -> None:
    desk, _ = announced()
    desk.keep(other, 1000)
    assert desk.named(WISH).token is None


def test_an_announcement_ends_with_its_minutes_and_the_newest_counts() -> None:
    desk, clock = announced()
    desk.keep(Announcement(VM, "old", 30), 1000)
    desk.keep(Announcement(VM, "new", 1), 1001)
    assert desk.named(WISH).token == "new"
    clock.now = 61
    assert desk.named(WISH).token == "old"
    clock.now = 1801
    assert desk.named(WISH).token is None


def test_one_announces_as_often_as_one_likes_and_holds_one_place() -> None:
    desk, _ = announced()
    for number in range(3000):
        desk.keep(Announcement(VM, f"t{number}", 15), 1000)
    assert desk.named(WISH).token == "t2999"


def test_nobodys_announcement_is_thrown_out_for_anothers() -> None:
    desk, _ = announced()
    desk.keep(Announcement(VM, "first", 15), 1000)
    with pytest.raises(LocalBroken, match="too many"):
        for number in range(3000):
            desk.keep(Announcement(f"vm{number}", "t", 15), 1001)
    assert desk.named(WISH).token == "first"


def test_nor_does_one_user_leave_no_room_for_others() -> None:
    desk, _ = announced()
    with pytest.raises(LocalBroken, match="too many of yours"):
        for number in range(3000):
            desk.keep(Announcement(f"vm{number}", "t", 15), 1001)
    desk.keep(Announcement(VM, "t1", 15), 1000)
    assert desk.named(WISH).token == "t1"
    for number in range(700):
        desk.keep(Announcement(f"vm{number}", "t", 15), 0)  # root announces for everybody


def test_an_orchestrators_token_file_is_read_each_time_and_must_be_the_relays_alone(tmp_path: Path) -> None:
    file = tmp_path / "token"
    desk, _ = announced(str(file))
    with pytest.raises(NotAdmitted, match="cannot be read"):
        desk.named(WISH)
    file.write_text("t1\n")
    file.chmod(0o644)
    with pytest.raises(NotAdmitted, match="chmod 600"):
        desk.named(WISH)
    file.chmod(0o600)
    assert desk.named(WISH).token == "t1"
    file.write_text("t2\n")
    assert desk.named(WISH).token == "t2"
    desk.keep(Announcement(VM, "person", 15), 1000)
    assert desk.named(WISH).token == "person"


async def say(path: Path, line: bytes) -> dict[str, Any]:
    stream = await trio.open_unix_socket(str(path))
    async with stream:
        await stream.send_all(line)
        return json.loads(await stream.receive_some(4096))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("line", "uids", "answer"),
    [
        (b'{"vm":"web","token":"t","minutes":5}\n', frozenset({0}), "announced"),
        (b'{"vm":"web","token":"t","minutes":5}\n', frozenset({12345}), "error"),
        (b'{"vm":"nobody","token":"t","minutes":5}\n', frozenset({0}), "no VM named"),
        (b'{"vm":"web","token":"t","minutes":5,"more":1}\n', frozenset({0}), "error"),
        (b'{"vm":"web","token":"t","minutes":100000}\n', frozenset({0}), "error"),
        (b"\xff\xfe\n", frozenset({0}), "error"),
        (b'{"vm":"\xff","token":"t","minutes":5}\n', frozenset({0}), "error"),
        (b"x" * 40_000 + b"\n", frozenset({0}), "error"),
    ],
)
async def test_the_socket_takes_announcements_of_the_configured_users(
    tmp_path: Path, line: bytes, uids: frozenset[int], answer: str
) -> None:
    desk, _ = announced()
    path = tmp_path / "s"
    mine = frozenset({os.geteuid()}) if 0 in uids else uids
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.serve, listen_for_announcements(path), mine)
        assert answer in str(await say(path, line))
        nursery.cancel_scope.cancel()
    assert (desk.named(WISH).token is not None) is (answer == "announced")


async def test_whoever_may_not_announce_fills_no_log(tmp_path: Path) -> None:
    desk, _ = announced()
    path = tmp_path / "s"
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.serve, listen_for_announcements(path), frozenset({12345}))
            for _ in range(30):
                assert "may not announce" in str(await say(path, b"{}\n"))
            nursery.cancel_scope.cancel()
    assert 1 <= len(logs) <= 3, logs


async def test_a_relay_out_of_descriptors_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask who speaks takes one: by an error there anybody on the host could have ended all sessions."""
    desk, _ = announced()
    path = tmp_path / "s"
    duplicate, failures = os.dup, [errno.EMFILE]

    def scarce(descriptor: int) -> int:
        if failures:
            raise OSError(failures.pop(), "Too many open files")
        return duplicate(descriptor)

    monkeypatch.setattr(os, "dup", scarce)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.serve, listen_for_announcements(path), frozenset({os.geteuid()}))
        with contextlib.suppress(trio.BrokenResourceError, ValueError):
            await say(path, b'{"vm":"web","token":"t","minutes":5}\n')
        assert "announced" in str(await say(path, b'{"vm":"web","token":"t","minutes":5}\n'))
        nursery.cancel_scope.cancel()


def test_a_name_that_a_caller_says_of_another_vm_gets_nobodys_token() -> None:
    """The name in a Prepare is the caller's word: a token is for the VM that bore the name when it was announced."""
    desk, _ = announced()
    desk.keep(Announcement(VM, "t1", 15), 0)
    assert desk.named(Wish(OTHER, "web", "b", ("libvirt", "memory"), 0)).token is None


async def test_who_says_nothing_holds_few_places_and_not_for_long(tmp_path: Path) -> None:
    """Each held a descriptor, and migrations need some."""
    desk, _ = announced()
    listening = listen_for_announcements(tmp_path / "s")
    async with AsyncExitStack() as held, trio.open_nursery() as nursery:
        nursery.start_soon(desk.serve, listening, frozenset({os.geteuid()}))
        for _ in range(40):
            one = await held.enter_async_context(await trio.open_unix_socket(str(tmp_path / "s")))
        with trio.fail_after(2):
            assert b"too many" in await one.receive_some(1000)
        nursery.cancel_scope.cancel()
