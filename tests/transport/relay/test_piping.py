"""Any program's standard input and output in a lane: tried with tar."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.transport.relay.conftest import serving
from tests.transport.relay.test_carriage import VM, listen
from tests.transport.site import Site, write_toml
from transport.relay.host import open_host

pytestmark = pytest.mark.whole
RUN = """
import sys
from pathlib import Path
from transport.relay.process import run_pipe
sys.exit(run_pipe(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
"""


async def test_an_archive_goes_through_a_pipe_and_an_answer_comes_back(site: Site, short_path: Path) -> None:
    there = short_path / "there"
    there.mkdir()
    here = short_path / "here"
    here.mkdir()
    for number in range(20):
        (here / f"file-{number}").write_bytes(os.urandom(100_000))
    permit = short_path / "permit"
    permit.write_text(site.permit(vm=VM))
    listener = listen(site)
    with trio.fail_after(60):
        async with serving(open_host(site.relay_config("b"))) as (_, address), trio.open_nursery() as nursery:
            tar = subprocess.Popen(["tar", "-C", str(here), "-c", "."], stdout=subprocess.PIPE)
            command = [
                sys.executable,
                "-c",
                RUN,
                str(write_toml(site.relay_config("a"), site.folder / "pipe.toml")),
                str(permit),
                address,
            ]

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
                command, stdin=tar.stdout, capture_stdout=True, capture_stderr=True, check=False
            )
            tar.stdout.close()
            assert tar.wait() == 0
    await listener.aclose()
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"unpacked"
    assert json.loads(done.stderr.splitlines()[-1])["outcome"] == "completed"
    for each in here.iterdir():
        assert (there / each.name).read_bytes() == each.read_bytes()
