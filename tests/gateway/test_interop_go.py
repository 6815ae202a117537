"""Tools that we did not write accept our log: Go's own packages (golang.org/x/mod/sumdb), torchwood's tiles client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from audit.log import Log
from audit.tile_tree import FolderTiles
from audit.tiles import TILE_WIDTH, number_path, tile_path
from tests.audit.disks import FastDisk
from tests.audit.samples import OTHER_SIGNER, SIGNER, one, with_permit
from tests.gateway.conftest import Running
from tests.go_tools import run_go

pytestmark = [pytest.mark.real, pytest.mark.whole]

SOURCES = Path(__file__).parents[1] / "interop_go"
TILES_SOURCES = Path(__file__).parents[1] / "interop_tiles"
SIZE = 256 * 5 + 77


@pytest.fixture(scope="module")
def interop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program, built from sources and the module that go.sum pins."""
    program = tmp_path_factory.mktemp("go") / "interop"
    go = shutil.which("go")
    assert go is not None, "`make test` installs Go"
    command = [go, "build", "-mod=readonly", "-buildvcs=false", "-o", str(program), "."]
    subprocess.run(command, cwd=SOURCES, check=True, timeout=300, env={**os.environ, "GOWORK": "off"})
    return program


@pytest.fixture(scope="module")
def tiles_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program around torchwood's client, built from sources and the modules that go.sum pins."""
    program = tmp_path_factory.mktemp("go") / "tiles"
    run_go(TILES_SOURCES, "build", "-mod=readonly", "-buildvcs=false", "-o", str(program), ".")
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("log") / "log"
    with Log.open(directory, SIGNER, disk=FastDisk()) as log:
        while log.size < SIZE:
            log.append([with_permit] if log.size + 2 <= SIZE else [one])
    return directory


@pytest.fixture
def served(folder: Path, tmp_path: Path) -> Path:
    """The log as a static server of C2SP tlog-tiles has it: with its partial tiles."""
    copy = tmp_path / "served"
    source = FolderTiles(folder)
    copy.mkdir()
    shutil.copy(folder / "checkpoint", copy)
    level, nodes = 0, SIZE
    while nodes:
        for number in range(-(-nodes // TILE_WIDTH)):
            width = min(TILE_WIDTH, nodes - number * TILE_WIDTH)
            name = tile_path(level, number)
            put(copy / name, width, b"".join(source.tile(level, number, width)))
            if level == 0:
                framed = (len(entry).to_bytes(2) + entry for entry in source.bundle(number, width))
                put(copy / "tile" / "entries" / number_path(number), width, b"".join(framed))
        level, nodes = level + 1, nodes // TILE_WIDTH
    return copy


def put(path: Path, width: int, data: bytes) -> None:
    path = path if width == TILE_WIDTH else path.with_name(f"{path.name}.p") / str(width)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def asked(interop: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(interop), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_go_accepts_every_entry_of_the_log(interop: Path, served: Path) -> None:
    done = asked(interop, served, SIGNER.vkey)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "origin": SIGNER.origin,
        "size": SIZE,
        "inclusion_proofs": SIZE,
        "consistency_proofs": 11,
    }


def test_go_refuses_what_we_refuse(interop: Path, served: Path) -> None:
    assert asked(interop, served, OTHER_SIGNER.vkey).returncode == 1
    for name in ("checkpoint", "tile/entries/003", "tile/0/004", "tile/1/000.p/5"):
        path = served / name
        data = path.read_bytes()
        damaged = bytearray(data)
        damaged[len(data) // 2] ^= 1
        path.write_bytes(bytes(damaged))
        assert asked(interop, served, SIGNER.vkey).returncode == 1, name
        path.write_bytes(data)


async def test_go_accepts_what_a_gateway_serves(interop: Path, running: Running, tmp_path: Path) -> None:
    for _ in range(3):
        await running.person("alice").post("/v1/decisions", json={"vm": "web", "destination": "b"})
    token = tmp_path / "token"
    token.write_text(running.token("carol"))
    command = [str(interop), f"{running.url}/v1/log", running.site.vkey, str(token), str(running.site.ca)]
    with trio.fail_after(60):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["inclusion_proofs"] >= 4


async def test_torchwoods_client_of_tlog_tiles_reads_what_a_gateway_serves(
    tiles_client: Path, running: Running, tmp_path: Path
) -> None:
    alice = running.person("alice")
    for _ in range(260):  # a full bundle, and the next one in part
        answer = await alice.post("/v1/decisions", json={"vm": "web", "destination": "b"})
        assert answer.status_code == 200
    token = tmp_path / "token"
    token.write_text(running.token("carol"))
    command = [str(tiles_client), f"{running.url}/v1/log", running.site.vkey, str(token), str(running.site.ca)]
    with trio.fail_after(60):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["entries"] == told["size"] > 256
    command[2] = OTHER_SIGNER.vkey
    with trio.fail_after(60):
        assert (await trio.run_process(command, capture_stderr=True, check=False)).returncode == 1
