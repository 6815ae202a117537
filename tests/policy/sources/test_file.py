"""A file as a source: also one that hangs."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from policy.sources.file import FileSource
from policy.sources.reading import Pace

NOBODY = b"hosts = []\nvms = []\n"
MORE_THAN_THREADS = 50  # trio has 40, for all that the gateway does in threads


async def test_a_file_that_hangs_takes_one_thread_however_often_it_is_read(tmp_path: Path) -> None:
    """As on a network drive whose server is away; whoever names a VM that nobody knows has it read again."""
    path = tmp_path / "inventory.toml"
    os.mkfifo(path)
    source = FileSource("file", path, Pace())
    try:
        for _ in range(MORE_THAN_THREADS):
            with trio.move_on_after(0.01):
                await source.read(None)
        with trio.fail_after(5):
            assert await trio.to_thread.run_sync(lambda: "done", abandon_on_cancel=True) == "done"
    finally:
        os.close(os.open(path, os.O_RDWR))  # whoever opens it now goes on, and finds its end
    path.unlink()
    path.write_bytes(NOBODY)
    with trio.fail_after(5):
        assert (await source.read(None)).told.vms == {}
