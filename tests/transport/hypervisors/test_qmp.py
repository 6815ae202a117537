"""A monitor's connection against peers that are not what they should be (an honest QEMU: test_qemu)."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from transport.hypervisors.errors import (
    HypervisorGarbled,
    HypervisorGone,
    HypervisorRefused,
    HypervisorTimeout,
    HypervisorUnreachable,
)
from transport.hypervisors.qmp import MAX_EVENTS, QmpConnection

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}}, "capabilities": []}}\r\n'
SECONDS = 5.0
Play = Callable[[trio.SocketStream], Awaitable[None]]


async def read_request(stream: trio.SocketStream) -> int:
    """The id of the next command (the client never sends two at once)."""
    line = b""
    while not line.endswith(b"\n"):
        line += bytes(await stream.receive_some(4096))
    return int(msgspec.json.decode(line)["id"])


async def greet(stream: trio.SocketStream) -> None:
    await stream.send_all(GREETING)
    await stream.send_all(b'{"return": {}, "id": %d}\r\n' % await read_request(stream))


@asynccontextmanager
async def monitor(path: Path, play: Play) -> AsyncIterator[None]:
    """A listener that plays `play` to whoever connects."""
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen(1)

    async def serve() -> None:
        accepted, _ = await listener.accept()
        async with trio.SocketStream(accepted) as stream:
            try:
                await play(stream)
            except trio.BrokenResourceError:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            listener.close()


async def connect(path: Path, seconds: float = SECONDS) -> QmpConnection:
    return await QmpConnection.connect(path, deadline_seconds=seconds)


async def test_no_socket_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(HypervisorUnreachable, match="cannot open the monitor"):
        await connect(tmp_path / "nothing.sock")


async def test_a_socket_where_nobody_listens_any_more_is_unreachable(tmp_path: Path) -> None:
    path = tmp_path / "left.sock"
    with trio.socket.socket(trio.socket.AF_UNIX) as left:
        await left.bind(str(path))
    with pytest.raises(HypervisorUnreachable, match="refused"):
        await connect(path)


async def test_a_path_longer_than_any_socket_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(HypervisorUnreachable):
        await connect(tmp_path / ("x" * 200))


async def test_a_monitor_that_does_not_greet_meets_the_deadline(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def play(_stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with monitor(tmp_path / "s", play):
        with pytest.raises(HypervisorTimeout):
            await connect(tmp_path / "s")


async def test_a_web_server_is_garbled(tmp_path: Path) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with monitor(tmp_path / "s", play):
        with pytest.raises(HypervisorGarbled, match="no QMP message"):
            await connect(tmp_path / "s")


async def test_an_endless_line_is_garbled_and_not_kept(tmp_path: Path) -> None:
    async def play(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(b"x" * 65536)

    async with monitor(tmp_path / "s", play):
        with pytest.raises(HypervisorGarbled, match="a line of more than"):
            await connect(tmp_path / "s")


async def test_an_end_instead_of_a_greeting_is_gone(tmp_path: Path) -> None:
    async def play(_stream: trio.SocketStream) -> None:
        return

    async with monitor(tmp_path / "s", play):
        with pytest.raises(HypervisorGone):
            await connect(tmp_path / "s")


async def test_the_kernel_says_who_is_behind_the_socket(tmp_path: Path) -> None:
    async with monitor(tmp_path / "s", greet), await connect(tmp_path / "s") as connection:
        assert (connection.peer.pid, connection.peer.uid) == (os.getpid(), os.getuid())
        assert connection.version == "10.0.0"


async def test_events_between_a_command_and_its_reply_are_kept_in_order(tmp_path: Path) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await greet(stream)
        id = await read_request(stream)  # noqa: A001  the protocol's own word
        await stream.send_all(b'{"event": "STOP"}\n{"event": "RESUME"}\n{"return": 5, "id": %d}\n' % id)
        await trio.sleep_forever()

    async with monitor(tmp_path / "s", play), await connect(tmp_path / "s") as connection:
        assert await connection.execute("x", deadline_seconds=SECONDS) == 5
        first = await connection.next_event(patience_seconds=0)
        second = await connection.next_event(patience_seconds=0)
        assert first is not None
        assert second is not None
        assert (first.name, second.name) == ("STOP", "RESUME")
        assert await connection.next_event(patience_seconds=0.01) is None


async def test_of_too_many_events_the_oldest_are_dropped(tmp_path: Path) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await greet(stream)
        id = await read_request(stream)  # noqa: A001
        for number in range(MAX_EVENTS + 3):
            await stream.send_all(b'{"event": "E%d"}\n' % number)
        await stream.send_all(b'{"return": {}, "id": %d}\n' % id)
        await trio.sleep_forever()

    async with monitor(tmp_path / "s", play), await connect(tmp_path / "s") as connection:
        await connection.execute("x", deadline_seconds=SECONDS)
        oldest = await connection.next_event(patience_seconds=0)
        assert oldest is not None
        assert (oldest.name, connection.events_dropped) == ("E3", 3)


async def test_a_late_reply_is_never_taken_for_that_of_the_next_command(tmp_path: Path) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await greet(stream)
        late = await read_request(stream)
        now = await read_request(stream)
        await stream.send_all(b'{"return": "late", "id": %d}\n{"return": "now", "id": %d}\n' % (late, now))
        await trio.sleep_forever()

    async with monitor(tmp_path / "s", play), await connect(tmp_path / "s") as connection:
        with pytest.raises(HypervisorTimeout, match="slow"):
            await connection.execute("slow", deadline_seconds=0.05)
        assert await connection.execute("quick", deadline_seconds=SECONDS) == "now"


async def test_a_reply_to_a_command_that_was_never_sent_ends_the_conversation(tmp_path: Path) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await greet(stream)
        await stream.send_all(b'{"return": {}, "id": %d}\n' % (await read_request(stream) + 1))
        await trio.sleep_forever()

    async with monitor(tmp_path / "s", play), await connect(tmp_path / "s") as connection:
        for _ in range(2):  # and it stays ended
            with pytest.raises(HypervisorGarbled, match="out of turn"):
                await connection.execute("x", deadline_seconds=SECONDS)


async def test_an_error_reply_says_which_command_and_why(tmp_path: Path) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await greet(stream)
        reply = b'{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}\n'
        await stream.send_all(reply % await read_request(stream))

    async with monitor(tmp_path / "s", play), await connect(tmp_path / "s") as connection:
        with pytest.raises(HypervisorRefused, match="x: no such thing") as refused:
            await connection.execute("x", deadline_seconds=SECONDS)
        assert (refused.value.error_class, refused.value.who_must_act) == ("GenericError", "operator")


async def test_another_shape_of_answer_than_expected_is_garbled(tmp_path: Path) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await greet(stream)
        await stream.send_all(b'{"return": [1], "id": %d}\n' % await read_request(stream))

    async with monitor(tmp_path / "s", play), await connect(tmp_path / "s") as connection:
        with pytest.raises(HypervisorGarbled, match="unexpected answer to x"):
            await connection.query("x", dict[str, int], deadline_seconds=SECONDS)


async def test_a_closed_monitor_does_not_count_as_an_ended_process(tmp_path: Path) -> None:
    async with monitor(tmp_path / "s", greet), await connect(tmp_path / "s") as connection:
        with pytest.raises(HypervisorTimeout, match="ends"):  # the process is this one
            await connection.wait_end(deadline_seconds=0.05)
