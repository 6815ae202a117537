"""A destination in Go, written from docs/wire-protocol.md alone (tests/interop), takes live sessions from our relay."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding

from certs.files import read_certificates
from tests.go_tools import run_go
from tests.transport.relay.conftest import host_with, unheard
from tests.transport.relay.meddler import Meddler, meddling
from tests.transport.relay.test_carriage import dial
from tests.transport.site import DOMAIN, Site
from transport.relay.config import split_address
from transport.relay.host import RelayHost
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source

pytestmark = [pytest.mark.real, pytest.mark.whole]

SOURCES = Path(__file__).parents[2] / "interop"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("go") / "interop"
    run_go(SOURCES, "build", "-buildvcs=false", "-o", str(built), ".")
    return built


@dataclass
class GoDestination:
    """The program as host `b`: where it listens, where it writes, and what it says when it ends."""

    process: trio.Process
    address: str
    out: Path

    async def end(self) -> tuple[int, dict[str, Any], str]:
        """Its exit code, its last line, and its complaint."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        with trio.fail_after(10):
            said = b"".join([part async for part in self.process.stdout])
            complaint = b"".join([part async for part in self.process.stderr])
            code = await self.process.wait()
        return code, json.loads(said or b"{}"), complaint.decode()


@contextlib.asynccontextmanager
async def go_destination(program: Path, site: Site, domain: str = "") -> AsyncIterator[GoDestination]:
    host, out = site.certs / "hosts" / "b", site.folder / "received"
    options = {
        "cert": host / "host.pem",
        "key": host / "host.key",
        "permit-key": site.certs / "gateway" / "permit.pub",
        "log-key": site.certs / "gateway" / "log.vkey",
        "ca": site.certs / "ca.pem",
        "crl": site.certs / "crl.pem",
        "domain": domain or DOMAIN,
        "out": out,
    }
    command = [str(program), *(f"-{option}={value}" for option, value in options.items())]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        with trio.fail_after(10):
            line = bytearray()
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some(1)
        yield GoDestination(process, json.loads(line)["address"], out)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            await pipe.aclose()


async def carry(source: RelayHost, permit: str, address: str, path: Path) -> News:
    order = MigrationOrder(permit, address, deadline_seconds=20)
    return await carry_as_source(source, order, unheard, trio.Event(), path)


@pytest.mark.parametrize("size", [0, 9_000_000])
async def test_a_second_implementation_takes_a_stream_and_both_receipts_agree(
    program: Path, site: Site, short_path: Path, size: int
) -> None:
    data = random.Random(size).randbytes(size)
    source = host_with(site, "a", {})
    path = short_path / "in.sock"
    told: list[News] = []
    answers: list[bytes] = []

    async with go_destination(program, site) as destination:

        async def run() -> None:
            told.append(await carry(source, site.permit(), destination.address, path))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                async with await dial(path) as stream:
                    await stream.send_all(data)
                    await stream.send_eof()
                    answers.append(b"".join([part async for part in stream]))
        code, said, complaint = await destination.end()
    assert (code, complaint) == (0, "")
    assert said["source"] == site.spiffe("a")
    assert said["bytes"] == size
    assert (site.folder / "received").read_bytes() == data
    assert answers == [hashlib.sha256(data).digest()]
    assert told[0].state == "completed"
    (kept,) = source.spool.receipts()
    body = json.loads(json.loads(kept.read_bytes())["receipt"]["body"])
    assert body["channels"][0]["sent_bytes"] == size
    assert body["channels"][0]["received_bytes"] == 32
    assert body["peer_receipt_sha256"], "the receipt of the Go program was taken and verified"
    (leaf, *_) = read_certificates(site.certs / "hosts" / "b" / "host.pem")
    assert body["destination_fingerprint"] == hashlib.sha256(leaf.public_bytes(Encoding.DER)).hexdigest()


async def test_a_byte_changed_on_the_way_ends_the_connection_before_it_is_written(
    program: Path, site: Site, short_path: Path
) -> None:
    data = random.Random(3).randbytes(3_000_000)
    source = host_with(site, "a", {})
    path = short_path / "in.sock"
    told: list[News] = []

    def change(number: int, frame: bytes) -> list[bytes]:
        return [frame if number != 1 else frame[:20] + bytes([frame[20] ^ 1]) + frame[21:]]

    async with go_destination(program, site) as destination:
        async with meddling(Meddler(split_address(destination.address, "relay"), change)) as meddler:

            async def run() -> None:
                told.append(await carry(source, site.permit(), meddler.address, path))

            with trio.fail_after(20):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run)
                    async with await dial(path) as stream:
                        with contextlib.suppress(trio.BrokenResourceError):
                            await stream.send_all(data)
        code, _, complaint = await destination.end()
    assert code == 1
    assert "a frame that does not authenticate" in complaint
    written = destination.out.read_bytes()
    assert written
    assert data.startswith(written)
    assert len(written) < len(data)
    assert told[0].state == "failed"


async def test_a_host_of_another_trust_domain_gets_no_answer(program: Path, site: Site, short_path: Path) -> None:
    source = host_with(site, "a", {})
    async with go_destination(program, site, domain="other.test") as destination:
        with trio.fail_after(20):
            news = await carry(source, site.permit(), destination.address, short_path / "in.sock")
    assert news.state == "failed"
    assert not destination.out.read_bytes()
