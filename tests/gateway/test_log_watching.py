"""A running gateway whose log is tampered with: it stops, says why, and goes on when the log is whole again."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

import gateway.config as configuration
from audit.checkpoint import LogSigner
from audit.log import Log
from certs.files import read_private_key
from gateway.errors import StartRefused
from gateway.service import serve
from gateway.starter import Site
from tests.audit.disks import FastDisk
from tests.audit.samples import raw
from tests.gateway.conftest import Running, running_gateway

pytestmark = pytest.mark.whole

WATCH_SECONDS = 2
ENTRY = b'{"claims":{},"decision":{"index":0,"leaf_hash":"%s="},"kind":"sealane-permit"}' % (b"A" * 43)


@pytest.fixture
def long_log(site: Site) -> None:
    """Two full bundles, and more."""
    key = read_private_key(site.certs / "gateway" / "log.key")
    with Log.open(site.log, LogSigner(site.log_origin, key), disk=FastDisk()) as log:  # type: ignore[arg-type]
        for size in (600, 1):
            log.append([raw(*[ENTRY] * size)])


@pytest.fixture
async def running(site: Site, long_log: None) -> AsyncIterator[Running]:
    text = site.gateway_config.read_text()
    site.gateway_config.write_text(text.replace("[permits]", f"watch_seconds = {WATCH_SECONDS}\n\n[permits]"))
    async with running_gateway(site) as it:
        yield it


async def until(happened: Callable[[], bool], seconds: float = 20) -> None:
    with trio.fail_after(seconds):
        while not happened():
            await trio.sleep(0.05)


def delete(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (delete, "tile/entries/000"),
        (shorten, "tile/entries/001"),
        (delete, "tile/0/001"),
        (shorten, "tail/2"),
        (delete, "checkpoint"),
    ],
)
async def test_deletion_and_shortening_of_any_file_stop_admissions_until_it_is_back(
    running: Running, name: str, how: Callable[[Path], None], tmp_path: Path
) -> None:
    committer, path = running.gateway.committer, running.site.log / name
    size = committer.size
    shutil.copy2(path, tmp_path / "kept")
    how(path)
    await until(lambda: committer.failed_because is not None, 2 * WATCH_SECONDS + 5)
    assert name in (committer.failed_because or "")
    answer = await running.person("alice").post("/v1/decisions", json={"vm": "web", "destination": "b"})
    assert answer.status_code == 503
    assert name in answer.json()["error"]["message"]
    shutil.copy2(tmp_path / "kept", path)
    await until(lambda: committer.failed_because is None)
    (record,) = await running.records("log.recovered")
    assert name in record["details"]["because"]
    assert record["sequence"] == size


async def test_a_start_refuses_what_changed_while_nothing_ran(site: Site, long_log: None) -> None:
    older, current = site.directory / "older", site.directory / "current"
    shutil.copytree(site.log, older)
    async with running_gateway(site) as running:
        await until(lambda: running.gateway.keeping.watching.known_bundles == 2)
    shutil.copytree(site.log, current)

    shorten(site.log / "tile/entries/001")
    await refused(site, "tile/entries/001")

    put_back(site, older)
    await refused(site, "an older copy was put back")

    put_back(site, current)
    async with running_gateway(site):
        pass

    put_back(site, current)
    seen = site.directory / "state" / "log-seen"
    await refused(site, "an older copy was put back")
    seen.write_bytes(seen.read_bytes()[:-2])
    await refused(site, "compare the log with checkpoints that others keep")
    seen.unlink()  # the operator has done that, and accepts the log as it is
    async with running_gateway(site):
        pass


async def refused(site: Site, why: str) -> None:
    with pytest.raises(StartRefused, match=why):
        await serve(configuration.load(site.gateway_config))


def put_back(site: Site, copy: Path) -> None:
    shutil.rmtree(site.log)
    shutil.copytree(copy, site.log)


async def test_a_log_whose_folder_is_empty_is_not_begun_anew(running: Running) -> None:
    """As where its file system was unmounted: what would be begun lies beneath, and looks like a log."""
    log = running.site.log
    away = log.rename(log.with_name("unmounted"))
    log.mkdir()
    await until(lambda: running.gateway.committer.failed_because is not None)
    await until(lambda: "mount or restore" in (running.gateway.committer.failed_because or ""))
    assert {path.name for path in log.iterdir()} <= {"cosigned"}  # of the last checkpoint: no log begins with it
    shutil.rmtree(log)
    away.rename(log)
    await until(lambda: running.gateway.committer.failed_because is None, 60)
    (recovered,) = await running.records("log.recovered")
    assert "mount or restore" not in recovered["details"]["because"]  # what was first is told, and what was last
    assert "mount or restore" in recovered["details"]["lately"]
