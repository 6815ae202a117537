from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from audit.siem.formats import Format, line_of
from audit.siem.line_file import LineFileSink
from audit.siem.sink import SinkAway
from tests.audit.siem.sink_contract import documents

LINE = line_of(Format.ECS)


def sink(path: Path, rotate_bytes: int = 10**6, keep: int = 3) -> LineFileSink:
    return LineFileSink("file", path, LINE, rotate_bytes, keep)


def bodies(path: Path) -> list[Any]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


async def test_each_document_is_a_line_that_others_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    await sink(path).deliver(documents(0, 2))
    await sink(path).deliver(documents(2, 3))
    assert bodies(path) == [each.body for each in documents(0, 3)]
    assert path.stat().st_mode & 0o007 == 0


async def test_a_line_that_a_crash_cut_anywhere_is_cut_off_and_not_joined(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    await sink(path).deliver(documents(0, 2))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in (*range(first, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:cut])
        await sink(path).deliver(documents(1, 3))
        assert bodies(path) == [each.body for each in documents(0, 3)]


async def test_full_files_are_rotated_and_only_so_many_kept(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for index in range(5):
        await sink(path, rotate_bytes=10, keep=2).deliver(documents(index, index + 1))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert [bodies(each)[0]["event"]["sequence"] for each in (path, tmp_path / "audit.jsonl.1")] == [4, 3]
    assert bodies(tmp_path / "audit.jsonl.2")[0]["event"]["sequence"] == 2


async def test_a_cut_line_does_not_stay_in_a_rotated_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    await sink(path).deliver(documents(0, 1))
    path.write_bytes(path.read_bytes() + b'{"half')
    await sink(path, rotate_bytes=10).deliver(documents(1, 2))
    assert len(bodies(tmp_path / "audit.jsonl.1")) == 1


async def test_a_rotation_that_finds_no_new_file_closes_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The descriptor's number is free once the full file is closed, and another thread of the gateway may have it."""
    path = tmp_path / "audit.jsonl"
    await sink(path).deliver(documents(0, 1))
    one, others = sink(path, rotate_bytes=10), list[int]()
    opened = LineFileSink._open

    def only_once(self: LineFileSink) -> int:
        monkeypatch.setattr(LineFileSink, "_open", no_room)
        return opened(self)

    def no_room(_self: LineFileSink) -> int:
        others.append(os.open(tmp_path, os.O_RDONLY))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LineFileSink, "_open", only_once)
    with pytest.raises(SinkAway, match="No space left"):
        await one.deliver(documents(1, 2))
    os.close(others[0])  # it is still open


async def test_a_missing_folder_a_planted_link_and_a_pipe_are_waited_for(tmp_path: Path) -> None:
    with pytest.raises(SinkAway, match="No such file"):
        await sink(tmp_path / "none" / "a").deliver(documents(0, 1))
    (tmp_path / "target").write_text("keep")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(SinkAway):
        await sink(tmp_path / "link").deliver(documents(0, 1))
    assert (tmp_path / "target").read_text() == "keep"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SinkAway, match="is not a file"):
        await sink(tmp_path / "pipe").deliver(documents(0, 1))


async def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with path.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SinkAway, match="another process"):
            await sink(path).deliver(documents(0, 1))
    await sink(path).deliver(documents(0, 1))


async def test_a_failed_sync_counts_nothing_and_the_batch_is_written_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    await sink(path).deliver(documents(0, 1))

    def fails(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fails)
        with pytest.raises(SinkAway, match="Input/output"):
            await sink(path).deliver(documents(1, 3))
    assert len(bodies(path)) == 1
    await sink(path).deliver(documents(1, 3))
    assert bodies(path) == [each.body for each in documents(0, 3)]


_CHILD = """
import resource, signal, sys, trio
from pathlib import Path
from audit.siem.sink import SinkAway
from tests.audit.siem.sink_contract import documents
from tests.audit.siem.test_line_file import sink
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
async def main():
    one = sink(Path(sys.argv[1]))
    await one.deliver(documents(0, 2))
    try:
        await one.deliver(documents(2, 30))
    except SinkAway as away:
        print(away)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await one.deliver(documents(2, 30))
trio.run(main)
"""


@pytest.mark.real
def test_a_disk_that_fills_in_the_midst_of_a_batch_leaves_whole_lines_only(tmp_path: Path) -> None:
    """By the limit of a file's size, which the kernel enforces as it does a full disk: a short write, then an error."""
    path = tmp_path / "audit.jsonl"
    run = subprocess.run(
        [sys.executable, "-c", _CHILD, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "File too large" in run.stdout
    assert bodies(path) == [each.body for each in documents(0, 30)]


@pytest.mark.parametrize("form", Format)
async def test_every_format_can_be_written(tmp_path: Path, form: Format) -> None:
    path = tmp_path / "audit.log"
    await LineFileSink("file", path, line_of(form), 10**6, 1).deliver(documents(0, 3))
    render = line_of(form)
    assert path.read_bytes().splitlines() == [render(each, 10**6) for each in documents(0, 3)]


async def test_a_file_system_that_hangs_holds_one_thread_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, goes_on = tmp_path / "audit.jsonl", threading.Event()
    real, hung = os.fdatasync, threading.Event()

    def hang(descriptor: int) -> None:
        hung.set()
        goes_on.wait(30)
        real(descriptor)

    monkeypatch.setattr("audit.siem.line_file.os.fdatasync", hang)
    one, threads = sink(path), threading.active_count()
    with trio.CancelScope() as deadline:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.deliver, documents(0, 2))
            assert await trio.to_thread.run_sync(hung.wait, 30)
            deadline.cancel()
    assert deadline.cancelled_caught
    for _ in range(20):
        with pytest.raises(SinkAway, match="its file system hangs"):
            await one.deliver(documents(0, 2))
    assert threading.active_count() <= threads + 1
    with pytest.raises(SinkAway, match="another process writes it"):
        await sink(path).deliver(documents(0, 2))  # as after a reload: the lock keeps the two apart
    monkeypatch.undo()
    goes_on.set()
    with trio.fail_after(10):
        while True:
            try:
                await one.deliver(documents(0, 2))
                break
            except SinkAway:
                await trio.sleep(0.01)
    assert bodies(path) == [each.body for each in (*documents(0, 2), *documents(0, 2))]  # twice, and none cut
