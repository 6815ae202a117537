"""Any program's standard input and output in a lane: tried with tar."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.transport.relay.conftest import serving
from tests.transport.relay.test_carriage import VM, listen
from tests.transport.site import Site, write_toml
from transport.errors import ConfigurationError
from transport.relay import process
from transport.relay.host import open_host

pytestmark = pytest.mark.whole
RUN = """
import signal, sys
from pathlib import Path
from transport.relay.process import run_pipe
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background has it ignored
sys.exit(run_pipe(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
"""


def command(site: Site, folder: Path, address: str) -> list[str]:
    """`sealane relay pipe` with a permit, from a."""
    permit = folder / "permit"
    permit.write_text(site.permit(vm=VM))
    config = str(write_toml(site.relay_config("a"), site.folder / "pipe.toml"))
    return [sys.executable, "-c", RUN, config, str(permit), address]


@pytest.mark.parametrize(
    ("what", "code", "outcome", "words"),
    [
        ("reader left", 141, "failed", "standard output was closed before all that came back was written"),
        ("output full", 1, "failed", "standard output could not be written: No space left on device"),
        ("input unreadable", 1, "failed", "standard input could not be read: Bad file descriptor"),
        ("SIGINT", 1, "cancelled", "the migration was cancelled on request"),
        ("SIGTERM", 1, "cancelled", "the migration was cancelled on request"),
    ],
)
async def test_what_ends_a_pipe_here_ends_its_session_in_order_and_is_told_in_one_line(
    site: Site, short_path: Path, what: str, code: int, outcome: str, words: str
) -> None:
    listener = listen(site)
    reading, writing = os.pipe()
    given, taken = reading, os.open("/dev/full" if what == "output full" else os.devnull, os.O_WRONLY)
    if what == "input unreadable":
        given = writing
    elif what == "reader left":
        left, taken = os.pipe()
        os.close(left)
    with trio.fail_after(60):
        async with serving(open_host(site.relay_config("b"))) as (_, address):
            process = await trio.lowlevel.open_process(
                command(site, short_path, address), stdin=given, stdout=taken, stderr=subprocess.PIPE
            )
            assert process.stderr is not None
            if what != "input unreadable":  # which is known before anything is dialled
                stream = await listener.accept()
                if what.startswith("SIG"):
                    process.send_signal(signal.Signals[what])
                else:
                    await stream.send_all(b"an answer")
                assert await stream.receive_some() == b""
                await stream.aclose()
            said = b"".join([bytes(each) async for each in process.stderr])
            assert await process.wait() == code, said
            while list((site.folder / "relay-b" / "journals").iterdir()):
                await trio.sleep(0.05)
    await listener.aclose()
    for each in {reading, writing, taken}:
        os.close(each)
    *_, last = said.splitlines()
    assert json.loads(last) == {"outcome": outcome, "message": words}
    assert not list((site.folder / "relay-a" / "journals").iterdir()), "nothing is left to the relay's next start"


OPEN = RUN.replace("run_pipe", "run_open").replace("sys.argv[3])", "sys.argv[3], Path(sys.argv[4]))")


async def test_a_socket_that_cannot_be_made_uses_up_no_permit_and_one_that_was_made_does_not_stay(
    site: Site, short_path: Path
) -> None:
    listener = listen(site)
    (taken := short_path / "taken").touch()
    with socket.socket(socket.AF_UNIX) as live, trio.fail_after(60):
        live.bind(str(short_path / "live"))
        live.listen()
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(short_path / "left"))
        async with serving(open_host(site.relay_config("b"))) as (_, address):
            interpreter, flag, _, *rest = command(site, short_path, address)
            for path in (short_path / "no" / "x", taken, short_path / "live"):
                done = await trio.run_process(
                    [interpreter, flag, OPEN, *rest, str(path)], capture_stderr=True, check=False
                )
                assert done.returncode == 2
                (line,) = done.stderr.decode().splitlines()
                assert "--socket: " in line
                assert "name another" in line
                assert line.endswith("the operator must act; correct it and start again")
            assert (short_path / "live").is_socket()
            # The same permit is good still, and what a killed process left is in nobody's way.
            opened = await trio.lowlevel.open_process(
                [interpreter, flag, OPEN, *rest, str(short_path / "left")], stdout=subprocess.PIPE
            )
            assert opened.stdout is not None
            said = bytearray(await opened.stdout.receive_some())
            assert json.loads(said)["ready"]
            async with await trio.open_unix_socket(str(short_path / "left")) as client:
                stream = await listener.accept()
                await client.send_eof()
                await stream.aclose()
                assert await client.receive_some() == b""
            async for each in opened.stdout:
                said += each
            assert await opened.wait() == 0
            assert json.loads(said.splitlines()[-1])["outcome"] == "completed"
            assert not (short_path / "left").exists()
    await listener.aclose()


async def test_an_archive_goes_through_a_pipe_and_an_answer_comes_back(site: Site, short_path: Path) -> None:
    there = short_path / "there"
    there.mkdir()
    here = short_path / "here"
    here.mkdir()
    for number in range(20):
        (here / f"file-{number}").write_bytes(os.urandom(100_000))
    listener = listen(site)
    with trio.fail_after(60):
        async with serving(open_host(site.relay_config("b"))) as (_, address), trio.open_nursery() as nursery:
            tar = subprocess.Popen(["tar", "-C", str(here), "-c", "."], stdout=subprocess.PIPE)

            async def receive() -> None:
                stream = await listener.accept()
                untar = await trio.lowlevel.open_process(["tar", "-C", str(there), "-x"], stdin=subprocess.PIPE)
                assert untar.stdin is not None
                async for chunk in stream:
                    await untar.stdin.send_all(chunk)
                await untar.stdin.aclose()
                assert await untar.wait() == 0
                await stream.send_all(b"unpacked")
                await stream.aclose()

            nursery.start_soon(receive)
            assert tar.stdout is not None
            done = await trio.run_process(
                command(site, short_path, address),
                stdin=tar.stdout,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            tar.stdout.close()
            assert tar.wait() == 0
    await listener.aclose()
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"unpacked"
    assert json.loads(done.stderr.splitlines()[-1])["outcome"] == "completed"
    for each in here.iterdir():
        assert (there / each.name).read_bytes() == each.read_bytes()


def test_a_socket_whose_queue_is_full_is_in_use_and_nobody_waits_for_it(short_path: Path) -> None:
    path = short_path / "in.sock"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as queued:
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = queued.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
        with pytest.raises(ConfigurationError, match="name another path"):
            process._make_room(path)
        assert path.is_socket()
