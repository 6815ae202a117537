"""The log over HTTPS, as a C2SP client reads it: a checkpoint, tiles, bundles; what is on record of that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import trio

from audit.checkpoint import LogVerifier, open_checkpoint
from audit.log import Log
from audit.proof import leaf_hash, node_hash
from audit.tiles import Resource, number_path, unframe
from gateway import tile_reading
from tests.audit.disks import FastDisk
from tests.audit.samples import SIGNER, raw
from tests.gateway.conftest import Running

pytestmark = pytest.mark.whole

PLENTY = [b'{"claims":{},"decision":{"index":0,"leaf_hash":"%s="},"kind":"sealane-permit"}' % (b"A" * 43)] * 600


def root_of(hashes: list[bytes]) -> bytes:
    """RFC 6962, naively."""
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return node_hash(root_of(hashes[:split]), root_of(hashes[split:]))


async def fill(running: Running) -> None:
    await running.gateway.committer.append(lambda _index: PLENTY)


async def get(client: httpx.AsyncClient, path: str) -> bytes:
    answer = await client.get(f"/v1/log/{path}")
    assert answer.status_code == 200, answer.text
    return answer.content


def pieces(size: int) -> list[str]:
    """The paths of all bundles of a log of that size."""
    full, rest = divmod(size, 256)
    return [str(number_path(n)) for n in range(full)] + ([f"{number_path(full)}.p/{rest}"] if rest else [])


async def test_a_client_reads_the_whole_log_and_computes_its_root(running: Running) -> None:
    await fill(running)
    carol = running.person("carol")
    text = (await get(carol, "checkpoint")).decode()
    checkpoint = open_checkpoint(text, [LogVerifier.parse(running.site.vkey)])
    leaves: list[bytes] = []
    for path in pieces(checkpoint.size):
        entries, used = unframe(bundle := await get(carol, f"tile/entries/{path}"))
        assert used == len(bundle)
        hashes = [leaf_hash(entry) for entry in entries]
        assert await get(carol, f"tile/0/{path}") == b"".join(hashes)
        leaves += hashes
    assert len(leaves) == checkpoint.size
    assert root_of(leaves) == checkpoint.root
    assert await get(carol, "tile/1/000.p/2") == root_of(leaves[:256]) + root_of(leaves[256:512])
    assert await get(carol, "tile/0/000.p/3") == b"".join(leaves[:3])  # of an earlier checkpoint


async def test_tiles_may_be_kept_for_ever_by_whoever_may_see_them_and_checkpoints_may_not(running: Running) -> None:
    await fill(running)
    carol = running.person("carol")
    answer = await carol.get("/v1/log/tile/entries/000")
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-encoding"] == "gzip"
    plain = await carol.get("/v1/log/tile/entries/000", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == answer.content
    checkpoint = await carol.get("/v1/log/checkpoint")
    assert checkpoint.headers["cache-control"] == "no-cache"
    assert checkpoint.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("path", ["0/002.p/200", "0/003", "1/000", "7/000", "entries/002", "entries/002.p/250", "0/x"])
async def test_what_the_log_does_not_have_is_not_found(running: Running, path: str) -> None:
    await fill(running)
    answer = await running.person("carol").get(f"/v1/log/tile/{path}")
    assert answer.status_code == 404
    assert (await running.person("carol").post(f"/v1/log/tile/{path}")).status_code in {404, 405}


async def test_only_auditors_read_it_and_a_refusal_is_on_record(running: Running) -> None:
    await fill(running)
    assert (await running.client().get("/v1/log/tile/0/000")).status_code == 401
    assert (await running.client().get("/v1/log/checkpoint")).status_code == 401
    assert (await running.person("bob").get("/v1/log/tile/0/000")).status_code == 403
    (record,) = [one for one in await decoded(running, "audit.read") if one["outcome"] == "denied"]
    assert record["actor"]["name"] == "Bob Guest"


async def test_what_is_being_read_while_its_window_passes_is_counted(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(running)
    reading = running.gateway.desk.tile_reading
    read = reading._committer.read

    async def slow(question: Any) -> Any:
        monkeypatch.setattr(tile_reading, "WINDOW_SECONDS", 0.0)
        await reading.sweep()
        return await read(question)

    monkeypatch.setattr(reading, "_committer", SimpleNamespace(read=slow))
    await get(running.person("carol"), f"tile/entries/{number_path(0)}")
    await reading.sweep()
    ended = [record for record in await running.records("audit.read") if record["outcome"] == "completed"]
    assert [record["details"]["read"]["tiles"]["requests"] for record in ended] == [1]


async def test_reading_much_leaves_two_records(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await fill(running)
    carol = running.person("carol")
    sizes = [len(await get(carol, f"tile/entries/{path}")) for path in ("000", "001", "000")]
    await get(carol, "tile/0/000")
    (began,) = await decoded(running, "audit.read")
    assert (began["outcome"], began["actor"]["name"]) == ("allowed", "Carol Auditor")
    monkeypatch.setattr(tile_reading, "WINDOW_SECONDS", 0.0)
    monkeypatch.setattr(tile_reading, "SWEEP_SECONDS", 0.01)
    reading = running.gateway.desk.tile_reading
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reading.run)
        with trio.fail_after(10):
            while len(records := await decoded(running, "audit.read")) < 2:
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert records[1]["details"]["read"]["tiles"] == {
        "requests": 4,
        "bytes": sum(sizes) + 8192,
        "entry_bundles": 3,
        "lowest_entry": 0,
        "highest_entry": 511,
    }


async def decoded(running: Running, kind: str) -> list[dict[str, Any]]:
    return [record for record in await running.records(kind) if record["kind"] == kind]


def test_a_tile_beyond_the_commit_is_not_served(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Log.open(tmp_path_factory.mktemp("log") / "log", SIGNER, disk=FastDisk()) as log:
        log.append([raw(b"one", b"two")])
        assert log.resource(Resource(0, 0, 2)) == leaf_hash(b"one") + leaf_hash(b"two")
        assert log.resource(Resource(None, 0, 1)) == b"\x00\x03one"
        for wanted in (Resource(0, 0, 3), Resource(0, 1, 1), Resource(1, 0, 1), Resource(None, 0, 256)):
            with pytest.raises(IndexError):
                log.resource(wanted)
